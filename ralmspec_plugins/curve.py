"""Measured costs: what a batch of n queries costs, and whether running ahead pays."""

import threading
from bisect import bisect_left
from collections import deque

SMOOTHING = 0.3  # weight of the newest measurement


class Smoothed:
    """An exponentially smoothed duration in seconds; `value` is `None` before the first."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        """Start without a value."""
        self.value: float | None = None

    def observe(self, seconds: float) -> None:
        """Take in one measurement."""
        self.value = (
            seconds if self.value is None else self.value + SMOOTHING * (seconds - self.value)
        )


class Gains:
    """Whether running ahead can pay: measured costs, and how often guesses were right.

    A right guess hides a search, at most b(1) seconds of it; a wrong one costs the
    time until the segment written on it has stopped.
    """

    RECENT = 32  # guesses that the guess rate is taken over
    WORTH_GUESSING = 0.05  # of a step: what can be hidden at most must be more than this
    WORTH_WRITING = 0.02  # of a step: what is hidden on average must be more than this
    HOPELESS = 0.1  # below this share of right guesses nothing is written ahead

    def __init__(self, curve: "BatchCurve") -> None:
        """Start optimistic: with nothing measured, everything pays."""
        self._curve = curve
        self._recent: deque[bool] = deque(maxlen=self.RECENT)
        self.step_s = Smoothed()
        self.stop_s = Smoothed()  # from the word to stop until a segment has stopped

    def judged(self, right: bool) -> None:
        """Take in whether a guess was right."""
        self._recent.append(right)

    @property
    def guess_rate(self) -> float:
        """The share of right guesses, with two right ones assumed beforehand."""
        return (sum(self._recent) + 2) / (len(self._recent) + 2)

    def worth_guessing(self) -> bool:
        """Say whether hiding all of the searching would be noticed at all."""
        if self.step_s.value is None or not self._curve.points:
            return True
        return self._curve(1) >= self.WORTH_GUESSING * self.step_s.value

    def worth_writing(self) -> bool:
        """Say whether writing on guesses saves more than the wrong ones cost."""
        rate = self.guess_rate
        if len(self._recent) >= 8 and rate < self.HOPELESS:
            return False
        if self.step_s.value is None or not self._curve.points:
            return True
        gain_s = rate * self._curve(1) - (1 - rate) * (self.stop_s.value or 0.0)
        return gain_s >= self.WORTH_WRITING * self.step_s.value


class BatchCurve:
    """The seconds b(n) that a search of n queries takes, learned while running.

    Between measured sizes the curve is linear; beyond the largest it goes on with
    the slope from the smallest, and is flat while only one size was seen: that
    optimism costs one batch, which then is measured. It never falls as n grows.
    Thread-safe, and shared by all requests to one retriever.

    >>> curve = BatchCurve()
    >>> for size, seconds in ((1, 0.5), (3, 0.7)):
    ...     curve.observe(size, seconds)
    >>> [round(curve(size), 3) for size in (1, 2, 3, 8)]
    [0.5, 0.6, 0.7, 1.2]
    """

    def __init__(self) -> None:
        """Start with nothing measured: b(n) is 0."""
        self._measured: dict[int, Smoothed] = {}
        self._points: list[tuple[int, float]] = []
        self._lock = threading.Lock()

    def observe(self, queries: int, seconds: float) -> None:
        """Take in how long one search of this many queries took."""
        with self._lock:
            self._measured.setdefault(queries, Smoothed()).observe(seconds)
            self._points = _rising(self._measured)

    @property
    def points(self) -> list[tuple[int, float]]:
        """The measured sizes with their seconds, rising."""
        return list(self._points)

    def __call__(self, queries: int) -> float:
        """Predict the seconds of a search of this many queries."""
        points = self._points
        if not points:
            return 0.0
        index = bisect_left(points, (queries, 0.0))
        if index == 0:
            return points[0][1]
        if index < len(points):
            return min(_line(points[index - 1], points[index], queries), points[index][1])
        return points[-1][1] if len(points) == 1 else _line(points[0], points[-1], queries)


def _rising(measured: dict[int, Smoothed]) -> list[tuple[int, float]]:
    """List the measured sizes with seconds that never fall."""
    points: list[tuple[int, float]] = []
    for size in sorted(measured):
        seconds = measured[size].value or 0.0
        points.append((size, max(seconds, points[-1][1] if points else 0.0)))
    return points


def _line(low: tuple[int, float], high: tuple[int, float], queries: int) -> float:
    """Read the straight line through two points."""
    return low[1] + (high[1] - low[1]) * (queries - low[0]) / (high[0] - low[0])
