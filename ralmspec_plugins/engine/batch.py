"""Batches: many requests answered in parallel, returned in order, and cancelled together."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Protocol

from ralmspec_plugins.batching.verifier import Verifier
from ralmspec_plugins.engine.session import Session
from ralmspec_plugins.errors import Cancelled, ConfigError
from ralmspec_plugins.types import Answer, Request

DEFAULT_CONCURRENCY = 16  # requests in parallel by default


class BatchSession:
    """The session shared by the batches of one engine, created on first use. Thread-safe."""

    def __init__(self, session: Session) -> None:
        """Store the session of single requests."""
        self._single = session
        self._session: Session | None = None
        self._lock = threading.Lock()

    @property
    def session(self) -> Session:
        """The session of concurrent requests."""
        with self._lock:
            if self._session is None:
                self._session = self._single.for_batch()
            return self._session

    def invalidate(self) -> None:
        """Discard the results that batches have cached."""
        with self._lock:
            session = self._session
        if session is not None:
            session.invalidate()

    def close(self) -> None:
        """Shut down the verifier's threads, unless the caller passed the verifier."""
        with self._lock:
            retriever = None if self._session is None else self._session.retriever
        if isinstance(retriever, Verifier) and retriever is not self._single.retriever:
            retriever.close()


class Stream(Protocol):
    """A request being answered in threads."""

    @property
    def answer(self) -> Answer:
        """Wait for the answer, and return it."""
        ...

    def close(self) -> None:
        """Cancel the request, from any thread."""
        ...


def check_concurrency(max_concurrency: int, requests: int) -> int:
    """Return how many requests are answered in parallel.

    Raises:
        ConfigError: `max_concurrency` is below 1.
    """
    if isinstance(max_concurrency, bool) or not isinstance(max_concurrency, int):
        raise ConfigError(f"max_concurrency must be a whole number, got {max_concurrency!r}")
    if max_concurrency < 1:
        raise ConfigError(f"max_concurrency must be at least 1, got {max_concurrency}")
    return max(1, min(max_concurrency, requests))


def answer_all(
    begin: Callable[[Request], Stream],
    requests: Sequence[Request],
    workers: int,
    *,
    return_exceptions: bool,
) -> list[Answer | Exception]:
    """Answer requests in parallel, in threads.

    Raises:
        Exception: the first error, in the requests' order, unless they are to be returned.
    """
    streams: list[Stream] = []
    given_up = threading.Event()

    def answered(request: Request) -> Answer:
        if given_up.is_set():
            raise Cancelled("another request of this batch has failed")
        stream = begin(request)
        streams.append(stream)
        if given_up.is_set():  # it may have been set before the stream was in the list
            stream.close()
        return stream.answer

    answers: list[Answer | Exception] = []
    with ThreadPoolExecutor(workers, thread_name_prefix="ralmspec-batch") as threads:
        futures = [threads.submit(copy_context().run, answered, request) for request in requests]
        try:
            for future in futures:
                try:
                    answers.append(future.result())
                except Exception as error:
                    if not return_exceptions:
                        raise
                    answers.append(error)
        except BaseException:
            given_up.set()
            for stream in tuple(streams):
                stream.close()
            raise
    return answers


async def aanswer_all(
    answer: Callable[[Request], Awaitable[Answer | Exception]],
    requests: Sequence[Request],
    workers: int,
    *,
    return_exceptions: bool,
) -> list[Answer | Exception]:
    """Answer requests in parallel, in tasks.

    Raises:
        Exception: the first error, in the requests' order, unless they are to be returned.
    """
    gate = asyncio.Semaphore(workers)

    async def answered(request: Request) -> Answer | Exception:
        async with gate:
            return await answer(request)

    tasks = [asyncio.create_task(answered(request)) for request in requests]
    answers: list[Answer | Exception] = []
    try:
        for task in tasks:
            outcome = await task
            if isinstance(outcome, Exception) and not return_exceptions:
                raise outcome
            answers.append(outcome)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return answers
