"""The engine on asyncio: searches and model calls as tasks, or in threads where they are sync."""

import asyncio
import contextlib
import contextvars
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Literal, Self, overload

from ralmspec_plugins.effects import (
    Aborted,
    Completion,
    Encode,
    Event,
    Extend,
    FormQuery,
    PartialOutput,
    Search,
    SearchResult,
    Start,
    Work,
)
from ralmspec_plugins.engine.base import DEFAULT_CONCURRENCY, GRACE_S, BaseEngine, Executor
from ralmspec_plugins.engine.batch import aanswer_all
from ralmspec_plugins.engine.session import (
    Raised,
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
    Outcome,
)
from ralmspec_plugins.engine.switch_interval import thread_switch_interval
from ralmspec_plugins.errors import Cancelled, Closed, Overloaded
from ralmspec_plugins.protocols import speculative
from ralmspec_plugins.types import Answer, Query, Request


class AsyncExecutor(Executor):
    """Has one request's work done in tasks, and in threads where it is not asynchronous."""

    def __init__(
        self, job: RequestContext, threads: ThreadPoolExecutor, completed: AsyncCompletionQueue
    ) -> None:
        """Begin with nothing out."""
        super().__init__(job, threads)
        self._setup = job.setup
        self._loop = asyncio.get_running_loop()
        self._completed = completed
        self._tasks: dict[Work, asyncio.Task[None]] = {}
        self._told_to_stop: set[Work] = set()

    def _start(self, need: Work, *, only: bool) -> None:
        task = self._loop.create_task(self._carry_out(need))
        self._tasks[need] = task
        task.add_done_callback(lambda task: self._ended(need, task))

    def _ended(self, need: Work, task: asyncio.Task[None]) -> None:
        """Forget a task; complete the work of one that was cancelled before it began."""
        del self._tasks[need]
        if task.cancelled() and need in self._told_to_stop:
            self._hand_in_all(need, _stopped(need), self.clock())
        elif task.cancelled():  # by other code: a thread may still be at it
            self._completed.put_nowait(Aborted(asyncio.CancelledError()))

    def _cancel(self, need: Work) -> None:
        """Cancel a task, unless a thread works for it: that has to be waited for."""
        if need in self._tasks and self._awaitable(need) is not None:
            self._told_to_stop.add(need)
            self._tasks[need].cancel()

    def _awaitable(self, need: Work) -> Callable[[], Awaitable[Any]] | None:
        """Return what can be awaited for this work; `None` if it takes a thread."""
        parts, retriever = self._setup.parts, self._setup.retriever
        if isinstance(need, Extend) and (write := parts.aextend):
            return lambda: write.call(need.state, need.hits, need.progress, need.carried)
        if isinstance(need, FormQuery) and parts.aquery:
            return lambda: parts.aform(need.state, need.progress)
        if isinstance(need, Start) and (start := getattr(parts.workload, "astart", None)):
            return lambda: start(need.request)
        if isinstance(need, Encode) and hasattr(retriever, "aencode"):
            return lambda: parts.aencode(need.query.text)
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
        if isinstance(need, FormQuery | Extend) and self._job.reports:
            need.progress.connect(
                lambda state: self._hand_in(PartialOutput(need, state, self.clock()))
            )
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
            results = [Raised(error)]
        except BaseException as error:  # noqa: BLE001 raised where the request is waited for
            self._hand_in(Aborted(error))
            return
        self._hand_in_all(need, results, started_s)

    def _hand_in_all(self, need: Work, results: list[Any], started_s: float) -> None:
        for done in completions(need, results, started_s, self.clock()):
            self._completed.put_nowait(done)

    async def _search(
        self, queries: Sequence[Query], *, widely: bool
    ) -> list[SearchResult | Raised]:
        """Search a batch; if that fails, each query singly, so that errors are each one's own."""
        try:
            return list(await self._setup.asearch(queries, widely=widely))
        except Exception as error:  # noqa: BLE001 the loop decides whether it counts
            if len(queries) == 1 or isinstance(error, Overloaded):
                return [Raised(error)] * len(queries)
        return [(await self._search([query], widely=widely))[0] for query in queries]

    def _hand_in(self, completion: Completion | Aborted) -> None:
        """Take a completion from any thread; after the loop has ended none is waited for."""
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
        try:
            async with asyncio.timeout(self._time_left_s()):
                completion = await self._completed.get()
        except TimeoutError:
            self._job.request.check_deadline(float("inf"))
            raise
        if isinstance(completion, Aborted):
            raise completion.error
        return completion

    @property
    def busy(self) -> bool:
        """Whether any work is out."""
        return bool(self._tasks)

    def last_task(self, work: Callable[[], Coroutine[Any, Any, None]]) -> bool:
        """Have the loop run something that nobody waits for, now or when it runs again.

        Returns:
            Whether it may: a closed loop never runs again.
        """
        try:
            self._loop.call_soon_threadsafe(lambda: self._loop.create_task(work()))
        except RuntimeError:
            return False
        return True

    def cancel_writing(self) -> None:
        """Tell what is being written that nobody needs it."""
        for need in tuple(self._tasks):
            if isinstance(need, FormQuery | Extend):
                need.progress.cancel()

    async def stop(self) -> None:
        """Cancel all that is out; wait until the model is free and all tasks have ended."""
        self.cancel_writing()
        for need, task in tuple(self._tasks.items()):
            on_the_model = isinstance(need, Start | FormQuery | Extend)
            if not on_the_model or self._awaitable(need) is not None:
                self._told_to_stop.add(need)
                task.cancel()
        if self._tasks:
            await asyncio.wait(tuple(self._tasks.values()), timeout=GRACE_S)


def _stopped(need: Work) -> list[Any]:
    """Return the results of work that was cancelled."""
    count = len(need.queries) if isinstance(need, Search) else 1
    return [Raised(Cancelled("this work is no longer needed"))] * count


class AsyncEngine(BaseEngine[AsyncEventStream, AsyncAnswerStream]):
    """Answers requests on the running event loop, without blocking it.

    Where the workload has `astart`, `aquery` or `aextend`, or the retriever
    `aencode` or `asearch`, those are awaited; everything else runs in threads. A
    task that is no longer needed is cancelled.
    """

    _pieces = AsyncAnswerStream

    async def run(self, request: Request | str) -> Answer:
        """Answer a request.

        Raises:
            DeadlineExceeded: The request's deadline passed.
            Exception: What the plain loop would have raised; a `StopIteration` as a
                `RuntimeError` from it, since no coroutine can raise one.
        """
        outcome = await self._outcome(self._setup, as_request(request))
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def _outcome(self, setup: Session, request: Request) -> Outcome:
        return await self._stream(setup, request, reports=False).outcome()

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
        """Answer many requests at once, as `Engine.batch` does.

        Raises:
            ConfigError: `max_concurrency` is below 1.
            Exception: what the first request (in order) that fails has raised; those behind it
                are given up. Only without `return_exceptions`.
        """
        setup, asked, workers = self._batch(requests, max_concurrency)
        return await aanswer_all(
            lambda request: self._outcome(setup, request),
            asked,
            workers,
            return_exceptions=return_exceptions,
        )

    async def close(self) -> None:
        """Wait for searches in threads that are no longer needed, and let the threads go."""
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

    def _events(self, job: RequestContext) -> AsyncEventStream:
        completed: AsyncCompletionQueue = asyncio.Queue()
        return AsyncEventStream(_Drive(job, self._threads, completed), completed)


class _Drive:
    """Runs one request's loop in the caller's task, its work in others.

    It is no asynchronous generator: an event loop closes all of these at once when it ends,
    whichever stands inside of which, and reports what is closed twice.
    """

    def __init__(
        self, job: RequestContext, threads: ThreadPoolExecutor, completed: AsyncCompletionQueue
    ) -> None:
        self._job = job
        self._threads = threads
        self._completed = completed
        self._executor: AsyncExecutor | None = None
        self._switching = ExitStack()
        self._stopping: asyncio.Task[None] | None = None
        self._stopped = False

    async def advance(self) -> list[Event]:
        """Take one completion in; return what has happened then.

        Raises:
            BaseException: What the request came to, if it was given up.
        """
        job, executor = self._job, self._executor
        if executor is None:
            executor = self._executor = AsyncExecutor(job, self._threads, self._completed)
            self._switching.enter_context(thread_switch_interval(job.setup.switch_interval_s))
            needs = next(job.flow)
        else:
            needs = job.flow.send(await executor.next_completion())
        executor.see_to(needs)
        return job.events()

    @property
    def finished(self) -> bool:
        """Whether the request has come to its end."""
        return self._job.finish is not None

    async def end(self) -> tuple[Outcome, list[Event]]:
        """Stop what is still out; return what the request came to, and its last events."""
        await self.stop()
        assert self._executor is not None
        return self._job.outcome(self._executor.clock()), self._job.rest()

    async def stop(self) -> None:
        """Stop all work; a second call waits for the first one. With no work out it is immediate.

        At the end of an event loop, when all tasks have ended, nothing must be waited for: what
        holds this stream may be closed by the loop at the same time.
        """
        if self._stopped:
            return
        if self._executor is None or not self._executor.busy:
            self._stopped = True
            self._switching.close()
            self._job.close()
            return
        if self._stopping is None:
            work = _stop(self._executor, self._job, self._switching)
            self._stopping = asyncio.ensure_future(work)
        await asyncio.shield(self._stopping)
        self._stopped = True

    def __del__(self) -> None:
        """Stop the work of a stream that nobody holds any more, at once or when its loop runs."""
        executor, job, switching = self._executor, self._job, self._switching
        if self._stopping is not None or self._stopped or executor is None:
            return
        switching.close()
        executor.cancel_writing()
        if not executor.last_task(lambda: _stop(executor, job, switching)):
            job.close()


async def _stop(executor: AsyncExecutor, job: RequestContext, switching: ExitStack) -> None:
    try:
        switching.close()
        await executor.stop()
    finally:
        job.close()
