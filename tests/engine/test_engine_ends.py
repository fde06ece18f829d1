"""However a request ends, it ends: nothing hangs, nothing is left, errors are the plain ones."""

import asyncio
import contextlib
import gc
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from ralmspec_plugins import AsyncEngine, Engine, Hits, Query, Request, Settings, plain
from ralmspec_plugins.engine import threads
from ralmspec_plugins.errors import Cancelled, Closed, DeadlineExceeded
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.testing import EchoWorkload, Lines, WordRetriever

TEXTS = ["red fox", "blue whale", "red whale", "green frog"]
PROMPT = "whale red blue fox whale frog green red fox frog"


def synchronously(workload: EchoWorkload, retriever: WordRetriever, request: Request) -> str:
    with Engine(workload, retriever) as engine:
        return engine.run(request).text


def asynchronously(workload: EchoWorkload, retriever: WordRetriever, request: Request) -> str:
    async def main() -> str:
        async with AsyncEngine(workload, retriever) as engine:
            return (await engine.run(request)).text

    return asyncio.run(main())


engines = pytest.mark.parametrize("run", [synchronously, asynchronously])


class Fatal(BaseException):
    """What is no `Exception`."""


class FatalRetriever(WordRetriever):
    def search_wide(self, queries: Sequence[Query], width: int) -> list[Hits]:
        raise Fatal("the end")


class FatalWorkload(EchoWorkload):
    def extend(self, state: Lines, hits: Hits, progress: Progress) -> Lines:
        raise Fatal("the end")


@engines
@pytest.mark.parametrize(
    "parts",
    [(EchoWorkload(), FatalRetriever(TEXTS)), (FatalWorkload(), WordRetriever(TEXTS))],
)
def test_what_is_no_exception_ends_the_request(
    run: Callable[..., str], parts: tuple[EchoWorkload, WordRetriever]
) -> None:
    """An exit, or a test's own failure, in a worker is raised where the request is waited for."""
    began_s = time.monotonic()
    with pytest.raises(Fatal):
        run(*parts, Request(prompt=PROMPT))

    assert time.monotonic() - began_s < 4.0  # it does not wait for what has ended


class CancellingRetriever(WordRetriever):
    """Its own inner task was cancelled, by nobody of ours."""

    async def asearch(self, queries: Sequence[Query]) -> list[Hits]:
        self.searched.append(())
        raise asyncio.CancelledError


def test_a_cancellation_that_nobody_asked_for_is_raised() -> None:
    """It is not taken for our own, and the search is not repeated for ever."""
    retriever = CancellingRetriever(TEXTS)

    async def main() -> None:
        async with AsyncEngine(EchoWorkload(), retriever) as engine:
            with pytest.raises(asyncio.CancelledError):
                await engine.run(PROMPT)

    asyncio.run(main())

    assert len(retriever.searched) < 5


class ReportingWorkload(EchoWorkload):
    """Reports without end, and heeds cancellation."""

    def extend(self, state: Lines, hits: Hits, progress: Progress) -> Lines:
        for _ in range(2000):
            time.sleep(0.001)
            progress.report(state)
            progress.check()
        return super().extend(state, hits, progress)


def test_reports_do_not_put_a_deadline_off() -> None:
    """A stream that always has something new ends at its deadline as well."""
    with Engine(ReportingWorkload(), WordRetriever(TEXTS)) as engine:
        stream = engine.stream(Request(prompt=PROMPT, deadline_s=0.1))
        with pytest.raises(DeadlineExceeded):
            list(stream)
        with pytest.raises(DeadlineExceeded):
            _ = stream.answer  # the error is kept


async def test_completions_that_are_there_do_not_put_a_deadline_off() -> None:
    """On an event loop, where a queue that is never empty is never waited for."""
    async with AsyncEngine(ReportingWorkload(), WordRetriever(TEXTS)) as engine:
        events = engine.events(Request(prompt=PROMPT, deadline_s=0.1))
        run: Any = events._run
        await anext(events)
        put, get = run._completed.put_nowait, run._completed.get_nowait
        left = iter(range(1_000_000))

        def got() -> Any:
            item = get()
            if next(left, None) is not None:
                put(item)  # the same report again, and again
            return item

        run._completed.get_nowait = got
        with pytest.raises(DeadlineExceeded):
            async for _ in events:
                pass

        assert next(left, None) is not None


def test_a_stream_can_be_closed_from_another_thread() -> None:
    """As a server does when its client has gone: the reader gets `Cancelled`."""
    ended: list[BaseException] = []
    with Engine(ReportingWorkload(), WordRetriever(TEXTS)) as engine:
        stream = engine.stream(PROMPT)

        def read() -> None:
            try:
                list(stream)
            except Cancelled as error:
                ended.append(error)

        reader = threading.Thread(target=read)
        reader.start()
        time.sleep(0.05)
        stream.close()
        reader.join(timeout=4.0)

        assert not reader.is_alive()
        assert len(ended) == 1


class Writing(EchoWorkload):
    """Writes until it is stopped."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = threading.Event()
        self.stopped = False

    def extend(self, state: Lines, hits: Hits, progress: Progress) -> Lines:
        self.begun.set()
        until_s = time.monotonic() + 20.0
        while time.monotonic() < until_s and not self.stopped:
            self.stopped = progress.cancelled
            time.sleep(0.001)
        progress.check()
        return super().extend(state, hits, progress)


def test_a_segment_in_the_calling_thread_is_stopped_from_another_one() -> None:
    """Where guesses do not pay off, its thread writes itself; closing ends that as well."""
    workload, raised = Writing(), list[str]()
    with Engine(workload, WordRetriever(TEXTS), Settings(speculate=False)) as engine:
        stream = engine.events(PROMPT, reports=False)

        def read() -> None:
            try:
                list(stream)
            except Cancelled as error:
                raised.append(str(error))

        reader = threading.Thread(target=read)
        reader.start()
        assert workload.begun.wait(20)
        stream.close()
        reader.join(20)

    assert workload.stopped
    assert raised == ["this stream was closed"]


class Collecting(EchoWorkload):
    """Closes its stream while it generates, as a garbage collection in its thread does."""

    def __init__(self) -> None:
        super().__init__()
        self.dropped, self.closed = threading.Event(), threading.Event()
        self.stream: Any = None

    def extend(self, state: Lines, hits: Hits, progress: Progress) -> Lines:
        progress.report(state)
        self.dropped.wait(10.0)
        self.stream.close()
        self.closed.set()
        return super().extend(state, hits, progress)


def test_a_stream_is_collected_in_the_thread_that_generates_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Which does not wait for itself."""
    monkeypatch.setattr(threads, "GRACE_S", 12.0)
    workload = Collecting()
    with Engine(workload, WordRetriever(TEXTS), Settings(speculate=False)) as engine:
        workload.stream = engine.events(PROMPT)
        next(workload.stream)
        workload.dropped.set()

        assert workload.closed.wait(6.0)


class Unreleasable(EchoWorkload):
    """Cannot free what it keeps for a state."""

    def release(self, state: Lines) -> None:
        raise ValueError("the state cannot be freed")


def test_closing_a_stream_raises_what_its_cleanup_raises() -> None:
    """Also where that is of the class which Python raises for a generator that is running."""
    with Engine(Unreleasable(), WordRetriever(TEXTS)) as engine:
        stream = engine.stream(PROMPT)
        next(stream)
        with pytest.raises(ValueError, match="cannot be freed"):
            stream.close()
        assert list(stream) == []


@pytest.mark.parametrize("speculate", [True, False])
def test_an_error_of_the_cleanup_is_the_answer_of_its_request(*, speculate: bool) -> None:
    """As in the plain loop; a batch returns it where it returns exceptions."""
    parts, settings = (Unreleasable(), WordRetriever(TEXTS)), Settings(speculate=speculate)
    with pytest.raises(ValueError, match="cannot be freed"):
        plain(*parts, PROMPT)
    with Engine(*parts, settings) as engine:
        answers = engine.batch([PROMPT] * 3, return_exceptions=True)
        with pytest.raises(ValueError, match="cannot be freed"):
            engine.run(PROMPT)

    async def batch() -> list[Any]:
        async with AsyncEngine(*parts, settings) as engine:
            return list(await engine.batch([PROMPT] * 3, return_exceptions=True))

    answers += asyncio.run(batch())
    assert [repr(one) for one in answers] == ["ValueError('the state cannot be freed')"] * 6


def test_closing_an_async_stream_raises_what_its_cleanup_raises() -> None:
    """The same on asyncio."""

    async def main() -> None:
        async with AsyncEngine(Unreleasable(), WordRetriever(TEXTS)) as engine:
            stream = engine.stream(PROMPT)
            await anext(stream)
            with pytest.raises(ValueError, match="cannot be freed"):
                await stream.aclose()

    asyncio.run(main())


def test_an_async_stream_can_be_closed_from_another_task() -> None:
    """The same on asyncio."""

    async def main() -> type[BaseException]:
        async with AsyncEngine(ReportingWorkload(), WordRetriever(TEXTS)) as engine:
            stream = engine.stream(PROMPT)

            async def read() -> None:
                async for _ in stream:
                    pass

            reader = asyncio.create_task(read())
            await asyncio.sleep(0.05)
            await stream.aclose()
            (result,) = await asyncio.gather(reader, return_exceptions=True)
            return type(result)

    assert asyncio.run(main()) is Cancelled


@engines
def test_a_closed_engine_says_so(run: Callable[..., str]) -> None:
    """A request that outlives its engine ends with an error, not in waiting."""

    class Closing(EchoWorkload):
        engine: Any = None

        def extend(self, state: Lines, hits: Hits, progress: Progress) -> Lines:
            self.engine._threads.shutdown(wait=False)
            return super().extend(state, hits, progress)

    workload = Closing()
    if run is synchronously:
        workload.engine = engine = Engine(workload, WordRetriever(TEXTS))
        with pytest.raises(Closed, match="was closed before"):
            _ = engine.stream(PROMPT).answer
        return

    async def main() -> None:
        workload.engine = engine = AsyncEngine(workload, WordRetriever(TEXTS))
        with pytest.raises(Closed, match="was closed before"):
            await engine.run(PROMPT)

    asyncio.run(main())


class Releasing(EchoWorkload):
    """Counts releases, and fails when told to."""

    def __init__(self, *, fails: bool) -> None:
        self.released = 0
        self._fails = fails

    def extend(self, state: Lines, hits: Hits, progress: Progress) -> Lines:
        if self._fails and state[1]:
            raise ValueError("no more")
        return super().extend(state, hits, progress)

    def release(self, state: Lines) -> None:
        self.released += 1


@engines
@pytest.mark.parametrize("fails", [False, True])
def test_memory_is_released_however_it_ends(run: Callable[..., str], fails: bool) -> None:
    """After an answer and after an error."""
    workload = Releasing(fails=fails)
    try:
        run(workload, WordRetriever(TEXTS), Request(prompt=PROMPT))
    except ValueError:
        assert fails

    assert workload.released >= 1


def test_the_plain_settings_end_like_the_others() -> None:
    """Without speculation the same engine, streams and errors are there."""
    workload = Releasing(fails=True)
    with (
        Engine(workload, WordRetriever(TEXTS), Settings(speculate=False)) as engine,
        pytest.raises(ValueError, match="no more"),
    ):
        engine.run(PROMPT)


class Waiting(Releasing):
    """Waits for ever, unless it is cancelled."""

    def __init__(self) -> None:
        super().__init__(fails=False)
        self.began, self.ended = asyncio.Event(), False
        self.progress: Progress | None = None

    async def aextend(self, state: Lines, hits: Hits, progress: Progress) -> Lines:
        self.progress = progress
        self.began.set()
        try:
            return await asyncio.Event().wait() or state
        finally:
            self.ended = True


def test_a_stream_is_dropped_while_its_loop_stands() -> None:
    """As in a notebook, whose loop runs for one call at a time."""
    loop = asyncio.new_event_loop()
    try:
        workload = Waiting()
        engine = AsyncEngine(workload, WordRetriever(TEXTS), Settings(switch_interval_s=0.001))
        before_s = sys.getswitchinterval()
        events = engine.events(PROMPT)

        async def begin(events: Any) -> None:
            while not workload.began.is_set():
                await anext(events)
                await asyncio.sleep(0.01)

        loop.run_until_complete(begin(events))
        del events
        gc.collect()
        assert workload.progress is not None
        with pytest.raises(Cancelled):
            workload.progress.check()
        assert sys.getswitchinterval() == pytest.approx(before_s)
        assert not workload.ended

        loop.run_until_complete(asyncio.sleep(0.05))
        assert workload.ended
        assert workload.released == 1
        loop.run_until_complete(engine.close())
    finally:
        loop.close()


@pytest.mark.parametrize("closed", [True, False])
def test_a_request_is_collected_with_its_task(
    closed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing can be awaited any more: it ends at once, or when its loop runs again."""
    ignored: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", ignored.append)
    loop = asyncio.new_event_loop()
    try:
        workload = Waiting()
        engine = AsyncEngine(workload, WordRetriever(TEXTS), Settings(switch_interval_s=0.001))
        before_s = sys.getswitchinterval()
        run: Any = engine.run(PROMPT)
        task: Any = loop.create_task(run)
        task._log_destroy_pending = False
        loop.run_until_complete(workload.began.wait())
        if closed:
            for one in asyncio.all_tasks(loop):
                one._log_destroy_pending = False  # type: ignore[attr-defined]
            loop.close()
        with contextlib.suppress(RuntimeError):  # of the queue, whose loop is closed
            run.close()
        assert sys.getswitchinterval() == pytest.approx(before_s)
        assert workload.progress is not None
        assert workload.progress.cancelled

        if not closed:
            task.cancel()
            with contextlib.suppress(RuntimeError):  # the coroutine of this task was closed
                loop.run_until_complete(task)
            loop.run_until_complete(asyncio.sleep(0.05))
            assert workload.ended
            loop.run_until_complete(engine.close())
        assert workload.released == 1
        assert ignored == []
    finally:
        loop.close()


class Blocking(EchoWorkload):
    """Writes in a thread until it is let go on, and counts how many write at a time."""

    def __init__(self) -> None:
        self.began, self.go_on = threading.Event(), threading.Event()
        self.writing, self.most = 0, 0

    def extend(self, state: Lines, hits: Hits, progress: Progress) -> Lines:
        self.writing += 1
        self.most = max(self.most, self.writing)
        self.began.set()
        self.go_on.wait(5.0)
        self.writing -= 1
        return super().extend(state, hits, progress)


def test_other_code_cancels_the_tasks_of_a_request() -> None:
    """As a server that shuts down: the thread still writes, and nothing is written beside it."""
    workload = Blocking()

    async def main() -> Any:
        engine = AsyncEngine(workload, WordRetriever(TEXTS))
        asking = asyncio.create_task(engine.run(PROMPT))
        await asyncio.to_thread(workload.began.wait, 5.0)
        for task in asyncio.all_tasks() - {asyncio.current_task(), asking}:
            task.cancel()
        (ended,) = await asyncio.gather(asking, return_exceptions=True)
        workload.go_on.set()
        await engine.close()
        return ended

    assert isinstance(asyncio.run(main()), asyncio.CancelledError)
    assert workload.most == 1


def test_a_reader_that_is_cancelled_while_an_error_ends_the_work() -> None:
    """The next read raises the error; the loop of the request is not driven on."""

    async def main() -> list[Any]:
        async with AsyncEngine(EchoWorkload(), WordRetriever(TEXTS)) as engine:
            stream = engine.stream(PROMPT)
            run = stream._events._run
            stopped = asyncio.Event()
            stop = run.stop

            async def advance() -> list[Any]:
                assert not stopped.is_set()
                raise ValueError("no more")

            async def slowly() -> None:
                stopped.set()
                await asyncio.sleep(0.05)
                await stop()

            run.advance, run.stop = advance, slowly
            reading = asyncio.create_task(anext(stream))
            await stopped.wait()
            reading.cancel()
            again = asyncio.create_task(anext(stream))
            return await asyncio.gather(reading, again, return_exceptions=True)

    first, again = asyncio.run(main())
    assert isinstance(first, asyncio.CancelledError)
    assert isinstance(again, ValueError)
