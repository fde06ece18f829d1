"""How busy the model of an engine is, over all requests."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median_low
from typing import Final

RECENT: Final = 8  # kept durations of one level of concurrency
ENOUGH: Final = 3  # durations of a level before it counts
SLOWER: Final = 1.5  # relative duration from which on segments slow each other down
MARGIN: Final = 0.5  # segments beyond the measured capacity


class ModelLoad:
    """The number of segments that are generated now, and how many the model generates at once.

    A local model takes turns: of n segments in parallel each takes up to n times as long. A
    speculative segment of one request then delays the confirmed ones of others. So the durations
    are measured by the number of segments in parallel; where more of them take longer, the
    capacity is the number that would take as long as one does. Thread-safe.

    >>> load = ModelLoad()
    >>> for parallel, seconds in 3 * ((1, 0.1), (4, 0.4)):
    ...     load.observe(parallel, seconds)
    >>> load.capacity
    1.0
    """

    def __init__(self) -> None:
        """Create a load without measurements: the capacity is unlimited."""
        self.running = 0  # segments in parallel now
        self.capacity = float("inf")
        self._seconds: dict[int, deque[float]] = {}  # by the number in parallel
        self._lock = threading.Lock()

    @contextmanager
    def segment(self, clock: Callable[[], float]) -> Iterator[None]:
        """Count a segment while the body generates it; time it unless that raises."""
        with self._lock:
            self.running += 1
            parallel, began_s = self.running, clock()
        seconds = None
        try:
            yield
            seconds = clock() - began_s
        finally:
            with self._lock:
                parallel = round((parallel + self.running) / 2)
                self.running -= 1
                if seconds is not None:
                    self._observe(parallel, seconds)

    def observe(self, parallel: int, seconds: float) -> None:
        """Record the duration of a segment in parallel with `parallel - 1` others."""
        with self._lock:
            self._observe(parallel, seconds)

    def _observe(self, parallel: int, seconds: float) -> None:
        kept = self._seconds.setdefault(parallel, deque(maxlen=RECENT))
        kept.append(seconds)
        if len(self._seconds) > 1:
            self.capacity = self._measured()

    def has_room(self) -> bool:
        """Return whether one more segment delays no other one."""
        return self.running + 1 <= max(1.0, self.capacity) + MARGIN

    def _measured(self) -> float:
        usual = {
            parallel: median_low(kept)
            for parallel, kept in self._seconds.items()
            if len(kept) >= ENOUGH
        }
        fewest = min(usual, default=0)
        slower = [n for n, seconds in usual.items() if seconds > SLOWER * usual[fewest]]
        if not slower:
            return float("inf")
        most = max(slower)
        return most * usual[fewest] / usual[most]
