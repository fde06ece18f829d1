"""The engine on threads: the model writes in one, each search runs in another."""

import queue
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Literal, Self, overload

from ralmspec_plugins.batching import AT_ONCE, Together, answer_all, check_concurrency
from ralmspec_plugins.config import Settings
from ralmspec_plugins.desk import Desk
from ralmspec_plugins.events import Event, Settled
from ralmspec_plugins.job import Job, as_request
from ralmspec_plugins.protocols import Retriever, Workload
from ralmspec_plugins.records import Answer, Request
from ralmspec_plugins.setups import Setup
from ralmspec_plugins.streams import AnswerStream, CompletionQueue, EventStream, rest
from ralmspec_plugins.turns import short_turns

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
        self._setup = Setup(workload, retriever, settings)
        self._together: Together = Together(self._setup)
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
        setup: Setup,
        request: Request,
        *,
        reports: bool,
        watched: bool = False,
        stoppable: bool = True,
    ) -> EventStream:
        setup.check_process()
        completed: CompletionQueue = queue.SimpleQueue()
        job = Job(setup, request, reports=reports, watched=watched, stoppable=stoppable)
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

    def _drive(self, job: Job, completed: CompletionQueue) -> Generator[Event, None, Answer]:
        """Run one request's loop in the caller's thread, its work in others."""
        began_s = time.perf_counter()
        desk = Desk(job, self._threads, completed, began_s)
        shown = 0
        with short_turns(job.setup.switch_interval_s):
            try:
                needs = next(job.flow)
                while job.finish is None:
                    desk.see_to(needs)
                    for event in job.events():
                        shown = len(event.text) if isinstance(event, Settled) else shown
                        yield event
                    if job.finish is None:
                        needs = job.flow.send(desk.next_completion())
            finally:
                desk.stop()
                job.close()
        answer = job.answer(time.perf_counter() - began_s)
        yield from rest(shown, answer)
        return answer
