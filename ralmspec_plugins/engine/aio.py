"""The engine on asyncio: searches and model calls as tasks, or in threads where they are sync."""

import asyncio
import contextlib
import contextvars
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Literal, Self, overload

from ralmspec_plugins.config import Settings
from ralmspec_plugins.effects import (
    Aborted,
    Cancel,
    Completion,
    Event,
    Extend,
    FormQuery,
    Guess,
    Need,
    PartialOutput,
    Search,
    SearchResult,
    Settled,
    Start,
    Work,
)
from ralmspec_plugins.engine.batch import (
    DEFAULT_CONCURRENCY,
    BatchSession,
    aanswer_all,
    check_concurrency,
)
from ralmspec_plugins.engine.session import (
    RequestContext,
    Session,
    as_request,
    completions,
    may_be_discarded,
)
from ralmspec_plugins.engine.streams import (
    AsyncAnswerStream,
    AsyncCompletionQueue,
    AsyncEventStream,
    rest,
)
from ralmspec_plugins.engine.threads import GRACE_S, THREADS, thread_switch_interval
from ralmspec_plugins.errors import Cancelled, Closed, Overloaded
from ralmspec_plugins.plain import usable
from ralmspec_plugins.protocols import Retriever, Workload, speculative
from ralmspec_plugins.types import Answer, Query, Request

# Has one request's work done in asyncio tasks, and in threads where it is not asynchronous.


class AsyncExecutor:
    """Has one request's work done in tasks and keeps track of what is out."""

    def __init__(
        self,
        job: RequestContext,
        threads: ThreadPoolExecutor,
        completed: AsyncCompletionQueue,
        began_s: float,
    ) -> None:
        """Begin with nothing out."""
        self._job = job
        self._setup = job.setup
        self._threads = threads
        self._began_s = began_s
        self._loop = asyncio.get_running_loop()
        self._completed = completed
        self._tasks: dict[Work, asyncio.Task[None]] = {}
        self._told_to_stop: set[Work] = set()

    def clock(self) -> float:
        """Give the seconds since the request began."""
        return time.perf_counter() - self._began_s

    def see_to(self, need: Need) -> None:
        """Start work, or carry out a notice."""
        if isinstance(need, Cancel):
            self._cancel(need.need)
        elif not isinstance(need, Start | FormQuery | Guess | Search | Extend):
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
                    lambda state: self._hand_in(PartialOutput(need, state, self.clock()))
                )
            return lambda: write(need.state, need.hits, need.progress)
        if isinstance(need, Start) and (start := getattr(workload, "astart", None)):
            return lambda: start(need.request)
        if isinstance(need, FormQuery) and (
            hasattr(workload, "aquery") or hasattr(retriever, "aencode")
        ):
            return lambda: self._formed(need.state)
        if isinstance(need, Search) and hasattr(retriever, "asearch"):
            return lambda: self._search(need.queries, widely=need.wide)
        return None

    async def _carry_out(self, need: Work) -> None:
        """Do a piece of work and hand in its completion, as cancelled if the task was."""
        started_s = self.clock()
        speculative.set(speculative.get() or may_be_discarded(need))  # in this task's own context
        work = self._awaitable(need)
        if work is None:
            try:
                await self._in_thread(self._job.carry_out, need, self.clock, self._hand_in)
            except Closed as error:
                self._hand_in(Aborted(error, need))
            return
        results: list[Any]
        try:
            result = await work()
            results = result if isinstance(need, Search) else [result]
            if isinstance(need, Start):
                self._job.begun(result)
        except asyncio.CancelledError as error:
            if need not in self._told_to_stop:
                self._hand_in(Aborted(error))
                return
            results = _stopped(need)
        except Exception as error:  # noqa: BLE001 the loop decides whether it counts
            results = [error]
        except BaseException as error:  # noqa: BLE001 raised where the request is waited for
            self._hand_in(Aborted(error))
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

    async def _search(
        self, queries: Sequence[Query], *, widely: bool
    ) -> list[SearchResult | Exception]:
        """Search a batch; if that fails, each query singly, so that errors are each one's own."""
        try:
            return list(await self._setup.asearch(queries, widely=widely))
        except Exception as error:  # noqa: BLE001 the loop decides whether it counts
            if len(queries) == 1 or isinstance(error, Overloaded):
                return [error] * len(queries)
        return [(await self._search([query], widely=widely))[0] for query in queries]

    def _hand_in(self, completion: Completion | Aborted) -> None:
        """Take a completion from any thread; after the loop has ended nobody waits for it."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._completed.put_nowait, completion)

    async def _in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        context = contextvars.copy_context()
        try:
            done = self._loop.run_in_executor(self._threads, context.run, function, *arguments)
        except RuntimeError as error:
            raise Closed from error
        return await done

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
        if isinstance(completion, Aborted):
            raise completion.error
        return completion

    async def stop(self) -> None:
        """Cancel all that is out; wait until the model is free and all tasks have ended."""
        for need, task in tuple(self._tasks.items()):
            if isinstance(need, Extend):
                need.progress.cancel()
            on_the_model = isinstance(need, Start | FormQuery | Extend)
            if not on_the_model or self._awaitable(need) is not None:
                self._told_to_stop.add(need)
                task.cancel()
        if self._tasks:
            await asyncio.wait(tuple(self._tasks.values()), timeout=GRACE_S)


def _stopped(need: Work) -> list[Any]:
    """Give the results of work that was cancelled."""
    count = len(need.queries) if isinstance(need, Search) else 1
    return [Cancelled("this work is no longer needed")] * count


class AsyncEngine:
    """Answers requests on the running event loop, without blocking it.

    Where the workload has `astart`, `aquery` or `aextend`, or the retriever
    `aencode` or `asearch`, those are awaited; everything else runs in threads. A
    task that is no longer needed is cancelled.
    """

    def __init__(
        self,
        workload: Workload[Any],
        retriever: Retriever,
        settings: Settings | None = None,
        *,
        threads: ThreadPoolExecutor | None = None,
    ) -> None:
        """Put a workload in front of a retriever.

        Args:
            workload: when to ask, what to ask, what the hits do.
            retriever: what is searched.
            settings: how to speculate.
            threads: where work is done, for engines that share them; the caller lets them go.

        Raises:
            ConfigError: The settings do not fit the retriever.
        """
        self._setup = Session(workload, retriever, settings)
        self._together: BatchSession = BatchSession(self._setup)
        self._owns_threads = threads is None
        self._threads = threads or ThreadPoolExecutor(THREADS, thread_name_prefix="ralmspec")

    async def run(self, request: Request | str) -> Answer:
        """Answer a request.

        Raises:
            DeadlineExceeded: The request's deadline passed.
            Exception: What the plain loop would have raised.
        """
        return await self._run(self._setup, as_request(request))

    async def _run(self, setup: Session, request: Request) -> Answer:
        stream = self._stream(setup, request, reports=False)
        async for _ in stream:
            pass
        return stream.answer

    @overload
    async def batch(
        self,
        requests: Sequence[Request | str],
        *,
        max_concurrency: int = ...,
        return_exceptions: Literal[False] = ...,
    ) -> list[Answer]: ...
    @overload
    async def batch(
        self,
        requests: Sequence[Request | str],
        *,
        max_concurrency: int = ...,
        return_exceptions: bool,
    ) -> list[Answer | Exception]: ...

    async def batch(
        self,
        requests: Sequence[Request | str],
        *,
        max_concurrency: int = DEFAULT_CONCURRENCY,
        return_exceptions: bool = False,
    ) -> Sequence[Answer | Exception]:
        """Answer many requests at once, their searches merged into common batches.

        Each answer is the one that `run` gives. All batches of an engine share one
        `Verifier` and one passage pool.

        Args:
            requests: the requests; a deadline counts from the moment that its request begins.
            max_concurrency: how many are answered at a time.
            return_exceptions: give back what a request raised in the place of its answer.

        Raises:
            ConfigError: `max_concurrency` is below 1.
            Exception: what the first request (in order) that fails has raised; those behind it
                are given up. Only without `return_exceptions`.
        """
        asked = [as_request(request) for request in requests]
        workers = check_concurrency(max_concurrency, len(asked))
        setup = self._together.setup
        return await aanswer_all(
            lambda request: self._run(setup, request),
            asked,
            workers,
            return_exceptions=return_exceptions,
        )

    def stream(self, request: Request | str) -> "AsyncAnswerStream":
        """Answer a request piece by piece; only text that stays is given out."""
        return AsyncAnswerStream(self._stream(self._setup, as_request(request), reports=True))

    def events(self, request: Request | str, *, reports: bool = True) -> AsyncEventStream:
        """Answer a request, and tell everything that happens on the way.

        Args:
            request: what is to be answered.
            reports: whether a segment is followed while it is written, so that its text
                settles bit by bit and not at once.
        """
        return self._stream(self._setup, as_request(request), reports=reports, watched=True)

    def _stream(
        self, setup: Session, request: Request, *, reports: bool, watched: bool = False
    ) -> AsyncEventStream:
        setup.check_process()
        completed: AsyncCompletionQueue = asyncio.Queue()
        job = RequestContext(setup, request, reports=reports, watched=watched)
        return AsyncEventStream(lambda finish: self._drive(job, completed, finish), completed)

    async def close(self) -> None:
        """Wait for searches in threads that nobody needs any more, and let the threads go."""
        await asyncio.to_thread(self._together.close)
        if self._owns_threads:
            await asyncio.to_thread(self._threads.shutdown, wait=True)

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
        self, job: RequestContext, completed: AsyncCompletionQueue, finish: Callable[[Answer], None]
    ) -> AsyncGenerator[Event, None]:
        """Run one request's loop in the caller's task, its work in others."""
        began_s = time.perf_counter()
        executor = AsyncExecutor(job, self._threads, completed, began_s)
        shown = 0
        with thread_switch_interval(job.setup.switch_interval_s):
            try:
                needs = next(job.flow)
                while job.finish is None:
                    for need in needs:
                        executor.see_to(need)
                    for event in job.events():
                        shown = len(event.text) if isinstance(event, Settled) else shown
                        yield event
                    if job.finish is None:
                        needs = job.flow.send(await executor.next_completion())
            finally:
                try:
                    await executor.stop()
                finally:
                    job.close()
        answer = job.answer(time.perf_counter() - began_s)
        for event in rest(shown, answer):
            yield event
        finish(answer)
