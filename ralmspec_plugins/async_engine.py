"""The engine on asyncio: searches and model calls as tasks, or in threads where they are sync."""

import asyncio
import contextlib
import contextvars
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, TypeAlias

from ralmspec_plugins.config import Settings
from ralmspec_plugins.engine import GRACE_S, THREADS
from ralmspec_plugins.errors import Cancelled
from ralmspec_plugins.job import Job, Setup, as_request, completions
from ralmspec_plugins.needs import (
    Ask,
    Broken,
    Cancel,
    Completion,
    Extend,
    Found,
    Guess,
    Need,
    Reported,
    Search,
    Start,
    Work,
)
from ralmspec_plugins.plain import usable
from ralmspec_plugins.protocols import Retriever, Workload
from ralmspec_plugins.records import Answer, Query, Request

_Completed: TypeAlias = "asyncio.Queue[Completion | Broken]"


class AsyncEngine:
    """Answers requests on the running event loop, without blocking it.

    Where the workload has `astart`, `aquery` or `aextend`, or the retriever
    `aencode` or `asearch`, those are awaited; everything else runs in threads. A
    task that is no longer needed is cancelled.
    """

    def __init__(
        self, workload: Workload[Any], retriever: Retriever, settings: Settings | None = None
    ) -> None:
        """Put a workload in front of a retriever.

        Raises:
            ConfigError: The settings do not fit the retriever.
        """
        self._setup = Setup(workload, retriever, settings)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="ralmspec")

    async def run(self, request: Request | str) -> Answer:
        """Answer a request.

        Raises:
            DeadlineExceeded: The request's deadline passed.
            Exception: What the plain loop would have raised.
        """
        stream = self._stream(request, reports=False)
        async for _ in stream:
            pass
        return stream.answer

    def stream(self, request: Request | str) -> "AsyncAnswerStream":
        """Answer a request piece by piece; only text that stays is given out."""
        return self._stream(request, reports=True)

    def _stream(self, request: Request | str, *, reports: bool) -> "AsyncAnswerStream":
        completed: _Completed = asyncio.Queue()
        job = Job(self._setup, as_request(request), reports=reports)
        return AsyncAnswerStream(lambda finish: self._drive(job, completed, finish), completed)

    async def close(self) -> None:
        """Wait for searches in threads that nobody needs any more, and let the threads go."""
        shutdown = self._threads.shutdown
        await asyncio.to_thread(shutdown, wait=True)

    async def __aenter__(self) -> Self:
        """Use as an asynchronous context manager."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close."""
        await self.close()

    async def _drive(
        self, job: Job, completed: "_Completed", finish: Callable[[Answer], None]
    ) -> AsyncGenerator[str, None]:
        """Run one request's loop in the caller's task, its work in others."""
        began_s = time.perf_counter()
        desk = _Desk(job, self._threads, completed, began_s)
        shown = 0
        try:
            needs = next(job.flow)
            while job.finish is None:
                for need in needs:
                    desk.see_to(need)
                if job.settled[shown:]:
                    yield job.settled[shown:]
                    shown = len(job.settled)
                if job.finish is None:
                    needs = job.flow.send(await desk.next_completion())
        finally:
            try:
                await desk.stop()
            finally:
                job.close()
        answer = job.answer(time.perf_counter() - began_s)
        if answer.text[shown:]:
            yield answer.text[shown:]
        finish(answer)


class AsyncAnswerStream(AsyncIterator[str]):
    """The pieces of an answer as they become settled; `answer` is there after the last one."""

    def __init__(
        self,
        drive: Callable[[Callable[[Answer], None]], AsyncGenerator[str, None]],
        completed: "_Completed",
    ) -> None:
        """Give out what `drive` yields, and keep the answer that it finishes with."""
        self._pieces = drive(self._finish)
        self._completed = completed
        self._answer: Answer | None = None

    def _finish(self, answer: Answer) -> None:
        self._answer = answer

    async def __anext__(self) -> str:
        """Wait for the next piece."""
        return await anext(self._pieces)

    async def aclose(self) -> None:
        """Give the request up, from any task of its loop; all its work is stopped.

        Whoever is waiting for a piece in another task gets `Cancelled`.
        """
        try:
            await self._pieces.aclose()
        except RuntimeError:  # it is running, in another task
            self._completed.put_nowait(Broken(Cancelled("this stream was closed")))

    @property
    def answer(self) -> Answer:
        """The whole answer, once the stream was read to its end."""
        if self._answer is None:
            raise RuntimeError("read this stream to its end before asking for its answer")
        return self._answer


class _Desk:
    """Has one request's work done in tasks and keeps track of what is out."""

    def __init__(
        self, job: Job, threads: ThreadPoolExecutor, completed: "_Completed", began_s: float
    ) -> None:
        self._job = job
        self._setup = job.setup
        self._threads = threads
        self._began_s = began_s
        self._loop = asyncio.get_running_loop()
        self._completed = completed
        self._tasks: dict[Work, asyncio.Task[None]] = {}
        self._told_to_stop: set[Work] = set()

    def clock(self) -> float:
        return time.perf_counter() - self._began_s

    def see_to(self, need: Need) -> None:
        """Start work, or carry out a notice."""
        if isinstance(need, Cancel):
            self._cancel(need.need)
        elif not isinstance(need, Start | Ask | Guess | Search | Extend):
            self._job.note(need)
        else:
            task = self._loop.create_task(self._carry_out(need))
            self._tasks[need] = task
            task.add_done_callback(lambda task: self._ended(need, task))

    def _ended(self, need: Work, task: asyncio.Task[None]) -> None:
        """Forget a task; complete the work of one that was cancelled before it began."""
        del self._tasks[need]
        if task.cancelled():
            self._hand_in_all(need, _stopped(need), self.clock())

    def _cancel(self, need: Work) -> None:
        """Cancel a task, unless a thread works for it: that has to be waited for."""
        if need in self._tasks and self._awaitable(need) is not None:
            self._told_to_stop.add(need)
            self._tasks[need].cancel()

    def _awaitable(self, need: Work) -> Callable[[], Awaitable[Any]] | None:
        """Give what can be awaited for this work; `None` if it takes a thread."""
        workload, retriever = self._setup.workload, self._setup.retriever
        if isinstance(need, Extend) and (write := getattr(workload, "aextend", None)):
            if self._job.reports:
                need.progress.connect(
                    lambda state: self._hand_in(Reported(need, state, self.clock()))
                )
            return lambda: write(need.state, need.hits, need.progress)
        if isinstance(need, Start) and (start := getattr(workload, "astart", None)):
            return lambda: start(need.request)
        if isinstance(need, Ask) and (hasattr(workload, "aquery") or hasattr(retriever, "aencode")):
            return lambda: self._formed(need.state)
        if isinstance(need, Search) and hasattr(retriever, "asearch"):
            return lambda: self._search(need.queries)
        return None

    async def _carry_out(self, need: Work) -> None:
        """Do a piece of work and hand in its completion, as cancelled if the task was."""
        started_s = self.clock()
        work = self._awaitable(need)
        if work is None:
            await self._in_thread(self._job.carry_out, need, self.clock, self._hand_in)
            return
        results: list[Any]
        try:
            result = await work()
            results = result if isinstance(need, Search) else [result]
            if isinstance(need, Start):
                self._job.begun(result)
        except asyncio.CancelledError as error:
            if need not in self._told_to_stop:
                self._hand_in(Broken(error))
                return
            results = _stopped(need)
        except Exception as error:  # noqa: BLE001 the loop decides whether it counts
            results = [error]
        except BaseException as error:  # noqa: BLE001 raised where the request is waited for
            self._hand_in(Broken(error))
            return
        self._hand_in_all(need, results, started_s)

    def _hand_in_all(self, need: Work, results: list[Any], started_s: float) -> None:
        for done in completions(need, results, started_s, self.clock()):
            self._completed.put_nowait(done)

    async def _formed(self, state: Any) -> Query | None:
        """Form and encode a query, awaiting what can be awaited."""
        workload, retriever = self._setup.workload, self._setup.retriever
        ask = getattr(workload, "aquery", None)
        encode = getattr(retriever, "aencode", None)
        query: str | Query | None
        query = await (ask(state) if ask else self._in_thread(workload.query, state))
        if not isinstance(query, str):
            return usable(query)
        encoded: Query
        if encode is None:
            encoded = await self._in_thread(retriever.encode, query)
        else:
            encoded = await encode(query)
        return encoded

    async def _search(self, queries: Sequence[Query]) -> list[Found | Exception]:
        """Search a batch; if that fails, each query singly, so that errors are each one's own."""
        try:
            return list(await self._setup.asearch(queries))
        except Exception as error:  # noqa: BLE001 the loop decides whether it counts
            if len(queries) == 1:
                return [error]
        return [(await self._search([query]))[0] for query in queries]

    def _hand_in(self, completion: Completion | Broken) -> None:
        """Take a completion from any thread; after the loop has ended nobody waits for it."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._completed.put_nowait, completion)

    async def _in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        context = contextvars.copy_context()
        return await self._loop.run_in_executor(self._threads, context.run, function, *arguments)

    async def next_completion(self) -> Completion:
        """Wait for something to finish.

        Raises:
            DeadlineExceeded: The deadline passed.
            BaseException: A part raised what is no `Exception`, or the stream was closed.
        """
        request = self._job.request
        request.check_deadline(self.clock())
        left_s = None if request.deadline_s is None else request.deadline_s - self.clock()
        try:
            async with asyncio.timeout(left_s):
                completion = await self._completed.get()
        except TimeoutError:
            request.check_deadline(float("inf"))
            raise
        if isinstance(completion, Broken):
            raise completion.error
        return completion

    async def stop(self) -> None:
        """Cancel all that is out; wait until the model is free and all tasks have ended."""
        for need, task in tuple(self._tasks.items()):
            if isinstance(need, Extend):
                need.progress.cancel()
            on_the_model = isinstance(need, Start | Ask | Extend)
            if not on_the_model or self._awaitable(need) is not None:
                self._told_to_stop.add(need)
                task.cancel()
        if self._tasks:
            await asyncio.wait(tuple(self._tasks.values()), timeout=GRACE_S)


def _stopped(need: Work) -> list[Any]:
    """Give the results of work that was cancelled."""
    count = len(need.queries) if isinstance(need, Search) else 1
    return [Cancelled("this work is no longer needed")] * count
