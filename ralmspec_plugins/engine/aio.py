"""The engine on asyncio: asynchronous calls run as tasks, others in threads."""

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
    Waited,
    Work,
)
from ralmspec_plugins.engine.base import DEFAULT_CONCURRENCY, GRACE_S, IDLE_S, BaseEngine, Executor
from ralmspec_plugins.engine.batch import aanswer_all
from ralmspec_plugins.engine.context import Raised, RequestContext, may_be_discarded
from ralmspec_plugins.engine.session import Session
from ralmspec_plugins.engine.streams import (
    AsyncAnswerStream,
    AsyncCompletionQueue,
    AsyncEventStream,
    Outcome,
)
from ralmspec_plugins.engine.switch_interval import thread_switch_interval
from ralmspec_plugins.errors import Cancelled, Closed, Overloaded
from ralmspec_plugins.protocols import speculative
from ralmspec_plugins.types import Answer, Query, Request, as_request


class AsyncExecutor(Executor):
    """Runs the work of one request in tasks, or in threads if it is not asynchronous."""

    def __init__(
        self, context: RequestContext, threads: ThreadPoolExecutor, completed: AsyncCompletionQueue
    ) -> None:
        """Create an executor with nothing in flight."""
        super().__init__(context, threads)
        self._session = context.session
        self._loop = asyncio.get_running_loop()
        self._completed = completed
        self._tasks: dict[Work, asyncio.Task[None]] = {}
        self._told_to_stop: set[Work] = set()

    def _start(self, need: Work, *, only: bool) -> None:
        task = self._loop.create_task(self._carry_out(need))
        self._tasks[need] = task
        task.add_done_callback(lambda task: self._ended(need, task))

    def _ended(self, need: Work, task: asyncio.Task[None]) -> None:
        """Remove a task; complete the work of one that was cancelled before it started."""
        del self._tasks[need]
        if task.cancelled() and need in self._told_to_stop:
            self._hand_in_all(need, _stopped(need), self.clock())
        elif task.cancelled():  # by other code: a thread may still be running it
            self._completed.put_nowait(Aborted(asyncio.CancelledError()))

    def _cancel(self, need: Work) -> None:
        """Cancel a task, unless it waits for a thread, which must finish first."""
        if need in self._tasks and self._awaitable(need) is not None:
            self._told_to_stop.add(need)
            self._tasks[need].cancel()

    def _awaitable(self, need: Work) -> Callable[[], Awaitable[Any]] | None:
        """Return the asynchronous function for this work; `None` if it needs a thread."""
        parts, retriever = self._session.parts, self._session.retriever
        if isinstance(need, Extend) and (write := parts.aextend):
            return lambda: write.call(need.state, need.hits, need.progress, need.carried)
        if isinstance(need, FormQuery) and parts.aquery:
            return lambda: parts.aform(need.state, need.progress)
        if isinstance(need, Start) and (start := getattr(parts.workload, "astart", None)):
            return lambda: start(need.request)
        if isinstance(need, Encode) and hasattr(retriever, "aencode"):
            return lambda: self._session.aencode(need.query.text)
        if isinstance(need, Search) and hasattr(retriever, "asearch"):
            return lambda: self._search(need.queries, widely=need.wide)
        return None

    async def _carry_out(self, need: Work) -> None:
        """Run a piece of work and report its completion, as cancelled if the task was."""
        started_s = self.clock()
        speculative.set(speculative.get() or may_be_discarded(need))  # in this task's own context
        work = self._awaitable(need)
        if work is None:
            try:
                await self._in_thread(self._context.carry_out, need, self.clock, self._hand_in)
            except Closed as error:
                self._hand_in(Aborted(error, need))
            return
        if isinstance(need, FormQuery | Extend) and self._context.reports:
            need.progress.connect(
                lambda state: self._hand_in(PartialOutput(need, state, self.clock()))
            )
        results: list[Any]
        try:
            turn = self._session.aturn(need)
            async with turn or contextlib.nullcontext():
                if turn is not None:
                    started_s = self.clock()
                with self._session.segment(need, self.clock):
                    result = await work()
            results = result if isinstance(need, Search) else [result]
            if isinstance(need, Start):
                self._context.begun(result)
        except asyncio.CancelledError as error:
            if need not in self._told_to_stop:
                self._hand_in(Aborted(error))
                return
            results = _stopped(need)
        except Exception as error:  # noqa: BLE001 the loop decides whether it counts
            results = [Raised(error)]
        except BaseException as error:  # noqa: BLE001 raised to the request's caller
            self._hand_in(Aborted(error))
            return
        self._hand_in_all(need, results, started_s)

    def _hand_in_all(self, need: Work, results: list[Any], started_s: float) -> None:
        for done in self._context.completions(need, results, started_s, self.clock()):
            self._completed.put_nowait(done)

    async def _search(
        self, queries: Sequence[Query], *, widely: bool
    ) -> list[SearchResult | Raised]:
        """Search a batch; if that fails, search each query separately, for separate errors."""
        try:
            return list(await self._session.asearch(queries, widely=widely))
        except Exception as error:  # noqa: BLE001 the loop decides whether it counts
            if len(queries) == 1 or isinstance(error, Overloaded):
                return [Raised(error)] * len(queries)
        return [(await self._search([query], widely=widely))[0] for query in queries]

    def _hand_in(self, completion: Completion | Aborted) -> None:
        """Queue a completion from any thread; after the end of the event loop it is ignored."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._completed.put_nowait, completion)

    async def _in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        context = contextvars.copy_context()
        try:
            done = self._loop.run_in_executor(self._threads, context.run, function, *arguments)
        except RuntimeError as error:
            raise Closed from error
        return await done

    async def next_completion(self) -> Completion | Waited:
        """Return the next completion, or that there was none for a while.

        Raises:
            DeadlineExceeded: The deadline passed.
            BaseException: A part raised no `Exception`, or the stream was closed.
        """
        completion = None
        self._time_left_s()  # raises at the deadline, also where completions never run out
        if not self._completed.empty():
            completion = self._completed.get_nowait()
        elif self._context.may_learn:
            completion = await self._within(min(IDLE_S, self._patience_s()))
            if completion is None:
                self._context.learn()
        if completion is None:
            completion = await self._within(self._patience_s())
        if completion is None:
            return Waited()
        if isinstance(completion, Aborted):
            raise completion.error
        return completion

    async def _within(self, patience_s: float) -> Completion | Aborted | None:
        try:
            async with asyncio.timeout(patience_s):
                return await self._completed.get()
        except TimeoutError:
            return None

    @property
    def busy(self) -> bool:
        """Whether any work is in flight, on an event loop that has not ended."""
        return bool(self._tasks) and not self._loop.is_closed()

    def last_task(self, work: Callable[[], Coroutine[Any, Any, None]]) -> bool:
        """Schedule a background task on the event loop, now or when it runs again.

        Returns:
            Whether it was scheduled: a closed loop never runs again.
        """
        try:
            self._loop.call_soon_threadsafe(lambda: self._loop.create_task(work()))
        except RuntimeError:
            return False
        return True

    def cancel_writing(self) -> None:
        """Cancel the generation in progress."""
        for need in tuple(self._tasks):
            if isinstance(need, FormQuery | Extend):
                need.progress.cancel()

    async def stop(self) -> None:
        """Cancel all work in flight; wait until the model is free and all tasks have ended."""
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

    The methods `astart`, `aquery` and `aextend` of a workload, and `aencode` and `asearch`
    of a retriever, are awaited if they exist; all else runs in threads. A
    task that is no longer needed is cancelled.
    """

    _pieces = AsyncAnswerStream
    _awaits = True

    async def run(self, request: Request | str) -> Answer:
        """Answer a request.

        Raises:
            DeadlineExceeded: The request's deadline passed.
            Exception: What the plain loop would raise; a `StopIteration` as a
                `RuntimeError` from it, since no coroutine can raise one.
        """
        outcome = await self._outcome(self._session, as_request(request))
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def _outcome(self, session: Session, request: Request) -> Outcome:
        return await self._stream(session, request, reports=False).outcome()

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
        """Answer many requests concurrently, as `Engine.batch` does.

        Raises:
            ConfigError: `max_concurrency` is below 1.
            Exception: the error of the first request (in order) that fails; later ones
                are cancelled. Only without `return_exceptions`.
        """
        session, asked, workers = self._batch(requests, max_concurrency)
        return await aanswer_all(
            lambda request: self._outcome(session, request),
            asked,
            workers,
            return_exceptions=return_exceptions,
        )

    async def close(self) -> None:
        """Wait for discarded searches in threads, and release the threads."""
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

    def _events(self, context: RequestContext) -> AsyncEventStream:
        completed: AsyncCompletionQueue = asyncio.Queue()
        return AsyncEventStream(_Drive(context, self._threads, completed), completed)


class _Drive:
    """Runs the loop of one request in the caller's task, and its work in others.

    It is not an asynchronous generator: an event loop closes all of these when it ends, in any
    order of nesting, and reports those that are closed twice.
    """

    def __init__(
        self, context: RequestContext, threads: ThreadPoolExecutor, completed: AsyncCompletionQueue
    ) -> None:
        self._context = context
        self._threads = threads
        self._completed = completed
        self._executor: AsyncExecutor | None = None
        self._switching = ExitStack()
        self._stopping: asyncio.Task[None] | None = None
        self._stopped = False

    async def advance(self) -> list[Event]:
        """Process one completion; return the resulting events.

        Raises:
            BaseException: The reason, if the request was cancelled.
        """
        context, executor = self._context, self._executor
        if executor is None:
            executor = self._executor = AsyncExecutor(context, self._threads, self._completed)
            self._switching.enter_context(thread_switch_interval(context.session.switch_interval_s))
            needs = next(context.flow)
        else:
            needs = context.flow.send(await executor.next_completion())
        executor.process(needs)
        return context.events()

    @property
    def finished(self) -> bool:
        """Whether the request has ended."""
        return self._context.finish is not None

    async def end(self) -> tuple[Outcome, list[Event]]:
        """Stop the work in flight; return the outcome of the request, and its last events."""
        await self.stop()
        self._context.learn()
        assert self._executor is not None
        return self._context.outcome(self._executor.clock()), self._context.rest()

    async def stop(self) -> None:
        """Stop all work; a second call waits for the first one. Without work it is immediate.

        At the end of an event loop, when all tasks have ended, it must not wait: the
        owner of this stream may be closed by the loop at the same time. After that it cannot.
        """
        if self._stopped:
            return
        if self._executor is None or not self._executor.busy:
            self._stopped = True
            if self._executor is not None:
                self._executor.cancel_writing()  # in threads, where the loop has ended
            self._switching.close()
            self._context.close()
            return
        if self._stopping is None:
            work = _stop(self._executor, self._context, self._switching)
            self._stopping = asyncio.ensure_future(work)
        await asyncio.shield(self._stopping)
        self._stopped = True

    def __del__(self) -> None:
        """Stop the work of an unreferenced stream, immediately or when its event loop runs."""
        executor, context, switching = self._executor, self._context, self._switching
        if self._stopping is not None or self._stopped or executor is None:
            return
        switching.close()
        executor.cancel_writing()
        if not executor.last_task(lambda: _stop(executor, context, switching)):
            context.close()


async def _stop(executor: AsyncExecutor, context: RequestContext, switching: ExitStack) -> None:
    try:
        switching.close()
        await executor.stop()
    finally:
        context.close()
