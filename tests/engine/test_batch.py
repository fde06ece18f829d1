"""Many requests at once: each answer is the one that the request gets alone."""

import asyncio
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from ralmspec_plugins import (
    Answer,
    AsyncEngine,
    Engine,
    QueryCache,
    Request,
    Settings,
    SharedPassageCache,
    Verifier,
    plain,
)
from ralmspec_plugins.engine.session import Session
from ralmspec_plugins.errors import ConfigError, DeadlineExceeded, Overloaded
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.testing import EchoWorkload, Lines, WordRetriever
from ralmspec_plugins.types import Hits, Query
from tests.drivers import Outcome
from tests.engine.test_engines import AsyncJitterRetriever, AsyncJitterWorkload, JitterRetriever
from tests.engine.test_engines import JitterWorkload as JitterWorldWorkload
from tests.test_equality import random_settings
from tests.worlds import World, WorldError, WorldState, random_world

TEXTS = [f"fact{number} about thing{number % 5}" for number in range(30)]
PROMPTS = [f"thing{number % 5} fact{number} thing{number % 3}" for number in range(12)]


class Begun(JitterWorldWorkload):
    """A world whose answers begin with the prompt: each request has an answer of its own."""

    def start(self, request: Request) -> WorldState:
        return WorldState(request.prompt)


class AsyncBegun(AsyncJitterWorkload):
    def start(self, request: Request) -> WorldState:
        return WorldState(request.prompt)


REQUESTS = [Request(prompt=prompt) for prompt in ("a", "b", "ab", "ba", "aab", "é")]


def outcomes(answers: Sequence[Answer | Exception]) -> list[Outcome]:
    """Give what became of each request."""
    for answer in answers:
        assert isinstance(answer, Answer | WorldError), repr(answer)
    return [
        Outcome.of(answer) if isinstance(answer, Answer) else Outcome.failed(answer)
        for answer in answers
    ]


def plainly(world: World) -> list[Outcome]:
    """Answer each request by itself, plainly."""
    found: list[Outcome] = []
    for request in REQUESTS:
        try:
            found.append(Outcome.of(plain(Begun(world), world.retriever, request)))
        except WorldError as error:
            found.append(Outcome.failed(error))
    return found


def in_threads(world: World, settings: Settings) -> list[Outcome]:
    with Engine(Begun(world), JitterRetriever(world), settings) as engine:
        answers = engine.batch(REQUESTS, max_concurrency=4, return_exceptions=True)
    return outcomes(answers)


def in_tasks(world: World, settings: Settings) -> list[Outcome]:
    async def main() -> list[Outcome]:
        async with AsyncEngine(AsyncBegun(world), AsyncJitterRetriever(world), settings) as engine:
            return outcomes(await engine.batch(REQUESTS, max_concurrency=4, return_exceptions=True))

    return asyncio.run(main())


def in_tasks_over_threads(world: World, settings: Settings) -> list[Outcome]:
    async def main() -> list[Outcome]:
        async with AsyncEngine(Begun(world), JitterRetriever(world), settings) as engine:
            return outcomes(await engine.batch(REQUESTS, return_exceptions=True))

    return asyncio.run(main())


def beside_another(world: World, settings: Settings) -> list[Outcome]:
    """Two engines over two worlds share the lanes of one verifier."""
    other = random_world(world.seed + 1)
    with (
        Verifier(JitterRetriever(world), max_batch=3, max_waiting=5) as verifier,
        Engine(Begun(world), verifier, settings) as engine,
        Engine(Begun(other), verifier.beside(JitterRetriever(other))) as neighbour,
    ):
        noise = threading.Thread(
            target=neighbour.batch, args=(REQUESTS,), kwargs={"return_exceptions": True}
        )
        noise.start()
        answers = engine.batch(REQUESTS, return_exceptions=True)
        noise.join()
    return outcomes(answers)


@pytest.mark.parametrize("seeds", [range(8), pytest.param(range(8, 25), marks=pytest.mark.slow)])
@pytest.mark.parametrize("run", [in_threads, in_tasks, in_tasks_over_threads, beside_another])
def test_a_batch_never_changes_an_answer(
    run: Callable[[World, Settings], list[Outcome]], seeds: range
) -> None:
    """Whatever else is answered at the same time, each request's outcome is the plain one."""
    for seed in seeds:
        world = random_world(seed)
        settings = random_settings(world, random.Random(seed))
        if seed % 2:
            settings = Settings(schedule=settings.schedule, pool=SharedPassageCache(capacity=8))

        assert plainly(world) == run(world, settings), f"seed {seed}"


class Slow(WordRetriever):
    """Takes so long that requests meet, on a busy machine too."""

    def search_wide(self, queries: Sequence[Query], width: int) -> list[Hits]:
        time.sleep(0.01)
        return super().search_wide(queries, width)


def test_the_requests_of_a_batch_share_their_searches() -> None:
    """Twelve requests need far fewer round trips together than one by one."""
    store = Slow(TEXTS)
    with Engine(EchoWorkload(), store) as engine:
        answers = engine.batch(PROMPTS, max_concurrency=12)
        together = len(store.searched)
        again = [engine.run(prompt) for prompt in PROMPTS]
        singly = len(store.searched) - together

    assert [answer.text for answer in again] == [answer.text for answer in answers]
    assert any(len(batch) > 3 for batch in store.searched[:together])
    assert together < singly


def test_the_requests_of_a_batch_share_a_pool() -> None:
    """What one request has found, a later one guesses at its first step."""
    with Engine(EchoWorkload(), Slow(TEXTS)) as engine:
        first, second = engine.batch(["thing1 thing2", "thing1 thing2"], max_concurrency=1)

    assert 1 == first.stats.guesses
    assert 2 == second.stats.accepted


def test_a_memo_is_shared_only_where_it_was_given() -> None:
    """Without leave nothing is known beforehand; with it nothing is searched twice."""
    for memo, searches in ((None, 2), (QueryCache(), 1)):
        store = Slow(TEXTS)
        with Engine(EchoWorkload(), store, Settings(memo=memo)) as engine:
            engine.batch(["thing1", "thing1"], max_concurrency=1)

        assert searches == len(store.searched)


class Failing(EchoWorkload):
    """Cannot write about "bad", and writes slowly."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.writing = 0

    def start(self, request: Request) -> Lines:
        self.begun.append(request.prompt)
        return super().start(request)

    def extend(self, state: Lines, hits: Hits, progress: Progress) -> Lines:
        if state[0][0] == "bad":
            raise WorldError("bad")
        self.writing += 1
        try:
            for _ in range(20 if state[0][0] == "thing1" else 2000):
                progress.check()
                time.sleep(0.001)
        finally:
            self.writing -= 1
        return super().extend(state, hits, progress)


async def abatch(engine: AsyncEngine, requests: list[str | Request], **options: Any) -> Any:
    return await engine.batch(requests, **options)


def batched(workload: EchoWorkload, requests: list[str | Request], **options: Any) -> Any:
    with Engine(workload, WordRetriever(TEXTS)) as engine:
        return engine.batch(requests, **options)


def abatched(workload: EchoWorkload, requests: list[str | Request], **options: Any) -> Any:
    async def main() -> Any:
        async with AsyncEngine(workload, WordRetriever(TEXTS)) as engine:
            return await engine.batch(requests, **options)

    return asyncio.run(main())


both = pytest.mark.parametrize("run", [batched, abatched])


@both
def test_the_first_error_in_order_counts_and_ends_the_rest(run: Callable[..., Any]) -> None:
    """The others are given up: in a moment, not when they would have been written."""
    workload = Failing()
    began_s = time.perf_counter()
    with pytest.raises(WorldError, match="bad"):
        run(workload, ["thing1", "bad", "thing2", "thing3", "thing4"], max_concurrency=3)

    assert time.perf_counter() - began_s < 2  # the rest would take 4 seconds and more
    assert workload.writing == 0


@both
def test_errors_can_be_given_back(run: Callable[..., Any]) -> None:
    """Each request that failed gives its error in its place."""
    first, second, third = run(Failing(), ["thing1", "bad", "thing1"], return_exceptions=True)

    assert first.text == third.text
    assert isinstance(second, WorldError)


@both
def test_a_deadline_is_each_requests_own(run: Callable[..., Any]) -> None:
    """It counts from the moment that the request begins, not while it waits for its turn."""
    slow = Request(prompt="thing2", deadline_s=0.15)
    requests = [slow, *[Request(prompt="thing1", deadline_s=1.0)] * 3]
    found = run(Failing(), requests, max_concurrency=1, return_exceptions=True)

    assert isinstance(found[0], DeadlineExceeded)
    assert ["fact1 about thing1"] * 3 == [answer.text for answer in found[1:]]


@both
def test_no_more_are_answered_at_a_time_than_wanted(run: Callable[..., Any]) -> None:
    """One at a time means one after the other, in order; no requests, no answers."""

    class Counting(Failing):
        most = 0

        def extend(self, state: Lines, hits: Hits, progress: Progress) -> Lines:
            Counting.most = max(Counting.most, self.writing + 1)
            return super().extend(state, hits, progress)

    workload = Counting()
    run(workload, ["thing1"] * 4, max_concurrency=2)
    assert Counting.most <= 2

    assert [] == run(workload, [])


@both
@pytest.mark.parametrize("wrong", [0, -1, 1.5, True])
def test_a_concurrency_of_nothing_is_refused(run: Callable[..., Any], wrong: Any) -> None:
    """At least one request must be answered at a time."""
    with pytest.raises(ConfigError, match="max_concurrency"):
        run(EchoWorkload(), ["thing1"], max_concurrency=wrong)


def test_a_cancelled_batch_leaves_nothing_running() -> None:
    """Cancelling the task that waits for a batch stops all its requests."""
    workload = Failing()

    async def main() -> None:
        async with AsyncEngine(workload, WordRetriever(TEXTS)) as engine:
            task = asyncio.create_task(engine.batch(["thing2", "thing3"]))
            while workload.writing < 2:
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

            assert workload.writing == 0
            assert {task} | {asyncio.current_task()} >= asyncio.all_tasks()

    asyncio.run(main())


def test_what_is_not_pure_is_not_merged() -> None:
    """A retriever with side effects is asked as the plain loop asks it, one query at a time."""

    class Impure(Slow):
        pure = False

    store = Impure(TEXTS)
    with Engine(EchoWorkload(), store) as engine:
        engine.batch(PROMPTS, max_concurrency=6)

    assert {1} == {len(batch) for batch in store.searched}


def test_a_callers_verifier_is_used_and_left_open() -> None:
    """An engine closes only what it has made itself."""
    with Verifier(Slow(TEXTS)) as verifier:
        with Engine(EchoWorkload(), verifier) as engine:
            engine.batch(PROMPTS)
        before = verifier.stats.calls
        assert before > 0
        verifier.search([Query("thing1")])

        assert before + 1 == verifier.stats.calls


class Overfull(WordRetriever):
    """Has no room for its first search, and for all that come later."""

    def search_wide(self, queries: Sequence[Query], width: int) -> list[Hits]:
        first = not self.searched
        found = super().search_wide(queries, width)
        if first:
            raise Overloaded("no room")
        return found

    async def asearch(self, queries: Sequence[Query]) -> list[Hits]:
        return self.search(queries)

    async def asearch_wide(self, queries: Sequence[Query], width: int) -> list[Hits]:
        return self.search_wide(queries, width)


def test_no_room_once_does_not_end_prefetching() -> None:
    """A search that found no room is searched wider again next time, not narrower for ever."""
    session = Session(EchoWorkload(), Overfull(TEXTS), None)
    query = [Query("thing1")]
    with pytest.raises(Overloaded):
        session.search(query)
    assert len(session.search(query)[0].wide) == 20

    async def main() -> int:
        session = Session(EchoWorkload(), Overfull(TEXTS), None)
        with pytest.raises(Overloaded):
            await session.asearch(query)
        return len((await session.asearch(query))[0].wide)

    assert 20 == asyncio.run(main())


def test_pool_and_speculators_exclude_each_other() -> None:
    """Both at once would leave it open who guesses."""
    with pytest.raises(ConfigError, match="pool and speculators"):
        Settings(pool=SharedPassageCache(), speculators=())
