from given.does_not_pay import prompt, store, workload

from ralmspec_plugins import Engine, Settings
from ralmspec_plugins.diagnosis import Bounds

with Engine(workload, store, Settings(speculate=False)) as engine:
    at_best = Bounds.of(engine.run(prompt).stats).speed_up
pays = at_best > 1.05
