from given.does_not_pay import prompt, store, workload

from ralmspec_plugins import plain
from ralmspec_plugins.diagnosis import Bounds

stats = plain(workload, store, prompt).stats
steps = stats.segments
bounds = Bounds(steps=steps, step_s=stats.write_s / steps, search_s=stats.search_s / steps)
at_best = bounds.speed_up
pays = at_best > 1.05
