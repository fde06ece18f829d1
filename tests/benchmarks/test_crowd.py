"""Crowds in virtual time: the plain loop's answers, and the merged searches of a real verifier."""

import asyncio
import selectors
from collections.abc import Sequence

import pytest

from benchmarks.simulated.crowd import LoadResult, LoadSimulation
from ralmspec_plugins import (
    AsyncEngine,
    Continuous,
    FixedStride,
    Latencies,
    Settings,
    Simulation,
    Verifier,
)
from ralmspec_plugins.errors import ConfigError, DeadlineExceeded
from ralmspec_plugins.plain import plain
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.scheduling.schedules import Schedule
from ralmspec_plugins.testing import EchoWorkload, Lines, WordRetriever
from ralmspec_plugins.types import Hits, Query, Request
from tests.drivers import Outcome
from tests.worlds import random_world

TEXTS = ["red fox", "blue whale", "green tree", "red whale", "blue fox", "old green fox"]
WORDS = ["red", "blue", "green", "fox", "whale", "tree", "old"]
SEARCH_S = 1.7
SLOPE_S = 0.211


def b(queries: int) -> float:
    return SEARCH_S + SLOPE_S * queries


def questions(count: int) -> list[str]:
    """Ask seven words each, in an order of its own, and then its own number."""
    return [" ".join([*WORDS[n % 7 :], *WORDS[: n % 7], str(n)]) for n in range(count)]


def extend_s(words: Sequence[str]) -> float:
    """Take another time for each segment, so that nothing happens at the same moment."""
    return 0.431 + 0.0173 * int(words[-1]) + 0.00171 * len(words)


def crowd(settings: Settings, count: int, **chosen: int) -> LoadResult:
    latencies = Latencies(extend_s=lambda need: extend_s(need.state[0]), search_s=b)
    arrivals = [0.0931 * n for n in range(count)]
    simulated = LoadSimulation(EchoWorkload(), WordRetriever(TEXTS), latencies, settings, **chosen)
    return simulated.run(questions(count), arrivals)


class JumpingSelector(selectors.DefaultSelector):
    """Waits for nothing: an event loop's time jumps to when something is due."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.now_s += timeout or 0.0
        return super().select(0)


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop in virtual time."""

    def __init__(self) -> None:
        self.jumping = JumpingSelector()
        super().__init__(self.jumping)

    def time(self) -> float:
        return self.jumping.now_s


class SlowWords(WordRetriever):
    """Takes b(n) for a search."""

    async def asearch(self, queries: Sequence[Query]) -> list[Hits]:
        found = self.search(queries)
        await asyncio.sleep(b(len(queries)))
        return found

    async def asearch_wide(self, queries: Sequence[Query], width: int) -> list[Hits]:
        found = self.search_wide(queries, width)
        await asyncio.sleep(b(len(queries)))
        return found


class SlowEcho(EchoWorkload):
    """Takes its time for a segment; needs no thread, whose time would not be the loop's."""

    async def astart(self, request: Request) -> Lines:
        return self.start(request)

    async def aextend(self, state: Lines, hits: Hits, progress: Progress) -> Lines:
        await asyncio.sleep(extend_s(state[0]))
        return self.extend(state, hits, progress)


def really(
    settings: Settings, count: int, lanes: int, max_batch: int
) -> tuple[list[int], list[float]]:
    """Run real engines' loops behind one real verifier; give its batches, and who ended when."""
    loop = JumpingLoop()
    ended_s = [0.0] * count

    async def main() -> list[int]:
        retriever = SlowWords(TEXTS)
        with Verifier(retriever, lanes=lanes, max_batch=max_batch) as verifier:
            async with AsyncEngine(SlowEcho(), verifier, settings) as engine:

                async def one(number: int, prompt: str) -> None:
                    await asyncio.sleep(0.0931 * number)
                    await engine.run(prompt)
                    ended_s[number] = loop.time()

                await asyncio.gather(*map(one, range(count), questions(count)))
        return [len(batch) for batch in retriever.searched]

    try:
        return loop.run_until_complete(main()), ended_s
    finally:
        loop.close()


@pytest.mark.parametrize("schedule", [None, FixedStride(stride=3), FixedStride(overlap=True)])
@pytest.mark.parametrize(("lanes", "max_batch"), [(1, 64), (1, 4), (3, 64), (2, 3)])
def test_searches_merge_as_a_real_verifier_merges_them(
    schedule: Schedule | None, lanes: int, max_batch: int
) -> None:
    """The same requests behind a real verifier, in a jumping event loop: same batches and times."""
    settings = Settings(speculate=False) if schedule is None else Settings(schedule=schedule)
    batches, ended_s = really(settings, 12, lanes, max_batch)
    simulated = crowd(settings, 12, lanes=lanes, max_batch=max_batch)

    assert batches == list(simulated.batch_sizes)
    assert ended_s == pytest.approx(list(simulated.ended_s))


@pytest.mark.parametrize("writers", [None, 1, 3])
def test_a_crowd_never_changes_an_answer(writers: int | None) -> None:
    """Whoever else is there, each gets the plain loop's answer, record or error."""
    for seed in range(20):
        world = random_world(seed)
        try:
            expected = Outcome.of(plain(world.workload, world.retriever, world.request))
        except Exception as error:
            expected = Outcome.failed(error)
        latencies = Latencies(extend_s=1.0, search_s=b, ask_s=0.1, guess_s=0.01, stop_s=0.2)
        settings = Settings(schedule=Continuous(lanes=2))
        simulated = LoadSimulation(
            world.workload, world.retriever, latencies, settings, writers=writers
        )
        try:
            answers = simulated.run([world.request] * 4, [0.0, 0.3, 0.5, 7.0]).answers
            actual = [Outcome.of(answer) for answer in answers]
        except Exception as error:
            actual = [Outcome.failed(error)] * 4

        assert [expected.text] * 4 == [one.text for one in actual]
        assert [expected.error] * 4 == [one.error for one in actual]
        if expected.error is None:
            assert [expected.retrieved] * 4 == [one.retrieved for one in actual]


def test_servers_write_one_segment_at_a_time() -> None:
    """Two plain requests of 8 steps at one server: 16 segments one after another, searches beside.

    Both ask at 0: one batch is out with the first's query alone (1 second), then the other's
    (to 2). From then on the server is never idle: 1 + 16 x 4 seconds.
    """
    latencies = Latencies(extend_s=4.0, search_s=lambda _: 1.0)
    parts = EchoWorkload(), WordRetriever(TEXTS), latencies, Settings(speculate=False)
    attended = LoadSimulation(*parts, writers=1).run(questions(2))

    assert attended.wall_s == 1 + 16 * 4
    assert attended.batch_sizes == (1,) * 16


def test_a_crowd_of_one_is_a_simulation_of_one() -> None:
    """Alone, with a lane for each, a request takes as long as it does without a crowd."""
    settings = Settings(schedule=Continuous(lanes=4))
    latencies = Latencies(extend_s=1.0, search_s=b, stop_s=0.3)
    parts = EchoWorkload(), WordRetriever(TEXTS), latencies, settings
    [asked] = questions(1)
    expected = Simulation(*parts).run(asked)
    attended = LoadSimulation(*parts, lanes=4).run([asked], [8.0])

    assert expected.stats.batch_sizes == attended.answers[0].stats.batch_sizes
    assert expected.stats.wall_s == pytest.approx(attended.latencies_s[0])
    assert attended.latencies_s[0] == attended.ended_s[0] - 8.0


def test_a_crowd_is_the_same_again() -> None:
    """Two runs of the same crowd are equal to the last digit."""
    first, second = (crowd(Settings(), 40, writers=5) for _ in range(2))

    assert first == second
    assert first.latencies_s == second.latencies_s


def test_a_deadline_ends_a_crowd() -> None:
    """A request that is late raises, as on an engine."""
    asked = Request(prompt="red fox", deadline_s=3.0)
    with pytest.raises(DeadlineExceeded):
        LoadSimulation(EchoWorkload(), WordRetriever(TEXTS), Latencies(search_s=b)).run([asked])


def test_what_has_no_meaning_is_refused() -> None:
    """No lane, no server, a contention, or other times than requests."""
    parts = EchoWorkload(), WordRetriever(TEXTS)
    for chosen in ({"lanes": 0}, {"max_batch": 0}, {"writers": 0}):
        with pytest.raises(ConfigError, match=next(iter(chosen))):
            LoadSimulation(*parts, Latencies(), **chosen)
    with pytest.raises(ConfigError, match="contention"):
        LoadSimulation(*parts, Latencies(contention=0.5))
    with pytest.raises(ConfigError, match="2 requests came at 1 times"):
        LoadSimulation(*parts, Latencies()).run(["red", "fox"], [0.0])
