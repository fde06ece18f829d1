"""Measured costs: what a batch of n queries costs, and whether running ahead pays."""

import threading
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass
from statistics import median, median_low

RECENT = 5  # measurements of one kind that are kept
FORGET_AFTER = 64  # searches after which a size that no longer occurs is measured anew
MIN_ACCEPTANCE_RATE = 0.1  # below this share of right guesses nothing is written ahead


@dataclass(frozen=True, slots=True)
class Searched:
    """What was measured of one search."""

    queries: int
    seconds: float
    beside_s: float = 0.0  # how long the model wrote meanwhile
    busy_s: float = 0.0  # how long this process computed meanwhile


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


class Contention:
    """How fast the model writes while a search is running, as a share of its speed alone.

    1 where they do not take from each other (a remote store, another device), 1/2
    where they share one machine that either of them fills. Learned from steps
    written beside a search and steps written alone; 1 until there are some of both.
    """

    KEPT = 8  # steps of each kind that are kept
    ENOUGH = 3  # of each kind, before anything is concluded
    NOISE = 0.9  # a speed above this counts as 1
    LEAST = 0.5  # more than all of the machine cannot be taken; what is below is thrashing
    PATIENCE = 64  # steps beside searches, after which it is worth waiting for some alone
    FADING = 16  # searches after which a step beside a search is forgotten: things change

    def __init__(self) -> None:
        """Start with nothing measured."""
        self._alone: deque[float] = deque(maxlen=self.KEPT)
        self._beside: deque[tuple[float, float]] = deque(maxlen=self.KEPT)
        self._searches = 0
        self._steps_beside = 0
        self.speed = 1.0

    def wrote(self, seconds: float, beside_s: float) -> None:
        """Take in a step, and how much of it was written beside a search."""
        if beside_s <= 0.05 * seconds:
            self._alone.append(seconds)
        elif beside_s >= 0.5 * seconds:
            self._beside.append((seconds, beside_s))
            self._steps_beside += 1
        if self._steps_beside % self.ENOUGH == 0:
            self.speed = self._estimate()

    def searched(self) -> None:
        """Take in that there was a search; after some of them old steps are forgotten."""
        self._searches += 1
        if self._searches % self.FADING == 0 and self._beside:
            self._beside.popleft()
            self.speed = self._estimate()

    @property
    def unknown(self) -> bool:
        """Whether nothing is known for want of a step written alone."""
        return self._steps_beside >= self.PATIENCE and len(self._alone) < self.ENOUGH

    def alone_s(self, seconds: float, beside_s: float) -> float:
        """Estimate how long something would have taken alone."""
        return seconds - beside_s * (1 - self.speed)

    def _estimate(self) -> float:
        alone, beside = tuple(self._alone), tuple(self._beside)
        if min(len(alone), len(beside)) < self.ENOUGH:
            return 1.0
        usual_s = median(alone)
        speed = median((usual_s - (seconds - both_s)) / both_s for seconds, both_s in beside)
        return 1.0 if speed > self.NOISE else max(self.LEAST, speed)


class Costs:
    """What one engine's requests have measured together, and whether running ahead pays.

    A right guess hides a search, b(1) seconds of it; a wrong one costs the time
    until the segment written on it has stopped.
    """

    GUESSES = 32  # guesses that the guess rate is taken over
    WORTH_GUESSING = 0.05  # of a step: what can be hidden at most must be more than this
    # Two threads of one Python process that both compute take the lock and the caches from each
    # other: a step takes 2 to 4 ms longer beside a search of 1 to 5 ms (docs/benchmarks.md).
    SIDE_BY_SIDE_S = 0.003
    QUICK_GUESS_S = 0.0003  # a guess of up to this is never held back: a pool's takes less
    WORTH_WRITING = 0.05  # of a step: what is hidden on average must be more than this
    # What stopping cost is forgotten by with each guess, and what guessing cost with each search:
    # else nobody would try again.
    FADING = 0.97

    def __init__(self, curve: BatchCurve | None = None) -> None:
        """Start optimistic: with nothing measured, everything pays."""
        self.curve = curve or BatchCurve()
        self.contention = Contention()
        self._steps: deque[float] = deque(maxlen=RECENT)
        self._stop_s = 0.0
        self._guessing: deque[float] = deque(maxlen=RECENT)
        self._guess_s = 0.0  # that a guess takes as a rule
        self._busy: deque[bool] = deque(maxlen=RECENT)
        self._guesses: deque[bool] = deque(maxlen=self.GUESSES)
        # Policies ask for these several times a step, so they are worked out when they change.
        self.step_s: float | None = None  # that a step takes to write, as a rule
        self.guess_rate = 1.0  # the share of right guesses, two right ones assumed beforehand
        self._side_by_side_s = 0.0  # what a search costs the writing beside it, however short

    def wrote(self, seconds: float, beside_s: float = 0.0) -> None:
        """Take in how long a step took, from its question to its last token.

        Args:
            seconds: the whole step.
            beside_s: how long a search ran meanwhile.
        """
        self.contention.wrote(seconds, beside_s)
        self._steps.append(self.contention.alone_s(seconds, beside_s))
        self.step_s = median_low(tuple(self._steps))

    def searched(self, search: Searched) -> None:
        """Take in how long a search took, and what went on meanwhile."""
        self.contention.searched()
        self._guess_s *= self.FADING
        if search.beside_s <= 0.05 * search.seconds:  # then it computed for the search
            self._busy.append(search.busy_s >= 0.5 * search.seconds > 0.0)
            busy = tuple(self._busy)
            self._side_by_side_s = self.SIDE_BY_SIDE_S if sum(busy) > len(busy) / 2 else 0.0
        alone_s = self.contention.alone_s(search.seconds, search.beside_s)
        self.curve.observe(search.queries, alone_s)

    def stopped(self, seconds: float) -> None:
        """Take in how long a segment took from the word to stop until it had stopped."""
        self._stop_s += 0.3 * (seconds - self._stop_s)

    def guessed(self, seconds: float) -> None:
        """Take in how long a guess inside the loop took."""
        self._guessing.append(seconds)
        self._guess_s = median_low(tuple(self._guessing))

    def record_outcome(self, accepted: bool) -> None:
        """Take in whether a guess was right."""
        self._guesses.append(accepted)
        guesses = tuple(self._guesses)
        self.guess_rate = (sum(guesses) + 2) / (len(guesses) + 2)
        self._stop_s *= self.FADING

    def worth_guessing(self) -> bool:
        """Say whether what right guesses hide would be noticed, beside what all guesses take."""
        step_s = self.step_s
        if step_s is None or not self.curve.points:
            return True
        most_s = self.curve(1) - self._side_by_side_s
        if most_s < self.WORTH_GUESSING * step_s:
            return False
        return self._guess_s <= max(self.QUICK_GUESS_S, self.guess_rate * most_s)

    def worth_writing(self, min_acceptance_rate: float = MIN_ACCEPTANCE_RATE) -> bool:
        """Say whether writing on guesses saves more than the wrong ones cost.

        Args:
            min_acceptance_rate: the share of right guesses below which it never does.
        """
        rate, step_s = self.guess_rate, self.step_s
        if len(self._guesses) >= 8 and rate < min_acceptance_rate:
            return False
        if step_s is None or not self.curve.points:
            return True
        gain_s = rate * self.curve(1) - (1 - rate) * self._stop_s - self._side_by_side_s
        return gain_s >= self.WORTH_WRITING * step_s

    def worth_writing_beside(self, ahead: int) -> bool:
        """Say whether to write while a search is running, behind so many unconfirmed guesses.

        At a speed v, for each second that a search takes alone a second's worth is written,
        and both take 1 / v seconds. So it pays where the chance that all of it will be used
        is more than the 1 / v - 1 seconds that it costs.
        """
        speed = self.contention.speed
        return speed == 1.0 or self.guess_rate**ahead > 1 / speed - 1


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
