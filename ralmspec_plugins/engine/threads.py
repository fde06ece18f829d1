"""The engine on threads: the model writes in one, each search runs in another."""

import contextvars
import queue
import sys
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self, overload

from ralmspec_plugins.config import Settings
from ralmspec_plugins.effects import (
    Aborted,
    Cancel,
    Completed,
    Completion,
    Event,
    Extend,
    FormQuery,
    Guess,
    Need,
    PartialOutput,
    Release,
    Search,
    Settled,
    Start,
    Work,
)
from ralmspec_plugins.engine.batch import (
    DEFAULT_CONCURRENCY,
    BatchSession,
    answer_all,
    check_concurrency,
)
from ralmspec_plugins.engine.session import RequestContext, Session, as_request
from ralmspec_plugins.engine.streams import AnswerStream, CompletionQueue, EventStream, rest
from ralmspec_plugins.errors import Cancelled, Closed
from ralmspec_plugins.protocols import Retriever, Workload
from ralmspec_plugins.types import Answer, Request

# Has one request's work done in threads, and keeps track of what is out.


GRACE_S = 5.0  # how long an unwanted segment may take to notice, when a request is given up


@dataclass(frozen=True, slots=True)
class _Out:
    """Work on the model, in a thread."""

    future: Future[None]
    began_s: float


@dataclass(frozen=True, slots=True)
class _Left:
    """Work that nobody waits for, and what it was completed with."""

    future: Future[None]
    done: Completed


class ThreadExecutor:
    """Hands one request's work to threads.

    A segment that is no longer needed is asked to stop, and waited for; or, where the
    workload says that its segments may be written side by side, left to itself.

    Work that nothing is done beside is done in the thread that asks for it: a plain request's
    objects may be bound to that thread (a connection to SQLite is), and a short search or segment
    takes up to a tenth longer elsewhere. Unless somebody has to look up meanwhile: at a clock, at
    unfinished text, or whether the request was given up.
    """

    def __init__(
        self,
        job: RequestContext,
        threads: ThreadPoolExecutor,
        completed: CompletionQueue,
        began_s: float,
    ) -> None:
        """Begin with nothing out."""
        self._job = job
        self._threads = threads
        self._completed = completed
        self._began_s = began_s
        self._side_by_side: bool = getattr(job.setup.workload, "side_by_side", False)
        self._out = 0  # completions still to come
        self._on_the_model: dict[Work, _Out] = {}
        self._left: dict[Work, _Left] = {}

    def clock(self) -> float:
        """Give the seconds since the request began."""
        return time.perf_counter() - self._began_s

    def see_to(self, needs: Sequence[Need]) -> None:
        """Start work, and carry out notices.

        What writes comes last: it keeps Python's lock for milliseconds, in which a search
        would not even begin.
        """
        work = [
            need for need in needs if isinstance(need, Start | FormQuery | Guess | Search | Extend)
        ]
        for need in sorted(needs, key=_writes):
            self._see_to(need, only=len(work) == 1)

    def _see_to(self, need: Need, *, only: bool) -> None:
        if isinstance(need, Start | FormQuery | Guess | Search | Extend):
            self._start(need, alone=only and not self._out and not self._left)
        elif isinstance(need, Cancel):
            self._cancel(need.need)
        else:
            if isinstance(need, Release):  # what comes next runs alone
                left = [left.future for left in self._left.values()]
                wait(left, timeout=self._time_left_s())
            self._job.note(need)

    def _start(self, need: Work, *, alone: bool) -> None:
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
        """Say whether work that nothing else is done beside is done here, and not in a thread."""
        job = self._job
        if (job.setup.speculate and job.stoppable) or job.request.deadline_s is not None:
            return False
        return not (isinstance(need, Extend) and job.reports)

    def _cancel(self, need: Work) -> None:
        """Leave a segment to itself; else it notices by its progress, and nothing else can be."""
        if self._side_by_side and isinstance(need, Extend) and need in self._on_the_model:
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
        request = self._job.request
        while True:
            request.check_deadline(self.clock())
            try:
                completion = self._completed.get(timeout=self._time_left_s())
            except queue.Empty:
                request.check_deadline(float("inf"))
                raise
            if not self._late(completion):
                break
        self._note(completion)
        if isinstance(completion, Aborted):
            raise completion.error
        return completion

    def _time_left_s(self) -> float | None:
        deadline_s = self._job.request.deadline_s
        return None if deadline_s is None else max(0.0, deadline_s - self.clock())

    def _late(self, completion: Completion | Aborted) -> bool:
        """Say whether this comes from work that was left to itself, and is completed already."""
        left = None if completion.need is None else self._left.get(completion.need)
        return left is not None and left.done is not completion

    def _note(self, completion: Completion | Aborted) -> None:
        if not isinstance(completion, PartialOutput) and completion.need is not None:
            self._on_the_model.pop(completion.need, None)
            self._out -= 1

    def stop(self) -> None:
        """Stop what is being written, and wait until the model is free."""
        for need in self._on_the_model:
            if isinstance(need, Extend):
                need.progress.cancel()
        if self._side_by_side:
            return
        until_s = self.clock() + GRACE_S
        while self._on_the_model and (left_s := until_s - self.clock()) > 0:
            try:
                self._note(self._completed.get(timeout=left_s))
            except queue.Empty:
                return


def _writes(need: Need) -> bool:
    return isinstance(need, FormQuery | Extend)


# Lets Python's threads take turns more often while requests run ahead, where that is asked for
# (`Settings.switch_interval_s`; docs/decisions/0009).


_lock = threading.Lock()
_wanted: list[float] = []  # by the requests that are running
_before_s = 0.0  # the interpreter's own interval, to go back to


@contextmanager
def thread_switch_interval(interval_s: float | None) -> Iterator[None]:
    """Have the interpreter switch threads at least this often; `None` leaves it as it is.

    A thread that comes back from waiting (for a store's answer, a line, a lock) gets Python's
    lock from one that computes only after the switch interval, 5 ms unless it is set; and the
    answer of a store takes several such waits to arrive. The interval belongs to the whole
    process: it is never made longer, and with the last request it is put back, unless somebody
    else has set it meanwhile.

    >>> before = sys.getswitchinterval()
    >>> with thread_switch_interval(0.001):
    ...     round(sys.getswitchinterval(), 6)
    0.001
    >>> sys.getswitchinterval() == before
    True
    """
    if interval_s is None:
        yield
        return
    _begin(interval_s)
    try:
        yield
    finally:
        _end(interval_s)


def _begin(interval_s: float) -> None:
    global _before_s
    with _lock:
        if not _wanted:
            _before_s = sys.getswitchinterval()
        _wanted.append(interval_s)
        _set()


def _end(interval_s: float) -> None:
    with _lock:
        ours = _is(min(_before_s, *_wanted))
        _wanted.remove(interval_s)
        if ours:
            _set()


def _set() -> None:
    sys.setswitchinterval(min([_before_s, *_wanted]))


def _is(interval_s: float) -> bool:
    """Say whether it is what is set now; it is kept in whole microseconds."""
    return abs(sys.getswitchinterval() - interval_s) < 2e-6


THREADS = 256  # idle ones are reused; more are only started while all are busy


class Engine:
    """Answers requests with real overlap of writing and searching. Thread-safe.

    >>> from ralmspec_plugins.testing import EchoWorkload, WordRetriever
    >>> with Engine(EchoWorkload(), WordRetriever(["red fox", "blue whale"])) as engine:
    ...     engine.run("whale").text
    'blue whale'
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
        return answer_all(
            lambda request: self._stream(setup, request, reports=False),
            asked,
            workers,
            return_exceptions=return_exceptions,
        )

    def stream(self, request: Request | str) -> AnswerStream:
        """Answer a request piece by piece; only text that stays is given out."""
        return AnswerStream(self._stream(self._setup, as_request(request), reports=True))

    def events(self, request: Request | str, *, reports: bool = True) -> EventStream:
        """Answer a request, and tell everything that happens on the way.

        Args:
            request: what is to be answered.
            reports: whether a segment is followed while it is written, so that its text
                settles bit by bit and not at once.
        """
        return self._stream(self._setup, as_request(request), reports=reports, watched=True)

    def _stream(
        self,
        setup: Session,
        request: Request,
        *,
        reports: bool,
        watched: bool = False,
        stoppable: bool = True,
    ) -> EventStream:
        setup.check_process()
        completed: CompletionQueue = queue.SimpleQueue()
        job = RequestContext(setup, request, reports=reports, watched=watched, stoppable=stoppable)
        return EventStream(self._drive(job, completed), completed)

    def close(self) -> None:
        """Wait for searches that nobody needs any more, and let the threads go."""
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

    def _drive(
        self, job: RequestContext, completed: CompletionQueue
    ) -> Generator[Event, None, Answer]:
        """Run one request's loop in the caller's thread, its work in others."""
        began_s = time.perf_counter()
        executor = ThreadExecutor(job, self._threads, completed, began_s)
        shown = 0
        with thread_switch_interval(job.setup.switch_interval_s):
            try:
                needs = next(job.flow)
                while job.finish is None:
                    executor.see_to(needs)
                    for event in job.events():
                        shown = len(event.text) if isinstance(event, Settled) else shown
                        yield event
                    if job.finish is None:
                        needs = job.flow.send(executor.next_completion())
            finally:
                executor.stop()
                job.close()
        answer = job.answer(time.perf_counter() - began_s)
        yield from rest(shown, answer)
        return answer
