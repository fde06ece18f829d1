"""Whether the requests of an engine are answered plainly, since guessing pays off for none."""

import time
from collections.abc import Callable
from typing import Final

ENOUGH: Final = 8  # requests in a row for which guessing did not pay off
SHORT_S: Final = 1.0  # of such a request: a longer one may begin under load, and end without
PAUSE_S: Final = 0.5  # after which one request measures again


class Dormancy:
    """Counts the requests for which guessing did not pay off.

    A request that makes no guess still measures and plans, which takes some percent of a short one
    over a store in this process. So after enough of them the next ones are answered as by the plain
    loop, except for one from time to time, which detects whether that has changed: the requests
    that filled the processor may be over. Thread-safe: a count that is lost changes nothing but
    the number of requests that measure.

    >>> dormancy = Dormancy()
    >>> for _ in range(ENOUGH):
    ...     dormancy.ended(paid=False, wall_s=0.01)
    >>> [dormancy.begins() for _ in range(3)]  # the first one measures
    [False, True, True]
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        """Begin without dormancy.

        Args:
            clock: returns the time in seconds.
        """
        self._clock = clock
        self._unpaid = 0
        self._measured_s = float("-inf")  # when a request last began to measure

    def begins(self) -> bool:
        """Return whether the request that begins now is answered plainly."""
        if self._unpaid < ENOUGH:
            return False
        now_s = self._clock()
        if now_s - self._measured_s < PAUSE_S:
            return True
        self._measured_s = now_s
        return False

    def ended(self, *, paid: bool, wall_s: float) -> None:
        """Record whether guessing may have paid off for a request that measured."""
        self._unpaid = 0 if paid or wall_s > SHORT_S else self._unpaid + 1
