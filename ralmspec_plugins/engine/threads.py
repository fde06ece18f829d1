"""The engine on threads: the model writes in one, each search runs in another."""

import contextvars
import queue
import time
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
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
    Work,
)
from ralmspec_plugins.engine.base import DEFAULT_CONCURRENCY, GRACE_S, BaseEngine, Executor
from ralmspec_plugins.engine.batch import answer_all
from ralmspec_plugins.engine.session import RequestContext, as_request
from ralmspec_plugins.engine.streams import AnswerStream, CompletionQueue, EventStream, Outcome
from ralmspec_plugins.engine.switch_interval import thread_switch_interval
from ralmspec_plugins.errors import Cancelled, Closed
from ralmspec_plugins.types import Answer, Request


@dataclass(frozen=True, slots=True)
class _Out:
    """Work on the model, in a thread."""

    future: Future[None]
    began_s: float


@dataclass(frozen=True, slots=True)
class _Left:
    """Work whose result is no longer needed, and what it was completed with."""

    future: Future[None]
    done: Completed


class ThreadExecutor(Executor):
    """Hands one request's work to threads.

    A segment that is no longer needed is asked to stop, and waited for; or, where the
    workload says that its segments may be written side by side, left to itself.

    Work that nothing is done beside is done in the thread that asks for it: a plain request's
    objects may be bound to that thread (a connection to SQLite is), and a short search or segment
    takes up to a tenth longer elsewhere. Unless this thread has to watch meanwhile: a clock,
    unfinished text, or whether the request was given up.
    """

    def __init__(
        self, job: RequestContext, threads: ThreadPoolExecutor, completed: CompletionQueue
    ) -> None:
        """Begin with nothing out."""
        super().__init__(job, threads)
        self._completed = completed
        self._side_by_side: bool = getattr(job.setup.workload, "side_by_side", False)
        self._out = 0  # completions still to come
        self._on_the_model: dict[Work, _Out] = {}
        self._left: dict[Work, _Left] = {}

    def _note(self, notice: Notice) -> None:
        if isinstance(notice, Release):  # what comes next runs alone
            left = [left.future for left in self._left.values()]
            wait(left, timeout=self._time_left_s())
        super()._note(notice)

    def _start(self, need: Work, *, only: bool) -> None:
        alone = only and not self._out and not self._left
        self._out += len(need.queries) if isinstance(need, Search) else 1
        context = contextvars.copy_context()
        carry_out = partial(
            self._job.carry_out, need, self.clock, self._completed.put, time.process_time
        )
        if alone and self._at_once(need):
            context.run(carry_out)
            return
        try:
            future = self._threads.submit(context.run, carry_out)
        except RuntimeError as error:
            raise Closed from error
        if isinstance(need, Start | FormQuery | Extend):
            self._on_the_model[need] = _Out(future, self.clock())

    def _at_once(self, need: Work) -> bool:
        """Return whether work that nothing else is done beside is done here, not in a thread."""
        job = self._job
        if (job.setup.speculate and job.stoppable) or job.request.deadline_s is not None:
            return False
        return not (isinstance(need, FormQuery | Extend) and job.reports)

    def _cancel(self, need: Work) -> None:
        """Leave a segment to itself; else it notices by its progress, and nothing else can be."""
        writes = isinstance(need, FormQuery | Extend)
        if self._side_by_side and writes and need in self._on_the_model:
            out = self._on_the_model.pop(need)
            error = Cancelled("this work is no longer needed")
            done = Completed(need, None, error, started_s=out.began_s, ended_s=self.clock())
            self._left[need] = _Left(out.future, done)
            self._completed.put(done)

    def next_completion(self) -> Completion:
        """Wait for something to finish.

        Raises:
            DeadlineExceeded: The deadline passed.
            BaseException: A part raised what is no `Exception`, or the stream was closed.
        """
        while True:
            try:
                completion = self._completed.get(timeout=self._time_left_s())
            except queue.Empty:
                self._job.request.check_deadline(float("inf"))
                raise
            if not self._late(completion):
                break
        self._take(completion)
        if isinstance(completion, Aborted):
            raise completion.error
        return completion

    def _late(self, completion: Completion | Aborted) -> bool:
        """Return whether this comes from work left to itself, which is completed already."""
        need = completion.need
        left = None if need is None else self._left.get(need)
        if need is None or left is None or left.done is completion:
            return False
        if not isinstance(completion, PartialOutput):  # it has ended by now
            del self._left[need]
        return True

    def _take(self, completion: Completion | Aborted) -> None:
        if not isinstance(completion, PartialOutput) and completion.need is not None:
            self._on_the_model.pop(completion.need, None)
            self._out -= 1

    def stop(self) -> None:
        """Stop what is being written, and wait until the model is free."""
        for need in self._on_the_model:
            if isinstance(need, FormQuery | Extend):
                need.progress.cancel()
        if self._side_by_side:
            return
        until_s = self.clock() + GRACE_S
        while self._on_the_model and (left_s := until_s - self.clock()) > 0:
            try:
                self._take(self._completed.get(timeout=left_s))
            except queue.Empty:
                return


class Engine(BaseEngine[EventStream, AnswerStream]):
    """Answers requests with real overlap of writing and searching. Thread-safe.

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
            Exception: What the plain loop would have raised.
        """
        return self._stream(self._setup, as_request(request), reports=False, stoppable=False).answer

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
        """Answer many requests at once, their searches merged into common batches.

        Each answer is the one that `run` gives. All batches of an engine share one
        `Verifier` and one passage cache.

        Args:
            requests: the requests; a deadline counts from the moment that its request begins.
            max_concurrency: how many are answered at a time.
            return_exceptions: give back what a request raised in the place of its answer.

        Raises:
            ConfigError: `max_concurrency` is below 1.
            Exception: what the first request (in order) that fails has raised; those behind it
                are given up. Only without `return_exceptions`.
        """
        setup, asked, workers = self._batch(requests, max_concurrency)
        return answer_all(
            lambda request: self._stream(setup, request, reports=False),
            asked,
            workers,
            return_exceptions=return_exceptions,
        )

    def close(self) -> None:
        """Wait for searches whose results are no longer needed, and let the threads go."""
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

    def _events(self, job: RequestContext) -> EventStream:
        completed: CompletionQueue = queue.SimpleQueue()
        return EventStream(self._drive(job, completed), completed)

    def _drive(
        self, job: RequestContext, completed: CompletionQueue
    ) -> Generator[Event, None, Outcome]:
        """Run one request's loop in the caller's thread, its work in others.

        An error is returned: a generator cannot raise a part's `StopIteration`.
        """
        executor = ThreadExecutor(job, self._threads, completed)
        try:
            with thread_switch_interval(job.setup.switch_interval_s):
                needs = next(job.flow)
                while job.finish is None:
                    executor.see_to(needs)
                    yield from job.events()
                    if job.finish is None:
                        needs = job.flow.send(executor.next_completion())
        except Exception as error:  # noqa: BLE001 raised by the stream
            return error
        finally:
            executor.stop()
            job.close()
        outcome = job.outcome(executor.clock())
        yield from job.rest()
        return outcome
