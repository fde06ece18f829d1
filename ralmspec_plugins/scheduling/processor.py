"""How busy the processor is with the calls of many agents."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

WINDOW_S: Final = 1.0
READING_S: Final = 0.01  # between two readings: each asks the system, whose calls take their time
SPARE: Final = 0.5  # share of a processor; a speculative call needs about as much as the host's own
_SCHEDULED: Final = "/proc/thread-self/schedstat"  # of Linux: nanoseconds computed, and waited


class ProcessorTime:
    """The seconds that this process has computed, or waited for a processor while others did.

    Waiting is known on Linux, of the threads that ask.
    """

    def __init__(self) -> None:
        """Start at what the process has computed."""
        self._waited_s = 0.0
        self._thread = threading.local()

    def __call__(self) -> float:
        """Return the seconds; other threads may ask only one at a time."""
        waited_s = _waited_s()
        self._waited_s += waited_s - getattr(self._thread, "waited_s", waited_s)
        self._thread.waited_s = waited_s
        return time.process_time() + self._waited_s


def _waited_s() -> float:
    """Return how long this thread has waited for a processor; 0 where that is not known."""
    try:
        file = os.open(_SCHEDULED, os.O_RDONLY)
    except OSError:
        return 0.0
    try:
        return int(os.read(file, 100).split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0
    finally:
        os.close(file)


class ProcessorLoad:
    """The share of one processor that calls use, and that they wait for.

    A model and tools that wait for a network need little of it, but many runs at once may use
    all of it: speculative work then delays the host's own. Speculation doubles the calls, so it is
    worthwhile only while as much again is spare. The share is measured over the last second, or
    since the calls began, if that is later. A run that is alone delays no other.

    Thread-safe; no thread waits for another one, since a garbage collection may interrupt any of
    them, and end a call there, or wait for a thread that ends one.

    >>> now_s, computed_s = 0.0, 0.0
    >>> load = ProcessorLoad(lambda: now_s, lambda: computed_s)
    >>> with load.call():
    ...     now_s, computed_s = 1.0, 0.7
    >>> with load.call():
    ...     load.is_spare(own=1), load.is_spare(own=0)
    (True, False)
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.perf_counter,
        computed: Callable[[], float] | None = None,
    ) -> None:
        """Create a load without measurements: all is spare.

        Args:
            clock: returns the time in seconds.
            computed: returns the seconds that this process has computed; `ProcessorTime`.
        """
        self._clock = clock
        self._computed = computed or ProcessorTime()
        self._calls: list[None] = []  # of all runs; its methods are atomic
        self._readings: tuple[tuple[float, float], ...] = ()  # replaced, never changed
        self._ended_s = float("-inf")  # when a call last ended
        self._reading = threading.Lock()  # held while the clocks are read; no thread waits for it

    @property
    def running(self) -> int:
        """The number of calls that are made now."""
        return len(self._calls)

    @contextmanager
    def call(self) -> Iterator[None]:
        """Count a call of a run while the body makes it."""
        self._read(first=not self._calls)
        self._calls.append(None)
        try:
            yield
        finally:
            self._calls.pop()
            self._ended_s = self._read()

    def is_spare(self, own: int = 0) -> bool:
        """Return whether speculative work delays no other run.

        Args:
            own: the number of calls that are made for the run that asks.
        """
        if self.running <= own:
            return True
        self._read()
        readings = self._readings
        if not readings or self._ended_s <= readings[0][0]:
            return True  # not measured yet: many calls begin together, and then wait
        (began_s, before_s), (now_s, computed_s) = readings[0], readings[-1]
        return computed_s - before_s <= SPARE * (now_s - began_s)

    def _read(self, *, first: bool = False) -> float:
        """Return the time; read both clocks unless this was done, or is being done, just now.

        The readings of the last second are kept, and the one before these; none from before a
        pause, where `first` states that no other call is being made.
        """
        now_s = self._clock()
        if not self._reading.acquire(blocking=False):
            return now_s
        try:
            readings = self._readings
            if first and readings and now_s - readings[-1][0] > WINDOW_S:
                readings = ()
            if not readings or now_s - readings[-1][0] >= READING_S:
                readings = (*readings, (now_s, self._computed()))
            while len(readings) > 1 and readings[1][0] <= now_s - WINDOW_S:
                readings = readings[1:]
            self._readings = readings
        finally:
            self._reading.release()
        return now_s
