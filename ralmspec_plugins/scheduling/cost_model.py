"""Measured costs: the seconds of a batch of n queries, and whether speculation pays off."""

import copy
import threading
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass
from math import inf, isinf
from statistics import median, median_low

from ralmspec_plugins.scheduling.encoder_time import EncoderTime
from ralmspec_plugins.scheduling.load import ModelLoad, StoreTime

RECENT = 5  # kept measurements of one kind
FORGET_AFTER = 64  # searches after which a size that no longer occurs is measured again
MIN_ACCEPTANCE_RATE = 0.1  # below this acceptance rate no segment is speculative


@dataclass(frozen=True, slots=True)
class Searched:
    """The measurements of one search."""

    queries: int
    seconds: float
    beside_s: float = 0.0  # overlap with generation


class BatchCurve:
    """The seconds b(n) that a search of n queries takes, learned at run time.

    The cost of a size is the median of its last measurements, so that one slow
    outlier has little effect. Between measured sizes the curve is
    linear; beyond the largest it continues with the slope from the smallest, and it is
    constant while only one size was measured: this optimistic estimate costs one batch,
    which is then measured. It never decreases as n grows. Thread-safe.

    >>> curve = BatchCurve()
    >>> for size, seconds in ((1, 0.5), (3, 0.7)):
    ...     curve.observe(size, seconds)
    >>> [round(curve(size), 3) for size in (1, 2, 3, 8)]
    [0.5, 0.6, 0.7, 1.2]
    """

    def __init__(self) -> None:
        """Create a curve without measurements: b(n) is 0."""
        self._measured: dict[int, deque[float]] = {}
        self._seen_at: dict[int, int] = {}  # size -> number of the search at which it last occurred
        self._searches = 0
        self._points: list[tuple[int, float]] = []
        self._lock = threading.Lock()

    def observe(self, queries: int, seconds: float) -> None:
        """Record how long one search of this many queries took."""
        with self._lock:
            self._searches += 1
            self._measured.setdefault(queries, deque(maxlen=RECENT)).append(seconds)
            self._seen_at[queries] = self._searches
            for size, at in tuple(self._seen_at.items()):
                if at < self._searches - FORGET_AFTER:
                    del self._seen_at[size], self._measured[size]
            self._points = _rising(self._measured)

    def copy(self) -> "BatchCurve":
        """Return a curve that begins with these measurements."""
        other = BatchCurve()
        with self._lock:
            other._measured = {size: kept.copy() for size, kept in self._measured.items()}
            other._seen_at, other._searches = dict(self._seen_at), self._searches
            other._points = list(self._points)
        return other

    @property
    def points(self) -> list[tuple[int, float]]:
        """The measured sizes with their seconds, ascending."""
        return list(self._points)

    def __call__(self, queries: int) -> float:
        """Return the predicted seconds of a search of this many queries."""
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
    """The model's speed during a search, as a share of its speed without one.

    1 if they do not slow each other down (a remote store, another device), 1/2
    if they share one machine that either of them uses fully. Learned from steps
    with and without a search in parallel; 1 until there are some of both.
    """

    KEPT = 8  # kept steps of each kind
    ENOUGH = 3  # steps of each kind before an estimate is made
    NOISE = 0.9  # a speed above this counts as 1
    LEAST = 0.5  # a search cannot use more than the whole machine; lower speeds are thrashing
    PATIENCE = (
        64  # steps in parallel with searches, after which a delay to measure others is worthwhile
    )
    FADING = 16  # searches after which the measurement of a step in parallel with one expires

    def __init__(self) -> None:
        """Create an estimate without measurements."""
        self._alone: deque[float] = deque(maxlen=self.KEPT)
        self._beside: deque[tuple[float, float]] = deque(maxlen=self.KEPT)
        self._searches = 0
        self._steps_beside = 0
        self.speed = 1.0

    def wrote(self, seconds: float, beside_s: float) -> None:
        """Record a step, and its overlap with searches."""
        if beside_s <= 0.05 * seconds:
            self._alone.append(seconds)
        elif beside_s >= 0.5 * seconds:
            self._beside.append((seconds, beside_s))
            self._steps_beside += 1
        if self._steps_beside % self.ENOUGH == 0:
            self.speed = self._estimate()

    def searched(self) -> None:
        """Record a search; after some of them old measurements expire."""
        self._searches += 1
        if self._searches % self.FADING == 0 and self._beside:
            self._beside.popleft()
            self.speed = self._estimate()

    @property
    def unknown(self) -> bool:
        """Whether the estimate lacks steps without a search in parallel."""
        return self._steps_beside >= self.PATIENCE and len(self._alone) < self.ENOUGH

    def alone_s(self, seconds: float, beside_s: float) -> float:
        """Return the estimated seconds of work if nothing had run in parallel."""
        return seconds - beside_s * (1 - self.speed)

    def _estimate(self) -> float:
        alone, beside = tuple(self._alone), tuple(self._beside)
        if min(len(alone), len(beside)) < self.ENOUGH:
            return 1.0
        usual_s = median(alone)
        speed = median((usual_s - (seconds - both_s)) / both_s for seconds, both_s in beside)
        return 1.0 if speed > self.NOISE else max(self.LEAST, speed)


class Costs:
    """Costs measured by all requests of an engine, and whether speculation pays off.

    A right guess hides up to b(1) seconds of a search, and the encoding of its query, too, if it
    is made before that; a wrong one costs the time until its segment has stopped.
    """

    GUESSES = 32  # guesses in the average acceptance rate
    WORTH_GUESSING = 0.05  # share of a step that the largest possible gain must exceed
    # Two computing threads of one Python process compete for the lock and the caches: a step takes
    # 2 to 4 ms longer in parallel with a search of 1 to 5 ms (docs/benchmarks.md).
    SIDE_BY_SIDE_S = 0.003
    QUICK_GUESS_S = 0.0003  # a faster guess is always made: a passage cache takes less
    WORTH_WRITING = 0.05  # share of a step that the average gain must exceed
    # The cost of guessing decays with each search, and the cost of stopping is measured again
    # after some outcomes: otherwise speculation would never be tried again.
    FADING = 0.97
    FADING_STOP = 0.985
    PREFETCH_TRIAL = 16  # of so many searches one prefetches where guesses are too seldom right
    STOP_SHARE = 0.5  # of a step until a segment has stopped, before that was measured
    LONG_SEARCH = 2.0  # steps of a search that is long

    def __init__(
        self,
        curve: BatchCurve | None = None,
        load: ModelLoad | None = None,
        store: StoreTime | None = None,
    ) -> None:
        """Create optimistic costs: without measurements, speculation pays off."""
        self.curve = curve or BatchCurve()
        self.load = load or ModelLoad()
        self.store = store or StoreTime()
        self.encoder = EncoderTime()
        self.contention = Contention()
        self._steps: deque[float] = deque(maxlen=RECENT)
        self._stops: deque[float] = deque(maxlen=RECENT)
        self._searches = 0
        self._segments: deque[float] = deque(maxlen=RECENT)
        self._encodings: deque[float] = deque(maxlen=RECENT)
        self._since_stop = 0  # outcomes since a segment was last stopped
        self._guessing: deque[float] = deque(maxlen=RECENT)
        self._guess_s = 0.0  # usual duration of a guess
        self._guesses: deque[bool] = deque(maxlen=self.GUESSES)
        # Policies read these several times a step, so they are computed when they change.
        self.step_s: float | None = None  # usual duration of a step
        self._encode_s = 0.0  # what a guess made before a query is encoded hides of its encoding
        self.guess_rate = 1.0  # acceptance rate, with two right guesses as the prior
        self._careful_rate = 0.5  # acceptance rate, with one right and one wrong as the prior
        self._side_by_side_s = 0.0  # fixed cost of a search for a segment in parallel

    def copy(self) -> "Costs":
        """Return costs that begin with what is known here, except for contention.

        The model and the store are the same ones, and so is their load.
        """
        other = copy.copy(self)
        other.curve, other.contention = self.curve.copy(), Contention()
        for name in ("_steps", "_segments", "_stops", "_encodings", "_guessing", "_guesses"):
            setattr(other, name, getattr(self, name).copy())
        return other

    def wrote(
        self, seconds: float, beside_s: float | None = 0.0, before_s: float | None = 0.0
    ) -> None:
        """Record the seconds of a step, from its query to its last token.

        Args:
            seconds: those of its segment.
            beside_s: its overlap with searches; `None` if it is not comparable with other segments.
            before_s: the seconds before the segment: of forming the query, encoding and guessing;
                `None` if they are not known yet: then the segment is recorded, and no step.
        """
        if beside_s is not None:
            self.contention.wrote(seconds, beside_s)
            seconds = self.contention.alone_s(seconds, beside_s)
        self._segments.append(seconds)
        if before_s is None:
            return
        self._steps.append(before_s + seconds)
        self.step_s = median_low(tuple(self._steps))

    def searched(self, search: Searched) -> None:
        """Record the seconds of a search, and its overlap with generation."""
        self.contention.searched()
        self._searches += 1
        self._guess_s *= self.FADING
        self._side_by_side_s = self.SIDE_BY_SIDE_S if self.store.computes_here else 0.0
        alone_s = self.contention.alone_s(search.seconds, search.beside_s)
        hidden_s = self.store.hidden_s(search.seconds)
        self.curve.observe(search.queries, min(alone_s, hidden_s))

    @property
    def is_swamped(self) -> bool:
        """Whether all that is done for a request delays the others.

        A crowd uses the processor up. Only where the store is elsewhere, and it is known how many
        segments the model generates at once, does that number alone decide.
        """
        known = not isinf(self.load.capacity) and not self.store.computes_here
        return self.store.is_swamped and not known

    def encoded(self, seconds: float, lanes: int = 1) -> None:
        """Record the seconds of an encoding that a worker made, or that was awaited.

        Args:
            seconds: those of the encoding.
            lanes: how many may be made at a time.
        """
        self._encodings.append(seconds)
        encode_s, segment_s = _usual(self._encodings), _usual(self._segments)
        # Of right guesses, one is encoded every encode_s / lanes: with few lanes less is hidden.
        most_s = segment_s + encode_s * (1 - 1 / lanes) if self._segments else inf
        self._encode_s = 0.0 if self.encoder.computes_here else min(encode_s, most_s)

    def worth_encoding_ahead(self, stop_s: float) -> bool:
        """Return whether a query that depends on a guess may be encoded in the last free lane.

        If the guess is right, the encoding begins earlier by the time of a search. If it is wrong,
        the right query waits for the lane until that encoding has ended.

        Args:
            stop_s: the maximum time until an encoding that is not needed has stopped.
        """
        if not self._encodings:
            return True
        search_s, rate = self.curve(1), self._careful_rate
        blocked_s = max(0.0, min(stop_s, _usual(self._encodings) - search_s))
        return rate * search_s >= (1 - rate) * blocked_s

    def stopped(self, seconds: float) -> None:
        """Record the seconds from the cancellation of a segment to its end."""
        self._stops.append(seconds)
        self._since_stop = 0

    def guessed(self, seconds: float) -> None:
        """Record the seconds of a guess inside the loop."""
        self._guessing.append(seconds)
        self._guess_s = median_low(tuple(self._guessing))

    def record_outcome(self, accepted: bool) -> None:
        """Record whether a guess was right."""
        self._guesses.append(accepted)
        guesses = tuple(self._guesses)
        self.guess_rate = (sum(guesses) + 2) / (len(guesses) + 2)
        self._careful_rate = (sum(guesses) + 1) / (len(guesses) + 2)
        self._since_stop += 1

    def _hidden_s(self, *, early: bool) -> float:
        """Return the most seconds that a right guess hides."""
        return self.curve(1) + (self._encode_s if early else 0.0)

    def worth_guessing(self, *, early: bool = False) -> bool:
        """Return whether the time that right guesses hide exceeds the time of all guesses.

        It does not while the process is swamped with requests.

        Args:
            early: whether they are made before their query is encoded.
        """
        if self.is_swamped:
            return False
        if not self.curve.points:
            return True
        most_s = self._hidden_s(early=early) - self._side_by_side_s
        if self.step_s is None:
            return most_s > 0.0
        if most_s < self.WORTH_GUESSING * self.step_s:
            return False
        return self._guess_s <= max(self.QUICK_GUESS_S, self.guess_rate * most_s)

    def worth_prefetching(self, min_acceptance_rate: float = MIN_ACCEPTANCE_RATE) -> bool:
        """Return whether more hits than needed are worth their time: those that guesses use.

        Args:
            min_acceptance_rate: the acceptance rate below which only a trial asks for them.
        """
        if self._is_seldom_right(min_acceptance_rate) and self._searches % self.PREFETCH_TRIAL:
            return False
        return self.worth_guessing(early=True)  # guesses by a query's text may use them, too

    def _is_seldom_right(self, min_acceptance_rate: float) -> bool:
        return len(self._guesses) >= 8 and self.guess_rate < min_acceptance_rate

    def worth_writing(
        self, min_acceptance_rate: float = MIN_ACCEPTANCE_RATE, *, early: bool = False
    ) -> bool:
        """Return whether speculative segments save more than wrong guesses cost.

        Args:
            min_acceptance_rate: the acceptance rate below which the result is false.
            early: whether they begin before their query is encoded.
        """
        step_s = self.step_s
        if self._is_seldom_right(min_acceptance_rate):
            return False
        if step_s is None or not self.curve.points:
            return True
        rate = self._careful_rate
        hidden_s = self._hidden_s(early=early)
        gain_s = rate * hidden_s - (1 - rate) * self.stop_s - self._side_by_side_s
        return gain_s >= self.WORTH_WRITING * step_s

    def is_careful(self, *, early: bool = False) -> bool:
        """Return whether to wait for the first outcome of a guess before the next one is used.

        That is while no outcome is known, unless a search is much longer than a step: the
        discarded segments are then written while the model would wait.

        Args:
            early: whether guesses are made before their query is encoded.
        """
        if self._guesses or self.step_s is None or not self.curve.points:
            return False
        return self._hidden_s(early=early) < self.LONG_SEARCH * self.step_s

    @property
    def stop_s(self) -> float:
        """The usual seconds that a wrong guess costs; a share of a step before one was measured."""
        fading: float = self.FADING_STOP**self._since_stop
        if self._stops:
            return fading * sum(self._stops) / len(self._stops)
        return fading * (self.step_s or 0.0) * self.STOP_SHARE

    def worth_writing_beside(self, ahead: int) -> bool:
        """Return whether to generate during a search, after this many unverified guesses.

        At a relative speed v, one second of generation in parallel with one second of search
        takes 1 / v seconds. So it pays off if the probability that the segment is used
        exceeds the 1 / v - 1 seconds that it costs.
        """
        speed = self.contention.speed
        return speed == 1.0 or self.guess_rate**ahead > 1 / speed - 1


def _usual(recent: deque[float]) -> float:
    """Return the median of the last measurements, 0 without any."""
    return median_low(tuple(recent)) if recent else 0.0


def _rising(measured: dict[int, deque[float]]) -> list[tuple[int, float]]:
    """Return the measured sizes with seconds that never decrease."""
    points: list[tuple[int, float]] = []
    for size in sorted(measured):
        seconds = median_low(measured[size])
        points.append((size, max(seconds, points[-1][1] if points else 0.0)))
    return points


def _line(low: tuple[int, float], high: tuple[int, float], queries: int) -> float:
    """Return the value of the line through two points."""
    return low[1] + (high[1] - low[1]) * (queries - low[0]) / (high[0] - low[0])
