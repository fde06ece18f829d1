"""The engine on threads: the model writes in one, each search runs in another."""

import contextvars
import queue
import time
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

from ralmspec_plugins.config import Settings
from ralmspec_plugins.errors import DeadlineExceeded
from ralmspec_plugins.job import Job, Setup, as_request
from ralmspec_plugins.needs import (
    Ask,
    Completion,
    Done,
    Extend,
    Guess,
    Need,
    Search,
    Settled,
    Start,
    Work,
)
from ralmspec_plugins.protocols import Retriever, Workload
from ralmspec_plugins.records import Answer, Request

THREADS = 256  # idle ones are reused; more are only started while all are busy
GRACE_S = 5.0  # how long an unwanted segment may take to notice, when a request is given up


class Engine:
    """Answers requests with real overlap of writing and searching. Thread-safe.

    >>> from ralmspec_plugins.testing import EchoWorkload, WordRetriever
    >>> with Engine(EchoWorkload(), WordRetriever(["red fox", "blue whale"])) as engine:
    ...     engine.run("whale").text
    'blue whale'
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

    def run(self, request: Request | str) -> Answer:
        """Answer a request.

        Raises:
            DeadlineExceeded: The request's deadline passed.
            Exception: What the plain loop would have raised.
        """
        return AnswerStream(self._drive(as_request(request), reports=False)).answer

    def stream(self, request: Request | str) -> "AnswerStream":
        """Answer a request piece by piece; only text that stays is given out."""
        return AnswerStream(self._drive(as_request(request), reports=True))

    def close(self) -> None:
        """Wait for searches that nobody needs any more, and let the threads go."""
        self._threads.shutdown(wait=True, cancel_futures=True)

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

    def _drive(self, request: Request, *, reports: bool) -> Generator[str, None, Answer]:
        """Run one request's loop in the caller's thread, its work in others."""
        job = Job(self._setup, request, reports=reports)
        began_s = time.perf_counter()
        completed: queue.SimpleQueue[Completion] = queue.SimpleQueue()
        desk = _Desk(job, self._threads, completed, began_s)
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
                    needs = job.flow.send(desk.next_completion(request.deadline_s))
        finally:
            desk.stop()
            job.close()
        answer = job.answer(time.perf_counter() - began_s)
        if answer.text[shown:]:
            yield answer.text[shown:]
        return answer


class AnswerStream(Iterator[str]):
    """The pieces of an answer as they become settled; `answer` is there after the last one."""

    def __init__(self, pieces: Generator[str, None, Answer]) -> None:
        """Give out these pieces."""
        self._pieces = pieces
        self._answer: Answer | None = None

    def __next__(self) -> str:
        """Wait for the next piece."""
        try:
            return next(self._pieces)
        except StopIteration as stop:
            if self._answer is None:
                self._answer = stop.value
            raise StopIteration from None

    def close(self) -> None:
        """Give the request up; all its work is stopped."""
        self._pieces.close()

    @property
    def answer(self) -> Answer:
        """The whole answer; reads the stream to its end first."""
        for _ in self:
            pass
        if self._answer is None:
            raise RuntimeError("this stream was closed before its answer was complete")
        return self._answer


class _Desk:
    """Hands one request's work to threads and keeps track of what is out."""

    def __init__(
        self,
        job: Job,
        threads: ThreadPoolExecutor,
        completed: "queue.SimpleQueue[Completion]",
        began_s: float,
    ) -> None:
        self._job = job
        self._threads = threads
        self._completed = completed
        self._began_s = began_s
        self._extends: set[Extend] = set()

    def clock(self) -> float:
        return time.perf_counter() - self._began_s

    def see_to(self, need: Need) -> None:
        """Start work, or carry out a notice."""
        if isinstance(need, Start | Ask | Guess | Search | Extend):
            self._start(need)
        else:  # a cancelled segment notices by its progress; no other thread can be stopped
            self._job.note(need)

    def _start(self, need: Work) -> None:
        if isinstance(need, Extend):
            self._extends.add(need)
        context = contextvars.copy_context()
        self._threads.submit(
            context.run, self._job.carry_out, need, self.clock, self._completed.put
        )

    def next_completion(self, deadline_s: float | None) -> Completion:
        """Wait for something to finish.

        Raises:
            DeadlineExceeded: Nothing did before the deadline.
        """
        left_s = None if deadline_s is None else max(0.0, deadline_s - self.clock())
        try:
            completion = self._completed.get(timeout=left_s)
        except queue.Empty:
            raise DeadlineExceeded(f"no answer within {deadline_s} seconds") from None
        self._note(completion)
        return completion

    def _note(self, completion: Completion) -> None:
        if isinstance(completion, Done) and isinstance(completion.need, Extend):
            self._extends.discard(completion.need)

    def stop(self) -> None:
        """Stop what is being written, and wait until it has stopped."""
        for need in self._extends:
            need.progress.cancel()
        until_s = self.clock() + GRACE_S
        while self._extends and (left_s := until_s - self.clock()) > 0:
            try:
                self._note(self._completed.get(timeout=left_s))
            except queue.Empty:
                return
