"""Measured costs: what a batch of n queries costs, and whether running ahead pays."""

import threading
from bisect import bisect_left
from collections import deque
from statistics import median_low

RECENT = 5  # measurements of one kind that are kept
FORGET_AFTER = 64  # searches after which a size that no longer occurs is measured anew


class BatchCurve:
    """The seconds b(n) that a search of n queries takes, learned while running.

    A size's cost is the median of its last measurements, so that one cold or
    disturbed search does not count for long. Between measured sizes the curve is
    linear; beyond the largest it goes on with the slope from the smallest, and is
    flat while only one size was seen: that optimism costs one batch, which then is
    measured. It never falls as n grows. Thread-safe.

    >>> curve = BatchCurve()
    >>> for size, seconds in ((1, 0.5), (3, 0.7)):
    ...     curve.observe(size, seconds)
    >>> [round(curve(size), 3) for size in (1, 2, 3, 8)]
    [0.5, 0.6, 0.7, 1.2]
    """

    def __init__(self) -> None:
        """Start with nothing measured: b(n) is 0."""
        self._measured: dict[int, deque[float]] = {}
        self._seen_at: dict[int, int] = {}  # size -> the search it was last seen at
        self._searches = 0
        self._points: list[tuple[int, float]] = []
        self._lock = threading.Lock()

    def observe(self, queries: int, seconds: float) -> None:
        """Take in how long one search of this many queries took."""
        with self._lock:
            self._searches += 1
            self._measured.setdefault(queries, deque(maxlen=RECENT)).append(seconds)
            self._seen_at[queries] = self._searches
            for size, at in tuple(self._seen_at.items()):
                if at < self._searches - FORGET_AFTER:
                    del self._seen_at[size], self._measured[size]
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


class Costs:
    """What one engine's requests have measured together, and whether running ahead pays.

    A right guess hides a search, b(1) seconds of it; a wrong one costs the time
    until the segment written on it has stopped.
    """

    GUESSES = 32  # guesses that the guess rate is taken over
    WORTH_GUESSING = 0.05  # of a step: what can be hidden at most must be more than this
    WORTH_WRITING = 0.02  # of a step: what is hidden on average must be more than this
    HOPELESS = 0.1  # below this share of right guesses nothing is written ahead
    FADING = 0.97  # what stopping cost is forgotten by, each guess: else nobody would try again

    def __init__(self, curve: BatchCurve | None = None) -> None:
        """Start optimistic: with nothing measured, everything pays."""
        self.curve = curve or BatchCurve()
        self._steps: deque[float] = deque(maxlen=RECENT)
        self._stop_s = 0.0
        self._guesses: deque[bool] = deque(maxlen=self.GUESSES)

    def wrote(self, seconds: float) -> None:
        """Take in how long a step took, from its question to its last token."""
        self._steps.append(seconds)

    def stopped(self, seconds: float) -> None:
        """Take in how long a segment took from the word to stop until it had stopped."""
        self._stop_s += 0.3 * (seconds - self._stop_s)

    def judged(self, right: bool) -> None:
        """Take in whether a guess was right."""
        self._guesses.append(right)
        self._stop_s *= self.FADING

    @property
    def step_s(self) -> float | None:
        """The seconds that a step takes to write, as a rule; `None` before the first."""
        steps = tuple(self._steps)
        return median_low(steps) if steps else None

    @property
    def guess_rate(self) -> float:
        """The share of right guesses, with two right ones assumed beforehand."""
        guesses = tuple(self._guesses)
        return (sum(guesses) + 2) / (len(guesses) + 2)

    def worth_guessing(self) -> bool:
        """Say whether hiding all of the searching would be noticed at all."""
        step_s = self.step_s
        if step_s is None or not self.curve.points:
            return True
        return self.curve(1) >= self.WORTH_GUESSING * step_s

    def worth_writing(self) -> bool:
        """Say whether writing on guesses saves more than the wrong ones cost."""
        rate, step_s = self.guess_rate, self.step_s
        if len(self._guesses) >= 8 and rate < self.HOPELESS:
            return False
        if step_s is None or not self.curve.points:
            return True
        gain_s = rate * self.curve(1) - (1 - rate) * self._stop_s
        return gain_s >= self.WORTH_WRITING * step_s


def _rising(measured: dict[int, deque[float]]) -> list[tuple[int, float]]:
    """List the measured sizes with seconds that never fall."""
    points: list[tuple[int, float]] = []
    for size in sorted(measured):
        seconds = median_low(measured[size])
        points.append((size, max(seconds, points[-1][1] if points else 0.0)))
    return points


def _line(low: tuple[int, float], high: tuple[int, float], queries: int) -> float:
    """Read the straight line through two points."""
    return low[1] + (high[1] - low[1]) * (queries - low[0]) / (high[0] - low[0])
