"""The engine on threads: generation in one thread, each search in another."""

import contextlib
import contextvars
import queue
import threading
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self, overload

from ralmspec_plugins.effects import (
    Aborted,
    Completed,
    Completion,
    Event,
    Extend,
    FormQuery,
    Notice,
    PartialOutput,
    Release,
    Search,
    Start,
    Waited,
    Work,
)
from ralmspec_plugins.engine.base import DEFAULT_CONCURRENCY, GRACE_S, IDLE_S, BaseEngine, Executor
from ralmspec_plugins.engine.batch import answer_all
from ralmspec_plugins.engine.context import RequestContext
from ralmspec_plugins.engine.streams import AnswerStream, CompletionQueue, EventStream, Outcome
from ralmspec_plugins.engine.switch_interval import thread_switch_interval
from ralmspec_plugins.errors import Cancelled, Closed
from ralmspec_plugins.types import Answer, Request, as_request


@dataclass(frozen=True, slots=True)
class _Generation:
    """Generation in a thread."""

    future: Future[None]
    began_s: float


@dataclass(frozen=True, slots=True)
class _Abandoned:
    """Work whose result is no longer needed, and its reported completion."""

    future: Future[None]
    done: Completed


class ThreadExecutor(Executor):
    """Runs the work of one request in threads.

    A segment that is no longer needed is cancelled and waited for; or it is left
    running, if the workload has `side_by_side`.

    Work with nothing in parallel runs in the calling thread: objects of a plain request
    may be bound to that thread (such as a connection to SQLite), and a short search or segment
    takes up to a tenth longer in another one. The exception is a calling thread that must
    watch a deadline, unfinished text, or, where guesses pay off, the cancellation of the request.
    """

    def __init__(
        self, context: RequestContext, threads: ThreadPoolExecutor, completed: CompletionQueue
    ) -> None:
        """Create an executor with nothing in flight."""
        super().__init__(context, threads)
        self._completed = completed
        self._side_by_side: bool = getattr(context.session.workload, "side_by_side", False)
        self._outstanding = 0  # outstanding completions
        self._generating: dict[Work, _Generation] = {}
        self._carried_out_in: dict[Work, int] = {}  # the thread
        self._abandoned: dict[Work, _Abandoned] = {}

    def _note(self, notice: Notice) -> None:
        if isinstance(notice, Release):  # the next work runs in isolation
            left = [left.future for left in self._abandoned.values()]
            wait(left, timeout=self._time_left_s())
        super()._note(notice)

    def _start(self, need: Work, *, only: bool) -> None:
        exclusive = only and not self._outstanding and not self._abandoned
        self._outstanding += len(need.queries) if isinstance(need, Search) else 1
        context = contextvars.copy_context()
        if exclusive and self._runs_inline(need):
            with self._context.in_caller(need):
                context.run(self._carry_out, need)
            return
        try:
            future = self._threads.submit(context.run, self._carry_out, need)
        except RuntimeError as error:
            raise Closed from error
        if isinstance(need, Start | FormQuery | Extend):
            self._generating[need] = _Generation(future, self.clock())

    def _carry_out(self, need: Work) -> None:
        self._carried_out_in[need] = threading.get_ident()
        try:
            self._context.carry_out(need, self.clock, self._completed.put)
        finally:
            del self._carried_out_in[need]

    def _runs_inline(self, need: Work) -> bool:
        """Return whether work with nothing in parallel runs in the calling thread."""
        context = self._context
        if context.request.deadline_s is not None or (
            not context.plain and context.stoppable and not self._is_soon_over(need)
        ):
            return False
        return not (isinstance(need, FormQuery | Extend) and context.reports)

    def _is_soon_over(self, need: Work) -> bool:
        """Return whether a request that is closed does not wait long for work in its own thread.

        Generation is cancelled; a store in this process is quick where guesses do not pay off.
        """
        context = self._context
        if context.worth_guessing:
            return False
        if isinstance(need, Search):
            return context.session.costs.store.computes_here
        return isinstance(need, FormQuery | Extend)

    def _cancel(self, need: Work) -> None:
        """Leave a segment running if possible; otherwise its `progress` stops it."""
        writes = isinstance(need, FormQuery | Extend)
        if self._side_by_side and writes and need in self._generating:
            out = self._generating.pop(need)
            error = Cancelled("this work is no longer needed")
            done = Completed(need, None, error, started_s=out.began_s, ended_s=self.clock())
            self._abandoned[need] = _Abandoned(out.future, done)
            self._completed.put(done)

    def next_completion(self) -> Completion | Waited:
        """Return the next completion, or that there was none for a while.

        Raises:
            DeadlineExceeded: The deadline passed.
            BaseException: A part raised no `Exception`, or the stream was closed.
        """
        while True:
            try:
                completion = self._next()
            except queue.Empty:
                return Waited()
            if not self._is_late(completion):
                break
        self._take(completion)
        if isinstance(completion, Aborted):
            raise completion.error
        return completion

    def _next(self) -> Completion | Aborted:
        """Return the next completion; if none comes at once, speculators learn meanwhile."""
        if self._context.may_learn:
            with contextlib.suppress(queue.Empty):
                return self._completed.get(timeout=min(IDLE_S, self._patience_s()))
            self._context.learn()
        return self._completed.get(timeout=self._patience_s())

    def _is_late(self, completion: Completion | Aborted) -> bool:
        """Return whether this comes from work that was left running and already completed."""
        need = completion.need
        left = None if need is None else self._abandoned.get(need)
        if need is None or left is None or left.done is completion:
            return False
        if not isinstance(completion, PartialOutput):  # it has ended
            del self._abandoned[need]
        return True

    def _take(self, completion: Completion | Aborted) -> None:
        if not isinstance(completion, PartialOutput) and completion.need is not None:
            self._generating.pop(completion.need, None)
            self._outstanding -= 1

    def stop(self) -> None:
        """Stop generation, and wait until the model is free.

        Not for generation in this thread, which a garbage collection may have interrupted here.
        """
        for need in self._generating:
            if isinstance(need, FormQuery | Extend):
                need.progress.cancel()
        if self._side_by_side:
            return
        until_s, here = self.clock() + GRACE_S, threading.get_ident()
        while any(self._carried_out_in.get(need) != here for need in self._generating):
            if (left_s := until_s - self.clock()) <= 0:
                return
            try:
                self._take(self._completed.get(timeout=left_s))
            except queue.Empty:
                return


class Engine(BaseEngine[EventStream, AnswerStream]):
    """Answers requests with generation and search in parallel. Thread-safe.

    >>> from ralmspec_plugins.testing import EchoWorkload, WordRetriever
    >>> with Engine(EchoWorkload(), WordRetriever(["red fox", "blue whale"])) as engine:
    ...     engine.run("whale").text
    'blue whale'
    """

    _pieces = AnswerStream

    def run(self, request: Request | str) -> Answer:
        """Answer a request.

        Raises:
            DeadlineExceeded: The request's deadline passed.
            Exception: What the plain loop would raise.
        """
        return self._stream(
            self._session, as_request(request), reports=False, stoppable=False
        ).answer

    @overload
    def batch(
        self,
        requests: Sequence[Request | str],
        *,
        max_concurrency: int = ...,
        return_exceptions: Literal[False] = ...,
    ) -> list[Answer]: ...
    @overload
    def batch(
        self,
        requests: Sequence[Request | str],
        *,
        max_concurrency: int = ...,
        return_exceptions: bool,
    ) -> list[Answer | Exception]: ...

    def batch(
        self,
        requests: Sequence[Request | str],
        *,
        max_concurrency: int = DEFAULT_CONCURRENCY,
        return_exceptions: bool = False,
    ) -> Sequence[Answer | Exception]:
        """Answer many requests concurrently, with their searches merged into batches.

        Each answer equals that of `run`. All batches of an engine share one
        `Verifier` and one passage cache.

        Args:
            requests: the requests; a deadline counts from the start of its request.
            max_concurrency: the maximum number of requests in parallel.
            return_exceptions: return the error of a request in place of its answer.

        Raises:
            ConfigError: `max_concurrency` is below 1.
            Exception: the error of the first request (in order) that fails; later ones
                are cancelled. Only without `return_exceptions`.
        """
        session, asked, workers = self._batch(requests, max_concurrency)
        return answer_all(
            lambda request: self._stream(session, request, reports=False),
            asked,
            workers,
            return_exceptions=return_exceptions,
        )

    def close(self) -> None:
        """Wait for discarded searches, and release the threads."""
        self._together.close()
        if self._owns_threads:
            self._threads.shutdown(wait=True)

    def __enter__(self) -> Self:
        """Use as a context manager."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()

    def _events(self, context: RequestContext) -> EventStream:
        completed: CompletionQueue = queue.SimpleQueue()
        return EventStream(self._drive(context, completed), completed, context.stop_caller)

    def _drive(
        self, context: RequestContext, completed: CompletionQueue
    ) -> Generator[Event, None, Outcome]:
        """Run the loop of one request in the caller's thread, and its work in others.

        An error is returned: a generator cannot raise a part's `StopIteration`.
        """
        executor = ThreadExecutor(context, self._threads, completed)
        try:
            error = yield from _until_finished(context, executor)
        except BaseException:  # also where the stream is closed
            _end(context, executor)
            raise
        try:
            _end(context, executor)
        except Exception as raised:  # noqa: BLE001 raised by the stream
            error = raised
        if error is not None:
            return error
        outcome = context.outcome(executor.clock())
        yield from context.rest()
        return outcome


def _until_finished(
    context: RequestContext, executor: ThreadExecutor
) -> Generator[Event, None, Exception | None]:
    """Run the loop of a request to its end; return the error that stopped it."""
    try:
        with thread_switch_interval(context.session.switch_interval_s):
            needs = next(context.flow)
            while context.finish is None:
                executor.process(needs)
                yield from context.events()
                if context.finish is None:
                    needs = context.flow.send(executor.next_completion())
            context.learn()
    except Exception as error:  # noqa: BLE001 raised by the stream
        return error
    return None


def _end(context: RequestContext, executor: ThreadExecutor) -> None:
    executor.stop()
    context.close()
