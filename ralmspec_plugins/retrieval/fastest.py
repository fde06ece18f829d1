"""Of several ways to the same result, take the one that was measured to be the fastest."""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from statistics import median_low
from typing import TypeVar

ResultT = TypeVar("ResultT")

_TRIALS = 3  # of each way before one is preferred: one cold or disturbed run must not decide
_RECENT = 5  # measurements of a way that are kept
_AGAIN = 50  # works after which another way is tried once more: load and machine change


class Fastest:
    """Learns, for each size of work, which way takes the least time. Thread-safe.

    Sizes are taken together by powers of two (2, 3 to 4, 5 to 8, ...). All ways must
    give the same result: which one is taken depends on the clock.

    >>> ways = Fastest()
    >>> {ways.do(2, {"once": lambda: 4, "twice": lambda: 2 + 2}) for _ in range(20)}
    {4}
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        """Start with nothing measured."""
        self._clock = clock
        self._measured: dict[tuple[int, str], deque[float]] = {}
        self._works: dict[int, int] = {}
        self._lock = threading.Lock()

    def do(self, size: int, ways: Mapping[str, Callable[[], ResultT]]) -> ResultT:
        """Do a work of this size in one of these ways, and measure it."""
        group = (size - 1).bit_length()
        with self._lock:
            works = self._works[group] = self._works.get(group, 0) + 1
            name = self._choice(group, list(ways), works)
        started = self._clock()
        result = ways[name]()
        seconds = self._clock() - started
        with self._lock:
            measured = self._measured.setdefault((group, name), deque(maxlen=_RECENT))
            measured.append(seconds / size)
        return result

    def best(self, size: int) -> str | None:
        """Give the way that is the fastest so far for works of this size."""
        with self._lock:
            return self._best((size - 1).bit_length())

    def _best(self, group: int) -> str | None:
        seconds = {way: median_low(m) for (of, way), m in self._measured.items() if of == group}
        return min(seconds, key=seconds.__getitem__) if seconds else None

    def _choice(self, group: int, names: list[str], works: int) -> str:
        """Try each way in turn, then take the best, now and then another one."""
        if works <= _TRIALS * len(names):
            return names[(works - 1) % len(names)]
        if works % _AGAIN == 0:
            return names[works // _AGAIN % len(names)]
        return self._best(group) or names[0]
