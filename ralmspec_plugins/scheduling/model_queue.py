"""The queue in front of a model that answers few calls at once: confirmed work goes first."""

import asyncio
import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from types import TracebackType
from typing import Final

from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.protocols import Progress

_inside: Final = ContextVar[tuple["ModelQueue", ...]]("ralmspec_model_queues", default=())


@dataclass(slots=True, eq=False)
class _Turn:
    """A call that waits, or that is being made."""

    progress: Progress
    speculative: bool
    wake: Callable[[], None]
    granted: bool = False

    @property
    def urgent(self) -> bool:
        """Whether the call is part of the answer as far as is known."""
        return not self.speculative or self.progress.confirmed


class ModelQueue:
    """The calls of one model, of which at most some are made at once.

    Of the calls that wait, those that depend on no unverified guess come first, in the order of
    their arrival; then those that do, in the same order. A call whose guesses are verified while
    it waits counts as the former from then on, and a call that is no longer needed leaves. A call
    that is being made is not interrupted for another. What a call itself calls by the same queue
    is made at once, since it would wait for its own end. Thread-safe; engines that are given the
    same queue share the model, on threads and on event loops.

    >>> queue = ModelQueue(2)
    >>> with queue.turn(Progress()):
    ...     queue.running, queue.waiting
    (1, 0)
    """

    def __init__(self, max_concurrent_calls: int) -> None:
        """Create a queue.

        Args:
            max_concurrent_calls: the maximum number of calls at once: 1 for a local model that
                takes turns, more for a server with a limit.

        Raises:
            ConfigError: it is no whole number of at least 1.
        """
        if type(max_concurrent_calls) is not int or max_concurrent_calls < 1:
            raise ConfigError(
                "max_concurrent_calls must be a whole number of at least 1, "
                f"got {max_concurrent_calls!r}"
            )
        self.max_concurrent_calls = max_concurrent_calls
        self._reset()

    def _reset(self) -> None:
        self._process = os.getpid()
        self.running = 0
        self._turns: list[_Turn] = []  # that wait, in the order of their arrival
        self._changes: deque[tuple[_Turn, bool]] = deque()  # turns that came, or left
        self._lock = threading.Lock()  # held while changes are processed; no thread waits for it

    @property
    def waiting(self) -> int:
        """The number of calls that wait."""
        return len(self._turns)

    @contextmanager
    def turn(self, progress: Progress, *, speculative: bool = False) -> Iterator[None]:
        """Wait in this thread until the call in the body can be made.

        Args:
            progress: of the call; when it is cancelled, the call no longer waits.
            speculative: whether the call depends on an unverified guess.

        Raises:
            Cancelled: `progress` was cancelled.
        """
        if self in _inside.get():
            yield
            return
        granted: SimpleQueue[None] = SimpleQueue()  # may be put to in a garbage collection, too
        wake = partial(granted.put, None)
        progress.on_cancel(wake)
        turn = self.join(_Turn(progress, speculative, wake))
        token = _inside.set((*_inside.get(), self))
        try:
            granted.get()
            progress.check()
            yield
        finally:
            self.leave(turn)
            _inside.reset(token)

    def aturn(
        self, progress: Progress, *, speculative: bool = False
    ) -> AbstractAsyncContextManager[None]:
        """Wait in this task, as `turn` does in a thread."""
        return _AwaitedTurn(self, progress, speculative)

    def join(self, turn: _Turn) -> _Turn:
        """Add a call, which begins or waits for its turn."""
        if self._process != os.getpid():  # forked: the threads with a turn do not exist here
            self._reset()
        self._change(turn, came=True)
        return turn

    def leave(self, turn: _Turn) -> None:
        """Remove a call, which has ended or no longer waits."""
        self._change(turn, came=False)

    def _change(self, turn: _Turn, *, came: bool) -> None:
        """Process a turn that came or left, here or in the thread that processes others now.

        No thread waits for another one: a garbage collection may interrupt this, and there end a
        turn, or wait for the end of one in another thread.
        """
        self._changes.append((turn, came))
        while self._changes and self._lock.acquire(blocking=False):
            try:
                while self._changes:
                    self._count(*self._changes.popleft())
                self._admit()
            finally:
                self._lock.release()

    def _count(self, turn: _Turn, came: bool) -> None:
        if came:
            self._turns.append(turn)
        elif turn.granted:
            self.running -= 1
        else:
            self._turns.remove(turn)

    def _admit(self) -> None:
        """Grant the free places to the first calls."""
        while self._turns and self.running < self.max_concurrent_calls:
            turn = next((one for one in self._turns if one.urgent), self._turns[0])
            self._turns.remove(turn)
            self.running += 1
            turn.granted = True
            turn.wake()


class _AwaitedTurn(AbstractAsyncContextManager[None]):
    """A call that waits in a task, and is then made.

    A coroutine is closed when it is collected; an asynchronous generator is not, where the event
    loop of its task has ended, and would keep its turn.
    """

    def __init__(self, queue: ModelQueue, progress: Progress, speculative: bool) -> None:
        self._queue = queue
        self._progress = progress
        self._speculative = speculative
        self._turn: _Turn | None = None  # none inside of another one
        self._token: Token[tuple[ModelQueue, ...]]

    async def __aenter__(self) -> None:
        if self._queue in _inside.get():
            return
        loop, granted = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed, and its tasks cancelled
                loop.call_soon_threadsafe(granted.set)

        self._progress.on_cancel(wake)
        turn = self._queue.join(_Turn(self._progress, self._speculative, wake))
        try:
            if not turn.granted:
                await granted.wait()
            self._progress.check()
        except BaseException:
            self._queue.leave(turn)
            raise
        self._turn = turn
        self._token = _inside.set((*_inside.get(), self._queue))

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._turn is None:
            return
        self._queue.leave(self._turn)
        with contextlib.suppress(ValueError):  # collected with its loop, in another context
            _inside.reset(self._token)
