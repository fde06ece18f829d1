"""The engine on asyncio: searches and model calls as tasks, or in threads where they are sync."""

import asyncio
import contextvars
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

from ralmspec_plugins.config import Settings
from ralmspec_plugins.engine import GRACE_S, THREADS
from ralmspec_plugins.errors import Cancelled, DeadlineExceeded
from ralmspec_plugins.job import Job, Setup, as_request, completions
from ralmspec_plugins.needs import (
    Ask,
    Cancel,
    Completion,
    Extend,
    Found,
    Guess,
    Need,
    Reported,
    Search,
    Settled,
    Start,
    Work,
)
from ralmspec_plugins.plain import formed
from ralmspec_plugins.protocols import Retriever, Workload
from ralmspec_plugins.records import Answer, Query, Request


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
        return AsyncAnswerStream(
            lambda done: self._drive(as_request(request), done, reports=reports)
        )

    async def close(self) -> None:
        """Wait for searches in threads that nobody needs any more, and let the threads go."""
        shutdown = self._threads.shutdown
        await asyncio.to_thread(shutdown, wait=True, cancel_futures=True)

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
        self, request: Request, finish: Callable[[Answer], None], *, reports: bool
    ) -> AsyncGenerator[str, None]:
        """Run one request's loop in the caller's task, its work in others."""
        job = Job(self._setup, request, reports=reports)
        began_s = time.perf_counter()
        desk = _Desk(job, self._threads, began_s)
        shown = 0
        try:
            needs = next(job.flow)
            while job.finish is None:
                for need in needs:
                    if isinstance(need, Settled):
                        yield need.text[shown:]
                        shown = len(need.text)
                    else:
                        desk.see_to(need)
                if job.finish is None:
                    needs = job.flow.send(await desk.next_completion(request.deadline_s))
        finally:
            await desk.stop()
            job.close()
        answer = job.answer(time.perf_counter() - began_s)
        if answer.text[shown:]:
            yield answer.text[shown:]
        finish(answer)


class AsyncAnswerStream(AsyncIterator[str]):
    """The pieces of an answer as they become settled; `answer` is there after the last one."""

    def __init__(
        self, drive: Callable[[Callable[[Answer], None]], AsyncGenerator[str, None]]
    ) -> None:
        """Give out what `drive` yields, and keep the answer that it finishes with."""
        self._pieces = drive(self._finish)
        self._answer: Answer | None = None

    def _finish(self, answer: Answer) -> None:
        self._answer = answer

    async def __anext__(self) -> str:
        """Wait for the next piece."""
        return await anext(self._pieces)

    async def aclose(self) -> None:
        """Give the request up; all its work is stopped."""
        await self._pieces.aclose()

    @property
    def answer(self) -> Answer:
        """The whole answer, once the stream was read to its end."""
        if self._answer is None:
            raise RuntimeError("read this stream to its end before asking for its answer")
        return self._answer


class _Desk:
    """Has one request's work done in tasks and keeps track of what is out."""

    def __init__(self, job: Job, threads: ThreadPoolExecutor, began_s: float) -> None:
        self._job = job
        self._setup = job.setup
        self._threads = threads
        self._began_s = began_s
        self._loop = asyncio.get_running_loop()
        self._completed: asyncio.Queue[Completion] = asyncio.Queue()
        self._tasks: dict[Work, asyncio.Task[None]] = {}

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
        """Cancel a task, unless a thread works on the model for it, which has to be waited for.

        A segment that is written in a thread notices by its progress.
        """
        workload = self._setup.workload
        in_thread = (isinstance(need, Extend) and not hasattr(workload, "aextend")) or (
            isinstance(need, Ask) and not hasattr(workload, "aquery")
        )
        if need in self._tasks and not in_thread:
            self._tasks[need].cancel()

    async def _carry_out(self, need: Work) -> None:
        """Do a piece of work and hand in its completion, as cancelled if the task was."""
        started_s = self.clock()
        results: list[Any]
        try:
            if isinstance(need, Search):
                results = await self._search(need.queries)
            else:
                results = [await self._result(need)]
        except asyncio.CancelledError:
            results = _stopped(need)
        except Exception as error:  # noqa: BLE001 the loop decides whether it counts
            results = [error]
        self._hand_in_all(need, results, started_s)

    def _hand_in_all(self, need: Work, results: list[Any], started_s: float) -> None:
        for done in completions(need, results, started_s, self.clock()):
            self._completed.put_nowait(done)

    async def _result(self, need: Work) -> Any:
        workload = self._setup.workload
        if isinstance(need, Extend) and (write := getattr(workload, "aextend", None)):
            if self._job.reports:
                report = self._completed.put_nowait
                need.progress.connect(lambda state: report(Reported(need, state, self.clock())))
            return await write(need.state, need.hits, need.progress)
        if isinstance(need, Start) and (start := getattr(workload, "astart", None)):
            return self._job.begun(await start(need.request))
        if isinstance(need, Ask):
            return await self._formed(need.state)
        return await self._in_thread(self._job.result, need, self.clock, self._hand_in)

    async def _formed(self, state: Any) -> Query | None:
        """Form and encode a query, awaiting what can be awaited."""
        workload, retriever = self._setup.workload, self._setup.retriever
        ask = getattr(workload, "aquery", None)
        encode = getattr(retriever, "aencode", None)
        query: str | Query | None
        if ask is None and encode is None:
            query = await self._in_thread(formed, workload, retriever, state)
        else:
            query = await (ask(state) if ask else self._in_thread(workload.query, state))
        if not isinstance(query, str):
            return query
        encoded: Query = await (
            encode(query) if encode else self._in_thread(retriever.encode, query)
        )
        return encoded

    async def _search(self, queries: Sequence[Query]) -> list[Found | Exception]:
        """Search a batch; if that fails, each query singly, so that errors are each one's own."""
        if not hasattr(self._setup.retriever, "asearch"):
            results: list[Found | Exception] = await self._in_thread(self._job.results, queries)
            return results
        try:
            return list(await self._setup.asearch(queries))
        except Exception as error:  # noqa: BLE001 the loop decides whether it counts
            if len(queries) == 1:
                return [error]
        return [(await self._search([query]))[0] for query in queries]

    def _hand_in(self, completion: Completion) -> None:
        """Take a report from a thread."""
        self._loop.call_soon_threadsafe(self._completed.put_nowait, completion)

    async def _in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        context = contextvars.copy_context()
        return await self._loop.run_in_executor(self._threads, context.run, function, *arguments)

    async def next_completion(self, deadline_s: float | None) -> Completion:
        """Wait for something to finish.

        Raises:
            DeadlineExceeded: Nothing did before the deadline.
        """
        if deadline_s is None:
            return await self._completed.get()
        try:
            async with asyncio.timeout(deadline_s - self.clock()):
                return await self._completed.get()
        except TimeoutError:
            raise DeadlineExceeded(f"no answer within {deadline_s} seconds") from None

    async def stop(self) -> None:
        """Cancel all that is out, and wait until what was being written has stopped."""
        for need in tuple(self._tasks):
            if isinstance(need, Extend):
                need.progress.cancel()
            self._cancel(need)
        if self._tasks:
            await asyncio.wait(tuple(self._tasks.values()), timeout=GRACE_S)


def _stopped(need: Work) -> list[Any]:
    """Give the results of work that was cancelled."""
    count = len(need.queries) if isinstance(need, Search) else 1
    return [Cancelled("this work is no longer needed")] * count
