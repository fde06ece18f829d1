"""Threads, asyncio and the simulation compute what the plain loop does, and leave nothing."""

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
    Continuous,
    Engine,
    FixedStride,
    Latencies,
    Query,
    Request,
    Settings,
    Simulation,
    plain,
)
from ralmspec_plugins.errors import ConfigError, DeadlineExceeded, InputError
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.testing import EchoWorkload, Lines, WordRetriever
from ralmspec_plugins.types import Hits
from tests.drivers import Outcome, plainly
from tests.test_equality import random_settings
from tests.worlds import (
    CarryingWorkload,
    World,
    WorldError,
    WorldRetriever,
    WorldState,
    random_world,
)

TEXTS = ["red fox", "blue whale", "red whale", "green frog", "blue fox and frog"]
PROMPT = "whale red blue fox whale frog green red fox frog"


class JitterWorkload(CarryingWorkload):
    """A world's workload whose segments and queries take unpredictably long, and are cancelled."""

    def query(self, state: WorldState, progress: Progress) -> Any:
        if not self.inline_query:
            time.sleep(random.choice((0.0, 0.0003)))
        return super().query(state, progress)

    def extend(
        self, state: WorldState, hits: Hits, progress: Progress, carried: str | None = None
    ) -> WorldState:
        for _ in range(random.randrange(3)):
            time.sleep(0.0002)
            progress.check()
        return super().extend(state, hits, progress, carried)


class JitterRetriever(WorldRetriever):
    """A world's retriever whose encodings and searches take unpredictably long."""

    def encode(self, text: str) -> Query:
        if not self.inline_encode:
            time.sleep(random.choice((0.0, 0.0003, 0.001)))
        return super().encode(text)

    def search_wide(self, queries: Sequence[Query], width: int) -> list[Hits]:
        time.sleep(random.choice((0.0, 0.0003, 0.001)))
        return super().search_wide(queries, width)


class AsyncJitterWorkload(CarryingWorkload):
    """The same, asynchronous throughout."""

    async def astart(self, request: Request) -> WorldState:
        return self.start(request)

    async def aquery(self, state: WorldState, progress: Progress) -> Any:
        await asyncio.sleep(random.choice((0.0, 0.0002)))
        return self.query(state, progress)

    async def aextend(
        self, state: WorldState, hits: Hits, progress: Progress, carried: str | None = None
    ) -> WorldState:
        await asyncio.sleep(random.choice((0.0, 0.0002)))
        return self.extend(state, hits, progress, carried)


class AsyncJitterRetriever(WorldRetriever):
    """The same, asynchronous."""

    async def aencode(self, text: str) -> Query:
        await asyncio.sleep(random.choice((0.0, 0.0003, 0.001)))
        return self.encode(text)

    async def asearch(self, queries: Sequence[Query]) -> list[Hits]:
        await asyncio.sleep(random.choice((0.0, 0.0003, 0.001)))
        return self.search(queries)

    async def asearch_wide(self, queries: Sequence[Query], width: int) -> list[Hits]:
        await asyncio.sleep(random.choice((0.0, 0.0003, 0.001)))
        return self.search_wide(queries, width)


def threads(world: World, settings: Settings) -> Answer:
    with Engine(JitterWorkload(world), JitterRetriever(world), settings) as engine:
        return engine.run(world.request)


def coroutines(world: World, settings: Settings) -> Answer:
    async def main() -> Answer:
        workload, retriever = AsyncJitterWorkload(world), AsyncJitterRetriever(world)
        async with AsyncEngine(workload, retriever, settings) as engine:
            return await engine.run(world.request)

    return asyncio.run(main())


def coroutines_over_threads(world: World, settings: Settings) -> Answer:
    async def main() -> Answer:
        workload, retriever = JitterWorkload(world), JitterRetriever(world)
        async with AsyncEngine(workload, retriever, settings) as engine:
            return await engine.run(world.request)

    return asyncio.run(main())


def virtual_time(world: World, settings: Settings) -> Answer:
    latencies = Latencies(
        extend_s=1.0,
        search_s=lambda n: 3.0 + 0.1 * n,
        ask_s=0.1,
        encode_s=lambda _: 0.2 + world.seed % 3,
        guess_s=0.01,
        contention=(world.seed % 3) / 2,
    )
    return Simulation(world.workload, world.retriever, latencies, settings).run(world.request)


@pytest.mark.parametrize(
    ("engine", "count"),
    [
        (threads, 40),
        (coroutines, 40),
        (coroutines_over_threads, 25),
        (virtual_time, 100),
        *(
            pytest.param(*many, marks=pytest.mark.slow)
            for many in ((threads, 150), (coroutines, 150), (coroutines_over_threads, 80))
        ),
        pytest.param(virtual_time, 400, marks=pytest.mark.slow),
    ],
)
def test_an_engine_never_changes_the_answer(
    engine: Callable[[World, Settings], Answer], count: int
) -> None:
    """On any engine the answer, its record and its error are the plain loop's."""
    for seed in range(count):
        world = random_world(seed)
        expected = plainly(world).without_events()
        try:
            actual = Outcome.of(engine(world, random_settings(world, random.Random(seed))))
        except WorldError as error:
            actual = Outcome.failed(error)

        assert expected == actual, f"seed {seed}"


def test_the_simulation_is_deterministic() -> None:
    """Two runs in virtual time have the same statistics to the last span."""
    fine = (world for world in map(random_world, range(100)) if plainly(world).error is None)
    world = next(fine)
    first, second = (virtual_time(world, Settings()).stats for _ in range(2))

    assert first == second
    assert first.wall_s > 0


class SlowWorkload(EchoWorkload):
    """Writes until it is cancelled or a second has passed."""

    def __init__(self) -> None:
        self.stopped = threading.Event()

    def extend(self, state: Lines, hits: Hits, progress: Progress) -> Lines:
        try:
            for _ in range(1000):
                time.sleep(0.001)
                progress.check()
        finally:
            self.stopped.set()
        return super().extend(state, hits, progress)


def test_a_deadline_stops_the_writing() -> None:
    """A request past its deadline raises, and its segment has stopped by then."""
    workload = SlowWorkload()
    with Engine(workload, WordRetriever(TEXTS)) as engine:
        with pytest.raises(DeadlineExceeded, match=r"0\.5 seconds"):
            engine.run(Request(prompt=PROMPT, deadline_s=0.5))

        assert workload.stopped.is_set()


def test_an_async_deadline_stops_the_writing() -> None:
    """The same on asyncio, and no task is left."""

    async def main() -> int:
        async with AsyncEngine(workload, WordRetriever(TEXTS)) as engine:
            with pytest.raises(DeadlineExceeded):
                await engine.run(Request(prompt=PROMPT, deadline_s=0.5))
            return len(asyncio.all_tasks())

    workload = SlowWorkload()

    assert asyncio.run(main()) == 1
    assert workload.stopped.is_set()


def test_cancelling_a_task_stops_its_work() -> None:
    """A cancelled `run` ends as cancelled, its segment stops, and no task is left."""

    async def main() -> int:
        async with AsyncEngine(workload, WordRetriever(TEXTS)) as engine:
            task = asyncio.create_task(engine.run(PROMPT))
            await asyncio.sleep(0.03)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return len(asyncio.all_tasks())

    workload = SlowWorkload()

    assert asyncio.run(main()) == 1
    assert workload.stopped.is_set()


def test_closing_a_stream_stops_its_work() -> None:
    """A stream that is given up stops what is being written; its answer is refused clearly."""
    workload = SlowWorkload()
    with Engine(workload, WordRetriever(TEXTS)) as engine:
        stream = engine.stream("whale red")
        next(stream)
        stream.close()

        assert workload.stopped.is_set()
        with pytest.raises(RuntimeError, match="closed before"):
            _ = stream.answer


def test_threads_end_with_the_engine() -> None:
    """Closing an engine leaves as many threads as there were."""
    before = threading.active_count()
    with Engine(EchoWorkload(), WordRetriever(TEXTS)) as engine:
        engine.run(PROMPT)

    assert before == threading.active_count()


def test_a_stream_adds_up_to_the_answer() -> None:
    """The pieces of a stream, put together, are the answer's text."""
    with Engine(EchoWorkload(), WordRetriever(TEXTS)) as engine:
        stream = engine.stream(PROMPT)
        pieces = list(stream)

        assert "".join(pieces) == stream.answer.text
        assert len(pieces) > 1


def test_an_async_stream_adds_up_to_the_answer() -> None:
    """The same on asyncio; asking for the answer too early is refused clearly."""

    async def main() -> tuple[str, str]:
        async with AsyncEngine(EchoWorkload(), WordRetriever(TEXTS)) as engine:
            stream = engine.stream(PROMPT)
            with pytest.raises(RuntimeError, match="read this stream"):
                _ = stream.answer
            pieces = [piece async for piece in stream]
            return "".join(pieces), stream.answer.text

    streamed, text = asyncio.run(main())

    assert streamed == text


def test_one_engine_serves_many_threads() -> None:
    """Requests at the same time on one engine do not mix."""
    with Engine(EchoWorkload(), WordRetriever(TEXTS)) as engine:
        prompts = [" ".join(random.Random(n).choices(PROMPT.split(), k=12)) for n in range(16)]
        alone = [engine.run(prompt).text for prompt in prompts]
        together: dict[int, str] = {}

        def serve(number: int) -> None:
            together[number] = engine.run(prompts[number]).text

        workers = [threading.Thread(target=serve, args=(n,)) for n in range(16)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    assert alone == [together[n] for n in range(16)]


def test_fewer_round_trips_than_queries() -> None:
    """A fixed stride sends its queries in batches: that is the point."""
    retriever = WordRetriever(TEXTS)
    with Engine(EchoWorkload(), retriever, Settings(schedule=FixedStride(stride=3))) as engine:
        stats = engine.run(" ".join(f"{word} n{n}" for n, word in enumerate(PROMPT.split()))).stats

    assert max(stats.batch_sizes) == 3
    assert stats.searches < stats.queries
    assert sum(stats.batch_sizes) == stats.queries == sum(map(len, retriever.searched))


class BatchlessRetriever(WordRetriever):
    """Fails on any batch of more than one query, and gives too few results on request."""

    short = False

    def search_wide(self, queries: Sequence[Query], width: int) -> list[Hits]:
        if len(queries) > 1:
            raise OSError("one at a time, please")
        found = super().search_wide(queries, width)
        return found[1:] if self.short else found


def test_a_failed_batch_is_searched_singly() -> None:
    """A store that refuses batches still answers, and the text is the same."""
    settings = Settings(schedule=FixedStride(stride=4))
    with Engine(EchoWorkload(), WordRetriever(TEXTS), settings) as engine:
        expected = engine.run(PROMPT)
    with Engine(EchoWorkload(), BatchlessRetriever(TEXTS), settings) as engine:
        actual = engine.run(PROMPT)

    assert expected.text == actual.text
    assert actual.stats.retries == 0


def test_a_retriever_that_loses_results_is_refused() -> None:
    """One result for each query, or a clear error."""
    retriever = BatchlessRetriever(TEXTS)
    retriever.short = True
    with (
        Engine(EchoWorkload(), retriever) as engine,
        pytest.raises(InputError, match="0 results for 1 queries"),
    ):
        engine.run(PROMPT)


def test_an_impure_retriever_is_run_plainly(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is searched ahead of time on a retriever with side effects; one warning says so."""
    retriever = WordRetriever(TEXTS)
    retriever.pure = False  # type: ignore[attr-defined]
    with Engine(EchoWorkload(), retriever) as engine:
        engine.run(PROMPT)
        engine.run(PROMPT)

    assert retriever.searched == [(word,) for word in PROMPT.split()] * 2
    assert len(caplog.records) == 1


def test_a_pool_of_another_retriever_is_refused() -> None:
    """Nothing crosses signatures, guesses included."""
    from ralmspec_plugins import PassageCache

    pool = PassageCache(WordRetriever(["another store"]))
    with pytest.raises(ConfigError, match="make one for each"):
        Engine(EchoWorkload(), WordRetriever(TEXTS), Settings(speculators=(pool,)))
    late = Settings(speculators=lambda: (pool,))
    with (
        Engine(EchoWorkload(), WordRetriever(TEXTS), late) as engine,
        pytest.raises(ConfigError, match="make one for each"),
    ):
        engine.run(PROMPT)


def test_a_function_makes_speculators_for_each_request() -> None:
    """Each request has its own, and starts knowing nothing of the others."""
    from ralmspec_plugins import PassageCache

    retriever = WordRetriever(TEXTS)
    made: list[PassageCache] = []

    def own() -> Sequence[PassageCache]:
        made.append(PassageCache(retriever))
        return made[-1:]

    settings = Settings(schedule=FixedStride(stride=3), speculators=own)
    with Engine(EchoWorkload(), retriever, settings) as engine:
        one, other, *many = [engine.run(PROMPT), engine.run(PROMPT), *engine.batch([PROMPT] * 3)]

    assert len(made) == 5
    assert len({id(pool) for pool in made}) == 5
    assert one.stats.guesses == other.stats.guesses > 0
    assert {answer.text for answer in many} == {one.text}


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Settings(prefetch=0),
        lambda: Settings(capacity=0),
        lambda: Settings(schedule="fast"),  # type: ignore[arg-type]
        lambda: FixedStride(stride=0),
        lambda: Continuous(window=0),
        lambda: Continuous(lanes=0),
        lambda: Request(prompt="x", max_tokens=0),
        lambda: Request(prompt="x", deadline_s=0.0),
        lambda: Request(prompt="x", deadline_s=float("inf")),
        lambda: Request(prompt="x", deadline_s=1e300),
        lambda: Request(prompt="x", stop=("",)),
        lambda: Request(prompt="x", stop="ab"),  # type: ignore[arg-type]
    ],
)
def test_settings_without_a_meaning_are_refused(wrong: Callable[[], Any]) -> None:
    """Each says what was got."""
    with pytest.raises(ConfigError, match="got"):
        wrong()


class LateWorkload(EchoWorkload):
    """Takes longer to start than an engine waits for a completion before it looks again."""

    def start(self, request: Request) -> Any:
        time.sleep(0.05)
        return super().start(request)


@pytest.mark.parametrize("speculate", [True, False])
async def test_a_request_that_starts_late_is_answered(
    speculate: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No query is formed before there is a state: a model that others use is waited for."""
    monkeypatch.setattr("ralmspec_plugins.engine.base.PATIENCE_S", 0.005)
    settings = Settings(speculate=speculate)
    expected = plain(EchoWorkload(), WordRetriever(TEXTS), PROMPT).text
    with Engine(LateWorkload(), WordRetriever(TEXTS), settings) as engine:
        ran, events = engine.run(PROMPT), engine.events(PROMPT)
        streamed = events.answer
    async_engine = AsyncEngine(LateWorkload(), WordRetriever(TEXTS), settings)

    assert expected
    assert expected == ran.text == streamed.text == (await async_engine.run(PROMPT)).text
