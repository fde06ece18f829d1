"""Has one request's work done in threads, and keeps track of what is out."""

import contextvars
import queue
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial

from ralmspec_plugins.errors import Cancelled, Closed
from ralmspec_plugins.job import Job
from ralmspec_plugins.needs import (
    Ask,
    Broken,
    Cancel,
    Completion,
    Done,
    Extend,
    Guess,
    Need,
    Release,
    Reported,
    Search,
    Start,
    Work,
)
from ralmspec_plugins.streams import CompletionQueue

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
    done: Done


class Desk:
    """Hands one request's work to threads.

    A segment that is no longer needed is asked to stop, and waited for; or, where the
    workload says that its segments may be written side by side, left to itself.

    Work that nothing is done beside is done in the thread that asks for it: a plain request's
    objects may be bound to that thread (a connection to SQLite is), and a short search or segment
    takes up to a tenth longer elsewhere. Unless somebody has to look up meanwhile: at a clock, at
    unfinished text, or whether the request was given up.
    """

    def __init__(
        self, job: Job, threads: ThreadPoolExecutor, completed: CompletionQueue, began_s: float
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
        work = [need for need in needs if isinstance(need, Start | Ask | Guess | Search | Extend)]
        for need in sorted(needs, key=_writes):
            self._see_to(need, only=len(work) == 1)

    def _see_to(self, need: Need, *, only: bool) -> None:
        if isinstance(need, Start | Ask | Guess | Search | Extend):
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
        if isinstance(need, Start | Ask | Extend):
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
            done = Done(need, None, error, started_s=out.began_s, ended_s=self.clock())
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
        if isinstance(completion, Broken):
            raise completion.error
        return completion

    def _time_left_s(self) -> float | None:
        deadline_s = self._job.request.deadline_s
        return None if deadline_s is None else max(0.0, deadline_s - self.clock())

    def _late(self, completion: Completion | Broken) -> bool:
        """Say whether this comes from work that was left to itself, and is completed already."""
        left = None if completion.need is None else self._left.get(completion.need)
        return left is not None and left.done is not completion

    def _note(self, completion: Completion | Broken) -> None:
        if not isinstance(completion, Reported) and completion.need is not None:
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
    return isinstance(need, Ask | Extend)
