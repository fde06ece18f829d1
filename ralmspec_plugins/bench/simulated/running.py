"""Runs all traces in one setting, in virtual time, and holds every answer to the plain loop's."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from ralmspec_plugins.bench.cases import Arm
from ralmspec_plugins.bench.simulated.replica import NoisyReplica
from ralmspec_plugins.bench.simulated.traces import Follows, Traces, TraceWorkload
from ralmspec_plugins.latencies import Latencies
from ralmspec_plugins.protocols import Speculator
from ralmspec_plugins.records import Answer
from ralmspec_plugins.simulation import Simulation
from ralmspec_plugins.speculation.pool import PassagePool


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What traces are run in: what follows a wrong guess, and what writing and searching cost."""

    traces: Traces
    follows: Follows
    search_s: Callable[[int], float]
    extend_s: float = 1.0
    steps: int | None = None  # of each trace; as many as it has, if not given
    interval: int = 1

    @property
    def workload(self) -> TraceWorkload:
        """The workload of its traces."""
        return TraceWorkload(self.traces, self.follows, steps=self.steps, interval=self.interval)

    @property
    def latencies(self) -> Latencies:
        """What work takes."""
        return Latencies(extend_s=self.extend_s, search_s=self.search_s)

    @property
    def plain_s(self) -> float:
        """What the plain loop takes for one trace."""
        return self.workload.steps * (self.extend_s + self.search_s(1))

    def bound_s(self, *, first_guessed: bool) -> float:
        """Give the least that a trace can take (DESIGN 5): its last search cannot end earlier."""
        steps, one = self.workload.steps, self.search_s(1)
        if first_guessed:
            return (steps - 1) * self.extend_s + max(self.extend_s, one)
        return steps * self.extend_s + one


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What all traces came to in one setting; simulated, and each a mean over the requests."""

    requests: int
    speed_up: float  # the ratio of summed times
    slowest: float  # the least of the single requests' ratios
    middle: float  # their median
    saved: float  # time saved by a request, in the unit of the latencies
    bound: float  # the speed-up that nothing can exceed
    guess_rate: float | None
    round_trips: float
    mean_batch: float
    wasted_segments: float
    guesses: float

    def record(self) -> dict[str, Any]:
        """Give it as JSON takes it."""
        return asdict(self)


def run_arm(world: World, arm: Arm, *, order: list[int] | None = None) -> Ran:
    """Run traces in one way.

    Each request is alone and begins with nothing measured; with a shared pool they come one
    after the other to one engine.

    Args:
        world: the traces, and what they cost.
        arm: the way.
        order: which traces, one after the other; each of them once if not given.
    """
    workload, truths = world.workload, _truths(world)
    simulation: Simulation | None = None
    answers = []
    for number in range(world.traces.count) if order is None else order:
        if simulation is None or not arm.shared:
            simulation = _simulation(world, arm, workload, number)
        answer = simulation.run(str(number))
        assert answer.text == "x" * workload.steps
        assert [step.hits for step in answer.retrieved] == truths[number]
        answers.append(answer)
    return _summed(world, arm, answers)


def _simulation(world: World, arm: Arm, workload: TraceWorkload, seed: int) -> Simulation:
    own: tuple[Speculator, ...] = ()
    if arm.replica:
        pool = PassagePool(world.traces, capacity=arm.capacity, eviction=arm.eviction)
        own = (pool, NoisyReplica(world.traces, seed))
    return Simulation(workload, world.traces, world.latencies, arm.settings(own))


def _truths(world: World) -> list[list[Any]]:
    """Give what the plain loop finds, for each trace and step."""
    steps = range(0, world.workload.steps * world.interval, world.interval)
    return [
        [world.traces.truth(number, step) for step in steps] for number in range(world.traces.count)
    ]


def _summed(world: World, arm: Arm, answers: list[Answer]) -> Ran:
    stats = [answer.stats for answer in answers]
    count, plain_s = len(stats), world.plain_s
    total_s = sum(one.wall_s for one in stats)
    guesses = sum(one.guesses for one in stats)
    searches = sum(one.searches for one in stats)
    bound_s = world.bound_s(first_guessed=arm.replica or arm.shared)
    return Ran(
        requests=count,
        speed_up=count * plain_s / total_s,
        slowest=min(plain_s / one.wall_s for one in stats),
        middle=median(plain_s / one.wall_s for one in stats),
        saved=plain_s - total_s / count,
        bound=plain_s / bound_s,
        guess_rate=sum(one.guesses_right for one in stats) / guesses if guesses else None,
        round_trips=searches / count,
        mean_batch=sum(one.queries for one in stats) / searches,
        wasted_segments=sum(one.wasted_segments for one in stats) / count,
        guesses=guesses / count,
    )
