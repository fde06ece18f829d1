"""The queue in front of a model that answers few calls at once: confirmed work goes first."""

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
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
        self._lock = threading.Lock()

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
        granted = threading.Event()
        progress.on_cancel(granted.set)
        turn = self._join(_Turn(progress, speculative, granted.set))
        token = _inside.set((*_inside.get(), self))
        try:
            granted.wait()
            progress.check()
            yield
        finally:
            _inside.reset(token)
            self._leave(turn)

    @asynccontextmanager
    async def aturn(self, progress: Progress, *, speculative: bool = False) -> AsyncIterator[None]:
        """Wait in this task until the call in the body can be made.

        Raises:
            Cancelled: `progress` was cancelled.
        """
        if self in _inside.get():
            yield
            return
        loop, granted = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed, and its tasks cancelled
                loop.call_soon_threadsafe(granted.set)

        progress.on_cancel(wake)
        turn = self._join(_Turn(progress, speculative, wake))
        token = _inside.set((*_inside.get(), self))
        try:
            if not turn.granted:
                await granted.wait()
            progress.check()
            yield
        finally:
            _inside.reset(token)
            self._leave(turn)

    def _join(self, turn: _Turn) -> _Turn:
        if self._process != os.getpid():  # forked: the threads with a turn do not exist here
            self._reset()
        with self._lock:
            self._turns.append(turn)
            self._admit()
        return turn

    def _leave(self, turn: _Turn) -> None:
        with self._lock:
            if turn.granted:
                self.running -= 1
            else:
                self._turns.remove(turn)
            self._admit()

    def _admit(self) -> None:
        """Grant the free places to the first calls."""
        while self._turns and self.running < self.max_concurrent_calls:
            turn = next((one for one in self._turns if one.urgent), self._turns[0])
            self._turns.remove(turn)
            self.running += 1
            turn.granted = True
            turn.wake()
