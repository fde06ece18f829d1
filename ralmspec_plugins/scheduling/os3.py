"""The policies of the paper's schedules: guess a number of steps, and verify them in one batch."""

from collections import deque
from collections.abc import Callable
from itertools import accumulate, repeat
from operator import mul

from ralmspec_plugins.scheduling.cost_model import Costs, Searched
from ralmspec_plugins.scheduling.policy import SchedulerState

# RaLMSpec's optimal speculation stride (OS3) and batch sizes as pure functions.


GAMMA_LIMIT = 0.6  # the paper's cap on the estimated acceptance rate
MAX_STRIDE = 64  # the paper's search for a stride has no bound
LEAST_SECONDS = 1e-9  # a free model or retriever: keeps ratios finite


def optimal_stride(
    a: float,
    b: float | Callable[[int], float],
    gamma: float,
    *,
    overlap: bool = False,
    speed: float = 1.0,
    limit: int = MAX_STRIDE,
    slack: float = 0.0,
) -> int:
    """Return the stride with the most verified steps per second (RaLMSpec's OS3).

    A round of stride s verifies (1 - gamma^s) / (1 - gamma) steps on average and
    takes s a + b(s), or with overlap, if all of its guesses are right,
    (s - 1) a + max(a, b(s)). If generation and search slow each other down to a
    share v of their speed (v = 1 in the paper), the shorter of a and b(s) takes 1 / v
    times as long, and the rest of the longer one runs at full speed.

    Args:
        a: Seconds to generate one step.
        b: Seconds to verify one batch: a constant, or a function of its size.
        gamma: Probability that one guess is right.
        overlap: Whether one more step is generated during the verification.
        speed: Of generation and search in parallel, as a share of their speed in isolation.
        limit: The largest stride to consider.
        slack: Share of the best rate that is traded for a longer stride.

    >>> [optimal_stride(1, 40, gamma) for gamma in (0.2, 0.4, 0.6, 0.8, 0.9)]
    [3, 4, 6, 11, 19]
    """
    a = max(a, LEAST_SECONDS)
    gamma = min(max(gamma, 0.0), 1.0 - 1e-9)

    rates: list[float] = []
    best = 0.0
    for stride in range(1, limit + 1):
        verify = max(b(stride) if callable(b) else b, LEAST_SECONDS)
        latency = stride * a + verify
        right = gamma**stride
        if overlap:
            both = max(a, verify) + min(a, verify) * (1 / speed - 1)
            latency = right * ((stride - 1) * a + both) + (1 - right) * latency
        rates.append((1 - right) / ((1 - gamma) * latency))
        best = max(best, rates[-1])
        if 1 / ((1 - gamma) * latency) < best * (1 - slack):
            break  # no longer round verifies enough: its latency is even higher
    enough = best * (1 - slack)
    return max(stride for stride, rate in enumerate(rates, start=1) if rate >= enough)


def estimate_gamma(matches: list[int], strides: list[int], limit: float = GAMMA_LIMIT) -> float:
    """Return the acceptance rate estimated from whole rounds.

    The maximum-likelihood estimate of a geometric distribution: right guesses over right
    guesses plus rounds with a wrong one, at most `limit`.

    >>> round(estimate_gamma([3, 4, 3, 2], [4, 4, 4, 4], limit=0.9), 3)
    0.8
    """
    right = sum(matches)
    wrong = sum(match < stride for match, stride in zip(matches, strides, strict=True))
    return min(right / (right + wrong), limit) if right + wrong else limit


def best_part(pending: int, b: Callable[[int], float], gamma: float, *, worth: float = 1.0) -> int:
    """Return the batch size in which to search `pending` queries, one batch after another.

    A batch is searched only if all guesses before it were right, so batches of m take
    b(m) + gamma^m b(m) + gamma^2m b(m) + ... seconds, the last one less. One search for
    all is fastest where batches are nearly free; single ones detect a wrong guess earliest.

    Args:
        pending: their number.
        b: seconds of a search by its size.
        gamma: probability that one guess is right.
        worth: the minimum speedup over single searches for which batches are preferred:
            the first query of a batch waits for its last one.

    >>> best_part(31, lambda n: 39 + n, 0.95)
    31
    >>> best_part(31, lambda n: 39 + n, 0.7)
    8
    >>> best_part(31, lambda n: n, 0.95)
    1
    """
    seconds = [max(b(size), LEAST_SECONDS) for size in range(1, pending + 1)]
    right = list(accumulate(repeat(min(max(gamma, 0.0), 1.0), pending), mul, initial=1.0))

    def takes(part: int) -> float:
        whole, rest = divmod(pending, part)
        total = seconds[part - 1] * sum(right[: whole * part : part])
        return total + (right[whole * part] * seconds[rest - 1] if rest else 0.0)

    best = min(range(1, pending + 1), key=lambda part: (takes(part), -part))
    return best if takes(1) > worth * takes(best) else 1


def worth_gathering(a: float, b: Callable[[int], float], gamma: float, *, lanes: int = 1) -> int:
    """Return how many queries a search should have while the model continues to generate.

    During a search of b(1), b(1) / a steps are generated. So a search with fewer queries
    blocks its lane for the following ones, at each start and after each wrong guess. The
    result never exceeds OS3's stride, beyond which a wrong guess is detected too late.

    >>> [worth_gathering(1.0, lambda n: 39 + n, gamma) for gamma in (0.6, 0.9, 0.99)]
    [5, 14, 40]
    """
    written = round(b(1) / max(a, LEAST_SECONDS) / lanes)
    if written <= 1:
        return 1
    return optimal_stride(a, b, gamma, limit=min(written, MAX_STRIDE))


# The cap on the acceptance rate makes OS3's estimate pessimistic, and the rate of verified steps is
# flat around its maximum: of strides that differ by less than this the longest is used
# (docs/decisions/0003).
STRIDE_SLACK = 0.01


class FixedStridePolicy:
    """Speculates `stride` steps, verifies them in one batch, and repeats.

    A round is one step with verified hits and stride - 1 with guesses; the last
    query's guess is not used before the batch is in flight.
    """

    replacement = None

    def __init__(self, costs: Costs, *, overlap: bool, stride: int) -> None:
        self._costs = costs
        self._overlap = overlap
        self._stride = stride

    def has_room(self) -> bool:
        """Return true: the paper's schedules do not count the segments of other requests."""
        return True

    def worth_guessing(self, *, early: bool = False) -> bool:
        """Return true: a fixed stride reproduces the paper."""
        return True

    def worth_prefetching(self) -> bool:
        """Return whether guesses are made."""
        return self.worth_guessing()

    def may_write(self, view: SchedulerState) -> bool:
        """Return whether the batch has room; during a search, one more with `overlap`."""
        if view.searching:
            return self._overlap and view.ahead < view.in_flight
        return view.pending < self._stride

    def batches(self, view: SchedulerState) -> list[int]:
        """Return a full batch, or all pending queries if nothing can be generated."""
        if view.searching or not view.pending:
            return []
        return [view.pending] if view.stalled or view.pending >= self._stride else []

    def wrote(
        self, seconds: float, beside_s: float | None = 0.0, before_s: float | None = 0.0
    ) -> None:
        """Do nothing: a fixed stride is not adapted."""

    def searched(self, search: Searched) -> None:
        """Add a search to the batch curve."""
        self._costs.searched(search)

    def worth_encoding_ahead(self, stop_s: float) -> bool:
        """Return true: a fixed stride is not adapted."""
        return True

    def encoded(self, seconds: float, lanes: int) -> None:
        """Do nothing: a fixed stride is not adapted."""

    def stopped(self, seconds: float) -> None:
        """Do nothing: a fixed stride is not adapted."""

    def guessed(self, seconds: float) -> None:
        """Do nothing: a fixed stride is not adapted."""

    def record_outcome(self, accepted: bool) -> None:
        """Do nothing: a fixed stride is not adapted."""


class OS3Policy(FixedStridePolicy):
    """Rounds whose stride is chosen again after each verification."""

    def __init__(
        self,
        costs: Costs,
        *,
        overlap: bool,
        window: int,
        gamma_limit: float,
        max_stride: int,
    ) -> None:
        super().__init__(costs, overlap=overlap, stride=1)
        self._gamma_limit = gamma_limit
        self._max_stride = max_stride
        self._rounds: deque[list[bool]] = deque(maxlen=window)
        self._over = False

    def may_write(self, view: SchedulerState) -> bool:
        """Return whether the batch has room and speculation saves more than wrong guesses cost."""
        self._renew(view)
        if view.searching and not self._costs.worth_writing_beside(view.ahead):
            return False
        return super().may_write(view) and self._costs.worth_writing(early=view.early)

    def worth_guessing(self, *, early: bool = False) -> bool:
        """Return whether hiding a search would save a noticeable share of a step.

        Args:
            early: whether the encoding of the query is hidden, too.
        """
        return self._costs.worth_guessing(early=early)

    def wrote(
        self, seconds: float, beside_s: float | None = 0.0, before_s: float | None = 0.0
    ) -> None:
        """Record the seconds of a step."""
        self._costs.wrote(seconds, beside_s, before_s)

    def searched(self, search: Searched) -> None:
        """Add a search to the batch curve, and end the round."""
        super().searched(search)
        self._over = True

    def batches(self, view: SchedulerState) -> list[int]:
        """Return the batches as for a fixed stride; outcomes from now on belong to this round."""
        self._renew(view)  # a guess from a worker is too late for `worth_guessing`
        sizes = super().batches(view)
        if sizes:
            self._rounds.append([])
        return sizes

    def worth_encoding_ahead(self, stop_s: float) -> bool:
        """Return whether a query that depends on a guess may be encoded in the last free lane."""
        return self._costs.worth_encoding_ahead(stop_s)

    def encoded(self, seconds: float, lanes: int) -> None:
        """Record the seconds of an encoding, which an early guess hides."""
        self._costs.encoded(seconds, lanes)

    def stopped(self, seconds: float) -> None:
        """Record the cost of a wrong guess."""
        self._costs.stopped(seconds)

    def guessed(self, seconds: float) -> None:
        """Record the cost of a guess."""
        self._costs.guessed(seconds)

    def record_outcome(self, accepted: bool) -> None:
        """Record the outcome of a guess in the last verified round."""
        self._costs.record_outcome(accepted)
        if self._rounds:
            self._rounds[-1].append(accepted)

    def _renew(self, view: SchedulerState) -> None:
        """Choose the stride at the first decision after a round."""
        if self._over and not view.searching:
            self._over = False
            self._stride = self._choose()

    def _choose(self) -> int:
        rounds = [guesses for guesses in self._rounds if guesses]
        if self._costs.step_s is None or not rounds:
            return self._stride
        gamma = estimate_gamma(
            [sum(guesses) for guesses in rounds],
            [len(guesses) for guesses in rounds],
            self._gamma_limit,
        )
        return optimal_stride(
            self._costs.step_s,
            self._costs.curve,
            gamma,
            overlap=self._overlap,
            speed=self._costs.contention.speed,
            limit=self._max_stride,
            slack=STRIDE_SLACK,
        )
