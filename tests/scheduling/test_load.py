"""How busy a model is: what is measured, and what it decides."""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import pytest

from ralmspec_plugins import (
    AsyncEngine,
    Continuous,
    Engine,
    FixedStride,
    Latencies,
    PassageCache,
    Settings,
    Simulation,
    Verifier,
    plain,
)
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.scheduling import load
from ralmspec_plugins.scheduling.cost_model import Costs, Searched
from ralmspec_plugins.scheduling.encoder_time import EncoderTime
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


class Clocks:
    """The time, and what the process computes, moved by hand."""

    def __init__(self) -> None:
        self.now_s = self.computed_s = 0.0
        self.requests: list[Costs] = []

    def store(self, requests: int = 8) -> StoreTime:
        store = StoreTime(lambda: self.now_s, lambda: self.computed_s, lambda: self.computed_s)
        self.requests += [Costs() for _ in range(requests)]
        for request in self.requests:
            store.begin(request)
        return store

    def searched(self, store: StoreTime, seconds: float, own_s: float, busy: float) -> None:
        """A search, in which the process computes for a share of the time."""
        self.now_s += seconds
        self.computed_s += busy * seconds
        store.observe(seconds, own_s)


def test_what_waits_for_the_processor_is_not_hidden() -> None:
    """Of a search among those of many requests only what it computes; of a far one all."""
    clocks = Clocks()
    here, far = clocks.store(), clocks.store()
    for _ in range(5):
        clocks.searched(here, 0.03, 0.002, busy=1.3)
        clocks.searched(far, 0.03, 0.002, busy=1.3)
    clocks.searched(here, 0.003, 0.002, busy=1.3)  # this one was alone

    assert (here.computes_here, far.computes_here) == (True, False)
    assert (here.hidden_s(0.03), here.hidden_s(0.001)) == (0.002, 0.001)
    assert far.hidden_s(0.03) == 0.03


@pytest.mark.parametrize(("requests", "busy"), [(8, 0.5), (1, 1.3)])
def test_a_store_behind_a_cache_is_far_away(requests: int, busy: float) -> None:
    """Its quick searches compute here; the others are worth a guess, on a processor with room."""
    clocks = Clocks()
    store = clocks.store(requests)
    clocks.searched(store, 0.0001, 0.0001, busy)
    clocks.searched(store, 0.05, 0.001, busy)

    assert store.computes_here
    assert store.hidden_s(0.05) == 0.05


def test_requests_count_while_they_are_in_progress() -> None:
    """The last one has the processor for itself; what is not referenced any more has ended."""
    clocks = Clocks()
    store = clocks.store(3)
    clocks.searched(store, 0.2, 0.15, busy=1.3)
    several = store.hidden_s(0.5)
    store.end(clocks.requests.pop())
    store.end(Costs())
    two = store.hidden_s(0.5)
    clocks.requests.pop()

    assert (several, two, store.hidden_s(0.5)) == (0.15, 0.15, 0.5)


def test_where_a_store_computes_is_known_for_a_while() -> None:
    """Between the searches of a crowd hardly one runs through; later it may be another store."""
    store = StoreTime()
    store.observe(0.002, 0.002)
    for _ in range(KEPT - 1):
        store.observe(0.03, 0.002)
    before = store.computes_here
    store.observe(0.03, 0.002)

    assert (before, store.computes_here) == (True, False)


def watched_clocks() -> tuple[Clocks, StoreTime, list[float]]:
    """Return a store's clocks, the store, and when the clock of its threads was read."""
    clocks = Clocks()
    read: list[float] = []

    def own() -> float:
        read.append(clocks.now_s)
        return clocks.computed_s

    return clocks, StoreTime(lambda: clocks.now_s, own, lambda: clocks.computed_s), read


def test_searches_are_sampled() -> None:
    """The clocks are not read for each of many short ones: that would take longer than they do."""
    clocks, store, read = watched_clocks()
    for _ in range(100):
        with store.search():
            clocks.now_s += 0.01
            clocks.computed_s += 0.01

    assert store.computes_here
    assert 2 * 8 <= len(read) <= 2 * 12


def test_one_of_many_searches_in_parallel_is_sampled() -> None:
    """A crowd's searches begin before the first one ends: their threads read no clock."""
    clocks, store, read = watched_clocks()
    with ExitStack() as searches:
        for _ in range(64):
            searches.enter_context(store.search())
        clocks.now_s += 0.05

    assert read == [0.0, 0.05]


@pytest.mark.parametrize(
    ("awaited", "computed", "here"),
    [
        (False, (0.19, 0.01, 0.01, 0.07, 0.01), (True, False, False, True, True)),
        (True, (0.19, 0.01, 0.01, 0.15, 0.15, 0.15), (True, False, False, False, True, True)),
    ],
)
def test_an_encoder_computes_here_if_it_did_twice_or_the_process_mostly_does(
    awaited: bool, computed: tuple[float, ...], here: tuple[bool, ...]
) -> None:
    """One sample says nothing: a client is set up first, and the process has busy moments."""
    clocks = Clocks()
    own = (lambda: 0.0) if awaited else lambda: clocks.computed_s
    process = (lambda: clocks.computed_s) if awaited else lambda: 0.0
    encoder = EncoderTime(lambda: clocks.now_s, own, process)
    seen = []
    assert not encoder.waits
    for computed_s in computed:
        with encoder.awaited() if awaited else encoder.in_thread():
            clocks.now_s += 0.2
            clocks.computed_s += computed_s
        seen.append((encoder.computes_here, encoder.waits))

    assert seen == [(one, not one) for one in here]


@pytest.mark.parametrize(("own_s", "worth"), [(0.0005, False), (0.00001, True)])
def test_many_requests_over_a_store_in_this_process_do_not_guess(
    monkeypatch: pytest.MonkeyPatch, own_s: float, worth: bool
) -> None:
    """With a full processor a search of 0.5 ms takes 20; one that is far away is hidden."""
    monkeypatch.setattr(Costs, "SIDE_BY_SIDE_S", 0.003)
    clocks = Clocks()
    costs = Costs(store=clocks.store())
    clocks.searched(costs.store, 0.001, own_s, busy=1.3)
    for _ in range(20):
        clocks.searched(costs.store, 0.02, own_s, busy=1.3)
        costs.searched(Searched(1, 0.02))
    unwritten = costs.worth_guessing()
    costs.wrote(0.02)

    assert (worth, worth) == (unwritten, costs.worth_guessing())


@pytest.mark.parametrize(
    ("requests", "busy", "parallel", "own_s", "speculates"),
    [
        (9, 1.0, {}, 0.001, False),
        (9, 1.0, {1: 0.1, 64: 0.1}, 0.001, False),  # generated elsewhere; each takes time here
        (9, 1.0, {1: 0.1, 8: 0.1, 32: 0.4}, 0.001, True),  # known to generate 8 at once
        (9, 1.0, {1: 0.1, 8: 0.1, 32: 0.4}, 0.15, False),  # the store computes here, too
        (8, 1.0, {}, 0.001, True),
        (9, 0.5, {}, 0.001, True),
    ],
)
def test_nothing_is_guessed_for_a_crowd_that_uses_the_processor_up(
    requests: int, busy: float, parallel: dict[int, float], own_s: float, speculates: bool
) -> None:
    """Even before anything is known of the model, and however far the store is."""
    clocks = Clocks()
    costs = Costs(store=clocks.store(requests), load=measured(parallel))
    clocks.searched(costs.store, 0.2, own_s, busy)
    policy = Continuous().begin(costs)

    for _ in range(2):  # before and after the first search is known
        assert policy.worth_guessing() is policy.worth_guessing(early=True) is speculates
        assert policy.may_write(IDLE) is speculates
        policy.searched(Searched(1, 0.2))
        policy.wrote(0.02)
    clocks.searched(costs.store, 0.2, 0.001, 0.5)
    assert policy.worth_guessing()


def test_a_crowd_on_an_event_loop_is_seen_too() -> None:
    """Its searches are awaited, and say nothing of where they are computed."""
    clocks = Clocks()
    store = clocks.store(requests=9)
    seen = []
    for busy in (1.0, 0.2, 0.9):
        clocks.now_s += 0.2
        clocks.computed_s += busy * 0.2
        store.awaited()
        store.awaited()  # not sampled: just now it was
        seen.append(store.is_swamped)

    assert seen == [True, False, True]
    assert not store.computes_here


def test_no_speculator_is_called_while_the_model_has_no_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its guess could not be used; it is called as soon as there is room."""
    asked: list[str] = []

    class Watched(PassageCache):
        def guess(self, query: Query) -> Hits | None:
            asked.append(query.text)
            return super().guess(query)

    store = WordRetriever(TEXTS)
    settings = Settings(speculators=lambda: [Watched(store)])
    with Engine(EchoWorkload(), store, settings) as engine:
        model = engine._session.costs.load
        for parallel, seconds in 3 * ((1, 0.1), (8, 0.8)):
            model.observe(parallel, seconds)
        monkeypatch.setattr(ModelLoad, "observe", lambda *_: None)
        with model.segment(time.perf_counter):
            busy = engine.run("fox whale fox frog")
        while_busy = len(asked)
        alone = engine.run("fox whale fox frog")

    assert busy == alone == plain(EchoWorkload(), store, "fox whale fox frog")
    assert (while_busy, busy.stats.guesses) == (0, 0)
    assert busy.stats.unguessed == "speculative segments would not have paid off"
    assert asked
    assert alone.stats.guesses


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


@pytest.fixture
def observed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[StoreTime, float]]:
    """The store and the computed seconds of each search: all are sampled."""
    seen: list[tuple[StoreTime, float]] = []
    monkeypatch.setattr(load, "SAMPLED_S", 0.0)
    monkeypatch.setattr(
        StoreTime, "observe", lambda store, _seconds, own_s: seen.append((store, own_s))
    )
    return seen


@pytest.mark.parametrize("computes", [True, False])
@pytest.mark.parametrize("verified", [True, False])
def test_searches_are_timed_in_the_threads_that_make_them(
    observed: list[tuple[StoreTime, float]], verified: bool, computes: bool
) -> None:
    """Alone, in a batch, on asyncio; also in the lanes of a verifier."""
    prompts = ["fox whale fox", "frog whale", "whale fox"] * 2

    def opened() -> Any:
        store = Computing(computes=computes)
        return Verifier(store) if verified else store

    async def awaited() -> list[StoreTime]:
        async with AsyncEngine(EchoWorkload(), opened()) as engine:
            await asyncio.gather(*(engine.run(prompt) for prompt in prompts))
            await engine.batch(prompts)
            return [one.costs.store for one in (engine._session, engine._together.session)]

    with Engine(EchoWorkload(), opened()) as engine:
        for prompt in prompts:
            engine.run(prompt)
        engine.batch(prompts)
        stores = [one.costs.store for one in (engine._session, engine._together.session)]
    stores += asyncio.run(awaited())

    assert [verified, verified] == [stores[0] is stores[1], stores[2] is stores[3]]
    assert {id(store) for store, _ in observed} == {id(store) for store in stores}
    assert len(observed) >= 10
    computed = sorted(own_s for _, own_s in observed)
    if computes:
        assert computed[0] >= 0.001
    else:  # reading the clocks, and a collection of garbage, may take a millisecond themselves
        assert computed[len(computed) // 2] < 0.001


def test_a_failed_search_is_not_timed(observed: list[tuple[StoreTime, float]]) -> None:
    """It says nothing of the others."""

    class Broken(Computing):
        def search_wide(self, queries: Sequence[Query], width: int) -> list[Hits]:
            super().search_wide(queries, width)
            raise ValueError("broken")

    with (
        Engine(EchoWorkload(), Broken(computes=True)) as engine,
        pytest.raises(ValueError, match="broken"),
    ):
        engine.run("fox")

    assert observed == []


def test_a_request_that_ends_in_a_garbage_collection_waits_for_nothing() -> None:
    """It may be ended wherever the interpreter collects: also while the lock is held here."""
    store, requests = StoreTime(), [Costs(), Costs()]

    def collect() -> None:
        with store._lock:
            for request in requests:
                store.begin(request)
                store.end(request)

    collecting = threading.Thread(target=collect, daemon=True)
    collecting.start()
    collecting.join(5)

    assert not collecting.is_alive()


def test_virtual_time_does_not_depend_on_real_time(
    observed: list[tuple[StoreTime, float]],
) -> None:
    """What a search really computes is not measured there, nor in a verifier's lanes."""
    for store in (Computing(computes=True), Verifier(Computing(computes=True))):
        simulation = Simulation(EchoWorkload(), store, Latencies())
        answer = simulation.run("fox whale fox")

        assert answer.text
        assert not simulation._session.costs.store.computes_here
    assert all(one is not simulation._session.costs.store for one, _ in observed)
