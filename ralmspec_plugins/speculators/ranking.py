"""What the guesses of an engine's speculators save, which decides who is asked first."""

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

PRIOR: Final = 2.0  # right guesses that every speculator is credited with at the start
FADING: Final = 0.98  # of all counts with each outcome: a rejected speculator is tried again
FADED: Final = 0.1  # guesses left of all, of one that is not asked any more
MARGIN: Final = 0.15  # by which a value must exceed one that precedes it in the given order


@dataclass(slots=True)
class _Counts:
    """Of one speculator, faded."""

    right: float = 0.0
    all: float = 0.0
    lead_s: float = 0.0  # the sum over all guesses


@dataclass(slots=True)
class _Difference:
    """Of two speculators whose guesses differ, faded."""

    first_right: float = 0.0
    second_right: float = 0.0
    all: float = 0.0


class SpeculatorRates:
    """Acceptance rates and leads, by place in the given order of speculators. Thread-safe.

    The lead of a guess is the time from the guess to the result of the search: what is generated in
    that time is saved if the guess is right. A speculator that reads only the text leads by the
    encoding, too; one that is slow to answer has a smaller lead. The one whose guesses save the
    most on average, rate times lead, is asked first.

    All requests of an engine share one object. A speculator that was never asked has the rate 1 and
    the largest lead, so it is tried as soon as those before it save too little; counts fade, so the
    order follows what the requests ask.

    >>> rates = SpeculatorRates()
    >>> rates.order(2)
    (0, 1)
    >>> for _ in range(4):
    ...     rates.record_outcome(0, False, 0.05)
    >>> rates.order(2)
    (1, 0)
    """

    def __init__(self) -> None:
        """Credit all speculators alike."""
        self._counts: dict[int, _Counts] = {}  # by place
        self._differences: dict[tuple[int, int], _Difference] = {}  # by both places
        self._last: dict[int, Sequence[int]] = {}  # the last order of so many
        self._lock = threading.Lock()

    def record_outcome(self, place: int, accepted: bool, lead_s: float) -> None:
        """Record whether a guess of the speculator at a place was right, and its lead."""
        with self._lock:
            for counts in self._counts.values():
                counts.right *= FADING
                counts.all *= FADING
                counts.lead_s *= FADING
            counts = self._counts.setdefault(place, _Counts())
            counts.right += accepted
            counts.all += 1.0
            counts.lead_s += lead_s

    def record_difference(self, first: int, second: int, right: tuple[bool, bool]) -> None:
        """Record which of two speculators were right where their guesses differed."""
        with self._lock:
            counts = self._differences.setdefault((first, second), _Difference())
            counts.first_right = counts.first_right * FADING + right[0]
            counts.second_right = counts.second_right * FADING + right[1]
            counts.all = counts.all * FADING + 1.0

    def chances(self, first: int, second: int) -> tuple[float, float]:
        """Return the probabilities that either of two speculators is right where they differ.

        Before that was seen, they count as independent: the first is right and the second wrong in
        p (1 - q) of all cases, and they differ in 1 - p q of them.

        >>> SpeculatorRates().chances(0, 1)
        (0.5, 0.5)
        """
        with self._lock:
            p, q = self.rate(first), self.rate(second)
            counts = self._differences.get((first, second), _Difference())
            differ = 1.0 - p * q
            expected = (p * (1 - q) / differ, q * (1 - p) / differ) if differ > 0.0 else (0.5, 0.5)
            return (
                (counts.first_right + PRIOR * expected[0]) / (counts.all + PRIOR),
                (counts.second_right + PRIOR * expected[1]) / (counts.all + PRIOR),
            )

    def ahead(self, early: int, late: int) -> tuple[float, float, float]:
        """Return how often two speculators are right, and by how much the first precedes the other.

        Args:
            early: the place of a speculator that reads the text.
            late: that of one which reads the encoding.

        Returns:
            Both acceptance rates, and seconds; infinite before both have guessed.
        """
        with self._lock:
            leads = [
                counts.lead_s / counts.all
                for place in (early, late)
                if (counts := self._counts.get(place)) is not None and counts.all > 0.0
            ]
            ahead_s = leads[0] - leads[1] if len(leads) == 2 else math.inf
            return self.rate(early), self.rate(late), ahead_s

    def rate(self, place: int) -> float:
        """Return the acceptance rate of the speculator at a place, 0 to 1."""
        counts = self._counts.get(place, _Counts())
        return (counts.right + PRIOR) / (counts.all + PRIOR)

    def _values(self, count: int) -> list[float]:
        """Return what a guess at each place saves, as a share of the largest lead."""
        leads = {
            place: counts.lead_s / counts.all
            for place, counts in self._counts.items()
            if counts.all > 0.0
        }
        most_s = max(leads.values(), default=0.0)
        if most_s <= 0.0:
            return [self.rate(place) for place in range(count)]
        return [self.rate(place) * leads.get(place, most_s) / most_s for place in range(count)]

    def _order_before(self, count: int) -> Sequence[int]:
        if any(counts.all < FADED for counts in self._counts.values()):
            return range(count)
        return self._last.get(count, range(count))

    def order(self, count: int) -> Sequence[int]:
        """Return the places of `count` speculators, the one that saves the most first.

        The order before stands where values differ by less than a margin: at first, and when the
        counts of a rejected one have faded, the given one.
        """
        if count < 2:
            return range(count)
        with self._lock:
            values = self._values(count)
            order: list[int] = []
            for place in self._order_before(count):  # insertion: mostly in order
                at = len(order)
                while at and values[place] > values[order[at - 1]] + MARGIN:
                    at -= 1
                order.insert(at, place)
            self._last[count] = tuple(order)
            return self._last[count]
