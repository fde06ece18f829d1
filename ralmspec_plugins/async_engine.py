"""The engine on asyncio: searches and model calls as tasks, or in threads where they are sync."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Literal, Self, overload

from ralmspec_plugins.async_desk import AsyncDesk
from ralmspec_plugins.async_streams import AsyncAnswerStream, AsyncCompletionQueue, AsyncEventStream
from ralmspec_plugins.batching import AT_ONCE, Together, aanswer_all, check_concurrency
from ralmspec_plugins.config import Settings
from ralmspec_plugins.engine import THREADS
from ralmspec_plugins.events import Event, Settled
from ralmspec_plugins.job import Job, as_request
from ralmspec_plugins.protocols import Retriever, Workload
from ralmspec_plugins.records import Answer, Request
from ralmspec_plugins.setups import Setup
from ralmspec_plugins.streams import rest
from ralmspec_plugins.turns import short_turns


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
        self._setup = Setup(workload, retriever, settings)
        self._together: Together = Together(self._setup)
        self._owns_threads = threads is None
        self._threads = threads or ThreadPoolExecutor(THREADS, thread_name_prefix="ralmspec")

    async def run(self, request: Request | str) -> Answer:
        """Answer a request.

        Raises:
            DeadlineExceeded: The request's deadline passed.
            Exception: What the plain loop would have raised.
        """
        return await self._run(self._setup, as_request(request))

    async def _run(self, setup: Setup, request: Request) -> Answer:
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
        self, setup: Setup, request: Request, *, reports: bool, watched: bool = False
    ) -> AsyncEventStream:
        setup.check_process()
        completed: AsyncCompletionQueue = asyncio.Queue()
        job = Job(setup, request, reports=reports, watched=watched)
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
        self, job: Job, completed: AsyncCompletionQueue, finish: Callable[[Answer], None]
    ) -> AsyncGenerator[Event, None]:
        """Run one request's loop in the caller's task, its work in others."""
        began_s = time.perf_counter()
        desk = AsyncDesk(job, self._threads, completed, began_s)
        shown = 0
        with short_turns(job.setup.switch_interval_s):
            try:
                needs = next(job.flow)
                while job.finish is None:
                    for need in needs:
                        desk.see_to(need)
                    for event in job.events():
                        shown = len(event.text) if isinstance(event, Settled) else shown
                        yield event
                    if job.finish is None:
                        needs = job.flow.send(await desk.next_completion())
            finally:
                try:
                    await desk.stop()
                finally:
                    job.close()
        answer = job.answer(time.perf_counter() - began_s)
        for event in rest(shown, answer):
            yield event
        finish(answer)
