"""How busy a model is: what is measured, and what it decides."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from ralmspec_plugins import (
    AsyncEngine,
    Continuous,
    Engine,
    FixedStride,
    Settings,
    Verifier,
    plain,
)
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.scheduling.cost_model import Costs, Searched
from ralmspec_plugins.scheduling.load import KEPT, ModelLoad, StoreTime
from ralmspec_plugins.scheduling.policy import SchedulerState
from ralmspec_plugins.testing import EchoWorkload, WordRetriever
from ralmspec_plugins.types import Answer, Hits, Query

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
        ({1: 0.1, 8: 1.6}, 1.0),
        ({4: 0.1, 8: 0.2}, 1.0),
        ({4: 0.1, 8: 0.16}, 5.0),
    ],
)
def test_the_capacity_is_what_takes_as_long_as_one(
    seconds: dict[int, float], capacity: float
) -> None:
    """A server that is never slower has no limit; two cores write two segments at once."""
    assert measured(seconds).capacity == pytest.approx(capacity)


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

    def extend(self, state: Any, hits: Hits, progress: Progress) -> Any:
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
        _outcome(lambda prompt: plain(workload, WordRetriever(TEXTS), prompt), prompt)
        for prompt in prompts
    ]
    with Engine(workload, WordRetriever(TEXTS), settings) as engine:
        load = told(workload, engine)
        singly = [_outcome(engine.run, prompt) for prompt in prompts]
        together = engine.batch(prompts, return_exceptions=True)
        assert engine._together.session.costs.load is load
    assert load.running == 0 < workload.most
    async with AsyncEngine(workload, WordRetriever(TEXTS), settings) as other:
        load = told(workload, other)
        awaited = await other.batch(prompts, return_exceptions=True)
    assert 0 == load.running
    for outcomes in (singly, together, awaited):
        assert [str(one) for one in expected] == [str(one) for one in outcomes]
    assert "no frogs" in str(expected[1])


def _outcome(call: Callable[[str], Answer], prompt: str) -> Answer | Exception:
    try:
        return call(prompt)
    except ValueError as error:
        return error


# A store that computes in this process


def test_what_waits_for_the_processor_is_not_hidden() -> None:
    """Of a search among those of many requests only what it computes; of a far one all."""
    here, far = StoreTime(), StoreTime()
    for _ in range(5):
        here.observe(0.03, 0.002)
        far.observe(0.03, 0.002)
    here.observe(0.003, 0.002)  # this one was alone

    assert (here.computes_here, far.computes_here) == (True, False)
    assert here.hidden_s(0.03, busy_s=0.03) == 0.002
    assert here.hidden_s(0.001, busy_s=0.001) == 0.001
    assert far.hidden_s(0.03, busy_s=0.03) == 0.03


def test_a_store_behind_a_cache_is_far_away_while_the_processor_is_free() -> None:
    """Its quick searches compute here and the others wait elsewhere: those are worth a guess."""
    store = StoreTime()
    store.observe(0.0001, 0.0001)
    store.observe(0.05, 0.001)

    assert store.computes_here
    assert store.hidden_s(0.05, busy_s=0.01) == 0.05


def test_where_a_store_computes_is_known_for_a_while() -> None:
    """Between the searches of a crowd hardly one runs through; later it may be another store."""
    store = StoreTime()
    store.observe(0.002, 0.002)
    for _ in range(KEPT - 1):
        store.observe(0.03, 0.002)
    before = store.computes_here
    store.observe(0.03, 0.002)

    assert (before, store.computes_here) == (True, False)


@pytest.mark.parametrize(("own_s", "worth"), [(0.0005, False), (0.00001, True)])
def test_many_requests_over_a_store_in_this_process_do_not_guess(
    monkeypatch: pytest.MonkeyPatch, own_s: float, worth: bool
) -> None:
    """With a full processor a search of 0.5 ms takes 20; one that is far away is hidden."""
    monkeypatch.setattr(Costs, "SIDE_BY_SIDE_S", 0.003)
    costs = Costs()
    costs.wrote(0.02)
    costs.store.observe(0.001, own_s)
    for _ in range(5):
        costs.store.observe(0.02, own_s)
        costs.searched(Searched(1, 0.02, busy_s=0.02))

    assert worth == costs.worth_guessing()


class Computing(WordRetriever):
    """Computes for a millisecond, or waits for one."""

    def __init__(self, *, computes: bool) -> None:
        super().__init__(TEXTS)
        self.computes = computes

    def search_wide(self, queries: Sequence[Query], width: int) -> list[Hits]:
        if not self.computes:
            time.sleep(0.001)
        until_s = time.thread_time() + 0.001
        while self.computes and time.thread_time() < until_s:
            pass
        return super().search_wide(queries, width)


@pytest.mark.parametrize("computes", [True, False])
@pytest.mark.parametrize("verified", [True, False])
def test_searches_are_timed_in_the_threads_that_make_them(verified: bool, computes: bool) -> None:
    """Alone, in a batch, on asyncio; also in the lanes of a verifier."""
    prompts = ["fox whale fox", "frog whale", "whale fox"] * 4

    def opened() -> Any:
        store = Computing(computes=computes)
        return Verifier(store) if verified else store

    async def awaited() -> tuple[bool, bool]:
        async with AsyncEngine(EchoWorkload(), opened()) as engine:
            await asyncio.gather(*(engine.run(prompt) for prompt in prompts))
            alone = engine._session.costs.store
            await engine.batch(prompts)
            return alone.computes_here, engine._together.session.costs.store.computes_here

    with Engine(EchoWorkload(), opened()) as engine:
        for prompt in prompts:
            engine.run(prompt)
        alone = engine._session.costs.store
        engine.batch(prompts)
        merged = engine._together.session.costs.store

    assert (alone.computes_here, merged.computes_here) == (computes, computes)
    assert asyncio.run(awaited()) == (computes, computes)
    assert (alone is merged) == verified


def test_a_failed_search_is_not_timed() -> None:
    """It says nothing of the others."""

    class Broken(Computing):
        def search_wide(self, queries: Sequence[Query], width: int) -> list[Hits]:
            super().search_wide(queries, width)
            raise ValueError("broken")

    with Engine(EchoWorkload(), Broken(computes=True)) as engine:
        with pytest.raises(ValueError, match="broken"):
            engine.run("fox")

        assert not engine._session.costs.store.computes_here


@pytest.mark.parametrize("kind", [Engine, AsyncEngine])
def test_the_time_of_a_busy_process_reaches_the_costs(
    monkeypatch: pytest.MonkeyPatch, kind: type[Any]
) -> None:
    """Both engines say how much the process computed during a search."""
    seen: list[Searched] = []
    monkeypatch.setattr(Costs, "searched", lambda _costs, search: seen.append(search))

    async def run() -> None:
        async with AsyncEngine(EchoWorkload(), Computing(computes=True)) as engine:
            await engine.run("fox whale")

    if kind is Engine:
        with Engine(EchoWorkload(), Computing(computes=True)) as engine:
            engine.run("fox whale")
    else:
        asyncio.run(run())

    assert len(seen) >= 2
    assert all(0.001 <= search.busy_s for search in seen)
