"""Measured acceptance rates of an engine's speculators, which decide who is asked first."""

import threading
from collections.abc import Sequence
from typing import Final

PRIOR: Final = 2.0  # right guesses that every speculator is credited with at the start
FADING: Final = 0.98  # of all counts with each outcome: a rejected speculator is tried again
MARGIN: Final = 0.15  # by which a rate must exceed one that precedes it in the given order


class SpeculatorRates:
    """Acceptance rates by place in the given order of speculators. Thread-safe.

    All requests of an engine share one object. A speculator that was never asked has the rate 1, so
    it is tried as soon as those before it are wrong too often; counts fade, so the order
    follows what the requests ask.

    >>> rates = SpeculatorRates()
    >>> rates.order(2)
    (0, 1)
    >>> for _ in range(4):
    ...     rates.record_outcome(0, False)
    >>> rates.order(2)
    (1, 0)
    """

    def __init__(self) -> None:
        """Credit all speculators alike."""
        self._counts: dict[int, list[float]] = {}  # place: right, all
        self._lock = threading.Lock()

    def record_outcome(self, place: int, accepted: bool) -> None:
        """Record whether a guess of the speculator at a place was right."""
        with self._lock:
            for counts in self._counts.values():
                counts[0] *= FADING
                counts[1] *= FADING
            counts = self._counts.setdefault(place, [0.0, 0.0])
            counts[0] += accepted
            counts[1] += 1.0

    def rate(self, place: int) -> float:
        """Return the acceptance rate of the speculator at a place, 0 to 1."""
        right, all_ = self._counts.get(place, (0.0, 0.0))
        return (right + PRIOR) / (all_ + PRIOR)

    def order(self, count: int) -> Sequence[int]:
        """Return the places of `count` speculators, the one with the highest rate first.

        The given order stands where rates differ by less than a margin.
        """
        if count < 2:
            return range(count)
        with self._lock:
            rates = [self.rate(place) for place in range(count)]
        order: list[int] = []
        for place in range(count):  # insertion: few places, and mostly in order
            at = len(order)
            while at and rates[place] > rates[order[at - 1]] + MARGIN:
                at -= 1
            order.insert(at, place)
        return tuple(order)
