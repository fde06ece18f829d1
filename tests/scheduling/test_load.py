"""How busy a model is: what is measured, and what it decides."""

from collections.abc import Sequence

import pytest

from ralmspec_plugins import AsyncEngine, Continuous, Engine, FixedStride, Settings, plain
from ralmspec_plugins.scheduling.cost_model import Costs
from ralmspec_plugins.scheduling.load import ModelLoad
from ralmspec_plugins.scheduling.policy import SchedulerState
from ralmspec_plugins.testing import EchoWorkload, WordRetriever
from ralmspec_plugins.types import Hits, Query

TEXTS = ["red fox", "blue whale", "green frog"]
IDLE = SchedulerState(pending=0, searching=0, in_flight=0, ahead=0, stalled=False)


def measured(seconds: dict[int, float]) -> ModelLoad:
    load = ModelLoad()
    for _ in range(3):
        for parallel, took_s in seconds.items():
            load.observe(parallel, took_s)
    return load


@pytest.mark.parametrize(
    ("seconds", "capacity"),
    [
        ({1: 0.1}, float("inf")),
        ({1: 0.1, 2: 0.11, 8: 0.14}, float("inf")),
        ({1: 0.1, 2: 0.2, 8: 0.8}, 1.0),
        ({1: 0.1, 2: 0.1, 8: 0.4}, 2.0),
        ({4: 0.1, 8: 0.2}, 4.0),
    ],
)
def test_the_capacity_is_what_takes_as_long_as_one(
    seconds: dict[int, float], capacity: float
) -> None:
    """A server that is never slower has no limit; two cores write two segments at once."""
    assert measured(seconds).capacity == capacity


def test_a_few_outliers_are_no_capacity() -> None:
    """The median of at least three durations counts."""
    load = measured({1: 0.1})
    load.observe(2, 5.0)
    load.observe(2, 5.0)
    assert load.capacity == float("inf")
    for _ in range(5):
        load.observe(2, 0.1)
    assert load.capacity == float("inf")


def test_nothing_runs_ahead_on_a_busy_model() -> None:
    """Where it takes turns and another segment runs; the paper's schedules do as they are told."""
    costs = Costs(load=measured({1: 0.1, 2: 0.2}))
    policy, stride = Continuous().begin(costs), FixedStride(stride=3).begin(costs)
    idle = policy.may_write(IDLE)
    with costs.load.segment(lambda: 0.0):
        busy = policy.may_write(IDLE)
        assert stride.may_write(IDLE)

    assert (idle, busy, policy.may_write(IDLE)) == (True, False, True)


class Failing(EchoWorkload):
    """Fails at one passage, and counts how many segments it writes at once."""

    def __init__(self) -> None:
        super().__init__()
        self.load: ModelLoad | None = None
        self.most = 0

    def extend(self, state, hits, progress):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
        assert self.load is not None
        self.most = max(self.most, self.load.running)
        if "frog" in hits[0].passage.text:
            raise ValueError("no frogs")
        return super().extend(state, hits, progress)


async def test_every_segment_that_began_has_ended() -> None:
    """Also failed and cancelled ones, on threads, in batches and on asyncio; they are counted."""

    class Wrong:
        inline = True

        def guess(self, _query: Query) -> Hits:
            return WordRetriever(TEXTS).search([WordRetriever(TEXTS).encode("whale")])[0]

        def learn(self, query: Query, hits: Hits) -> None:
            """It knows."""

    def told(workload: Failing, engine: Engine | AsyncEngine) -> ModelLoad:
        workload.load = engine._session.costs.load
        return workload.load

    settings = Settings(speculators=[Wrong()], schedule=FixedStride(stride=2))
    prompts: Sequence[str] = ["fox whale fox", "fox frog whale", "whale fox"]
    workload = Failing()
    workload.load = ModelLoad()
    expected = [
        _outcome(lambda prompt=prompt: plain(workload, WordRetriever(TEXTS), prompt))
        for prompt in prompts
    ]
    with Engine(workload, WordRetriever(TEXTS), settings) as engine:
        load = told(workload, engine)
        singly = [_outcome(lambda prompt=prompt: engine.run(prompt)) for prompt in prompts]
        together = engine.batch(prompts, return_exceptions=True)
        assert engine._together.session.costs.load is load
    assert load.running == 0 < workload.most
    async with AsyncEngine(workload, WordRetriever(TEXTS), settings) as engine:
        load = told(workload, engine)
        awaited = await engine.batch(prompts, return_exceptions=True)
    assert 0 == load.running
    for outcomes in (singly, together, awaited):
        assert [str(one) for one in expected] == [str(one) for one in outcomes]
    assert "no frogs" in str(expected[1])


def _outcome(call):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    try:
        return call()
    except ValueError as error:
        return error
