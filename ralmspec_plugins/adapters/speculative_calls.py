"""Speculative calls: started in parallel with a host's own, recorded, and replayed or dropped."""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextvars import Context
from typing import Any, Protocol

from ralmspec_plugins.adapters.retriever_service import completed


class Recording:
    """A speculative call, whose pieces one reader receives as they arrive.

    The reader runs on the event loop of the call, or in another thread.
    """

    def __init__(self, request: Any, index: int) -> None:
        """Create a recording without pieces.

        Args:
            request: the request of the call.
            index: the index of the step that begins with the reply.
        """
        self.request = request
        self.index = index
        self.pieces: list[Any] = []
        self.ended = False
        self.error: Exception | None = None
        self.committed = False
        self.dropped = False
        self.span_id: str | None = None  # of the span around the call, if the host has spans
        self.step: Any = None  # the `ToolStep` of the reply's tool calls, if these were made, too
        self.cancel: Callable[[], None] = lambda: None
        self._changed = threading.Condition()
        self._waiter: asyncio.Future[None] | None = None

    def put(self, piece: Any) -> None:
        """Add a piece."""
        with self._changed:
            self.pieces.append(piece)
            self._wake()

    def end(self, error: BaseException | None = None) -> None:
        """End the call, with the error that it raised, if any.

        A cancellation is an error for the reader, whose own work was not cancelled.
        """
        with self._changed:
            if error is not None and not isinstance(error, Exception):
                error = RuntimeError(f"the speculative call has ended with {error!r}")
            self.ended, self.error = True, error
            self._wake()

    def abandon(self) -> None:
        """Stop the call because its reader has stopped reading."""
        if not self.ended:
            self.dropped = True
            self.cancel()

    def _wake(self) -> None:
        self._changed.notify_all()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def read(self) -> Iterator[Any]:
        """Yield the pieces as they arrive, up to the end or the error of the call.

        An error is not raised: the reader makes the call itself, or reads `error`. The call is
        stopped when its reader stops reading.
        """
        read = 0
        try:
            while True:
                with self._changed:
                    while read == len(self.pieces) and not self.ended:
                        self._changed.wait()
                    if read == len(self.pieces):
                        return
                yield self.pieces[read]
                read += 1
        finally:
            self.abandon()

    async def aread(self) -> AsyncGenerator[Any, None]:
        """Yield the pieces as `read` does, on the event loop of the call."""
        read = 0
        try:
            while read < len(self.pieces) or not self.ended:
                if read < len(self.pieces):
                    yield self.pieces[read]
                    read += 1
                else:
                    self._waiter = asyncio.get_running_loop().create_future()
                    await self._waiter
        finally:
            self.abandon()


class Launcher(Protocol):
    """Starts work in parallel with the host's own."""

    asynchronous: bool

    def usable(self) -> bool:
        """Return whether work can be started from here."""

    def start(
        self, work: Callable[[], Coroutine[Any, Any, None]], context: Context
    ) -> Callable[[], None]:
        """Start work in a context of its own; return a function that cancels it."""

    def later(self, delay_s: float, call: Callable[[], None]) -> None:
        """Make a call after a delay, or at the first `poll` after it."""

    def poll(self) -> None:
        """Make the calls that are due, if nothing else makes them."""


class TaskLauncher:
    """Starts work as tasks of the running event loop."""

    asynchronous = True

    def __init__(self) -> None:
        """Create a launcher of the running loop."""
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()

    def usable(self) -> bool:
        """Return whether the loop runs here."""
        return asyncio.get_running_loop() is self._loop

    def start(
        self, work: Callable[[], Coroutine[Any, Any, None]], context: Context
    ) -> Callable[[], None]:
        """Start a task in this context."""
        task = self._loop.create_task(work(), context=context)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return lambda: None if task is _current_task() else _cancel(task)

    def later(self, delay_s: float, call: Callable[[], None]) -> None:
        """Schedule the call on the loop."""
        self._loop.call_later(delay_s, call)

    def poll(self) -> None:
        """Do nothing: the loop makes the calls."""


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def _cancel(task: "asyncio.Task[None]") -> None:
    task.cancel()


class ThreadLauncher:
    """Starts work in new threads; work that is no longer needed ends before its next piece."""

    asynchronous = False

    def __init__(self) -> None:
        """Create a launcher without a due call."""
        self._due: tuple[float, Callable[[], None]] | None = None

    def usable(self) -> bool:
        """Return `True`: threads can be started anywhere."""
        return True

    def start(
        self, work: Callable[[], Coroutine[Any, Any, None]], context: Context
    ) -> Callable[[], None]:
        """Start a thread in this context."""
        thread = threading.Thread(
            target=lambda: context.run(completed, work()), name="ralmspec-agent", daemon=True
        )
        thread.start()
        return lambda: None  # a thread cannot be cancelled: it checks its recording

    def later(self, delay_s: float, call: Callable[[], None]) -> None:
        """Keep the call until it is due; it replaces an earlier one."""
        self._due = (time.monotonic() + delay_s, call)

    def poll(self) -> None:
        """Make the call if it is due."""
        due = self._due
        if due is not None and time.monotonic() >= due[0]:
            self._due = None
            due[1]()
