"""The engine on threads: the model writes in one, each search runs in another."""

import contextvars
import queue
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias, overload

from ralmspec_plugins.batching import AT_ONCE, Together, answer_all, check_concurrency
from ralmspec_plugins.config import Settings
from ralmspec_plugins.errors import Cancelled
from ralmspec_plugins.job import Job, as_request
from ralmspec_plugins.needs import (
    Ask,
    Broken,
    Completion,
    Extend,
    Guess,
    Need,
    Reported,
    Search,
    Start,
    Work,
)
from ralmspec_plugins.protocols import Retriever, Workload
from ralmspec_plugins.records import Answer, Request
from ralmspec_plugins.setups import Setup

THREADS = 256  # idle ones are reused; more are only started while all are busy
_Completed: TypeAlias = "queue.SimpleQueue[Completion | Broken]"
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
        self._together: Together = Together(self._setup)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="ralmspec")

    def run(self, request: Request | str) -> Answer:
        """Answer a request.

        Raises:
            DeadlineExceeded: The request's deadline passed.
            Exception: What the plain loop would have raised.
        """
        return self._stream(self._setup, as_request(request), reports=False).answer

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
        max_concurrency: int = AT_ONCE,
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

    def stream(self, request: Request | str) -> "AnswerStream":
        """Answer a request piece by piece; only text that stays is given out."""
        return self._stream(self._setup, as_request(request), reports=True)

    def _stream(self, setup: Setup, request: Request, *, reports: bool) -> "AnswerStream":
        setup.check_process()
        completed: _Completed = queue.SimpleQueue()
        job = Job(setup, request, reports=reports)
        return AnswerStream(self._drive(job, completed), completed)

    def close(self) -> None:
        """Wait for searches that nobody needs any more, and let the threads go."""
        self._together.close()
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

    def _drive(self, job: Job, completed: "_Completed") -> Generator[str, None, Answer]:
        """Run one request's loop in the caller's thread, its work in others."""
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
                    needs = job.flow.send(desk.next_completion())
        finally:
            desk.stop()
            job.close()
        answer = job.answer(time.perf_counter() - began_s)
        if answer.text[shown:]:
            yield answer.text[shown:]
        return answer


class AnswerStream(Iterator[str]):
    """The pieces of an answer as they become settled; `answer` is there after the last one."""

    def __init__(self, pieces: Generator[str, None, Answer], completed: "_Completed") -> None:
        """Give out these pieces; `completed` is what they are waited for at."""
        self._pieces = pieces
        self._completed = completed
        self._answer: Answer | None = None
        self._error: Exception | None = None

    def __next__(self) -> str:
        """Wait for the next piece."""
        try:
            return next(self._pieces)
        except StopIteration as stop:
            if self._answer is None:
                self._answer = stop.value
            raise StopIteration from None
        except Exception as error:
            self._error = error
            raise

    def close(self) -> None:
        """Give the request up, from any thread; all its work is stopped.

        Whoever is waiting for a piece in another thread gets `Cancelled`.
        """
        try:
            self._pieces.close()
        except ValueError:  # it is running, in another thread
            self._completed.put(Broken(Cancelled("this stream was closed")))

    @property
    def answer(self) -> Answer:
        """The whole answer; reads the stream to its end first."""
        for _ in self:
            pass
        if self._error is not None:
            raise self._error
        if self._answer is None:
            raise RuntimeError("this stream was closed before its answer was complete")
        return self._answer


class _Desk:
    """Hands one request's work to threads and keeps track of what is out."""

    def __init__(
        self,
        job: Job,
        threads: ThreadPoolExecutor,
        completed: "_Completed",
        began_s: float,
    ) -> None:
        self._job = job
        self._threads = threads
        self._completed = completed
        self._began_s = began_s
        self._on_the_model: set[Work] = set()

    def clock(self) -> float:
        return time.perf_counter() - self._began_s

    def see_to(self, need: Need) -> None:
        """Start work, or carry out a notice."""
        if isinstance(need, Start | Ask | Guess | Search | Extend):
            self._start(need)
        else:  # a cancelled segment notices by its progress; no other thread can be stopped
            self._job.note(need)

    def _start(self, need: Work) -> None:
        if isinstance(need, Start | Ask | Extend):
            self._on_the_model.add(need)
        context = contextvars.copy_context()
        self._threads.submit(
            context.run, self._job.carry_out, need, self.clock, self._completed.put
        )

    def next_completion(self) -> Completion:
        """Wait for something to finish.

        Raises:
            DeadlineExceeded: The deadline passed.
            BaseException: A part raised what is no `Exception`, or the stream was closed.
        """
        request = self._job.request
        request.check_deadline(self.clock())
        left_s = None if request.deadline_s is None else request.deadline_s - self.clock()
        try:
            completion = self._completed.get(timeout=left_s and max(0.0, left_s))
        except queue.Empty:
            request.check_deadline(float("inf"))
            raise
        self._note(completion)
        if isinstance(completion, Broken):
            raise completion.error
        return completion

    def _note(self, completion: Completion | Broken) -> None:
        if not isinstance(completion, Reported) and completion.need is not None:
            self._on_the_model.discard(completion.need)

    def stop(self) -> None:
        """Stop what is being written, and wait until the model is free."""
        for need in self._on_the_model:
            if isinstance(need, Extend):
                need.progress.cancel()
        until_s = self.clock() + GRACE_S
        while self._on_the_model and (left_s := until_s - self.clock()) > 0:
            try:
                self._note(self._completed.get(timeout=left_s))
            except queue.Empty:
                return
