"""How far to run ahead, and when to search: fixed stride, OS3, continuous.

A schedule is a frozen setting; `begin()` makes the policy that decides for one
request. Decisions are taken from a `View` of the loop and from what was measured:
how long a step takes to write, what a batch of n queries costs, and how often
guesses were right.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ralmspec_plugins.curve import BatchCurve, Smoothed
from ralmspec_plugins.errors import ConfigError

GAMMA_LIMIT = 0.6  # the paper's cap on the estimated guess rate (PAPERS 1.6)
# The cap makes the estimate pessimistic, and the rate is flat around its best: of strides
# that differ by less than this the longest is taken.
STRIDE_SLACK = 0.01
MAX_STRIDE = 64  # the paper's search for a stride has no bound (PAPERS 1.6)
LEAST_SECONDS = 1e-9  # a free model or retriever: keeps ratios finite


@dataclass(frozen=True, slots=True)
class View:
    """What a policy may know of the loop at the moment of a decision."""

    pending: int  # queries that wait to go out
    searching: int  # searches that are out
    in_flight: int  # queries in them
    ahead: int  # steps written, or being written, on guesses that no search confirmed yet
    stalled: bool  # nothing can be written until a search answers


class Policy(Protocol):
    """Decides for one request; told of everything that was measured."""

    def may_write(self, view: View) -> bool:
        """Say whether the next step may be written on its guess."""
        ...

    def batches(self, view: View) -> list[int]:
        """Give the sizes of the searches to start now, over the pending queries in order."""
        ...

    def wrote(self, seconds: float) -> None:
        """Take in how long a step took from its question to its last token."""
        ...

    def searched(self, queries: int, seconds: float) -> None:
        """Take in how long a search of this many queries took."""
        ...

    def judged(self, right: bool) -> None:
        """Take in whether a guess was right, in the order of the steps."""
        ...


class Schedule(Protocol):
    """A setting that makes policies."""

    def begin(self, curve: BatchCurve) -> Policy:
        """Make the policy for one request; the curve outlives it."""
        ...


def optimal_stride(
    a: float,
    b: float | Callable[[int], float],
    gamma: float,
    *,
    overlap: bool = False,
    limit: int = MAX_STRIDE,
    slack: float = 0.0,
) -> int:
    """Find the stride with the most verified steps a second (RaLMSpec's OS3, PAPERS 1.6).

    A round of stride s verifies (1 - gamma^s) / (1 - gamma) steps on average and
    takes s a + b(s), or with overlap, if all of its guesses are right,
    (s - 1) a + max(a, b(s)).

    Args:
        a: Seconds to write one step.
        b: Seconds to verify one batch: a constant, or a function of its size.
        gamma: Probability that one guess is right.
        overlap: Whether one more step is written during the verification.
        limit: The largest stride to consider.
        slack: Share of the best rate that may be given up for a longer stride.

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
            latency = right * ((stride - 1) * a + max(a, verify)) + (1 - right) * latency
        rates.append((1 - right) / ((1 - gamma) * latency))
        best = max(best, rates[-1])
        if 1 / ((1 - gamma) * latency) < best * (1 - slack):
            break  # no longer round can verify enough: its latency is higher still
    enough = best * (1 - slack)
    return max(stride for stride, rate in enumerate(rates, start=1) if rate >= enough)


def estimate_gamma(matches: list[int], strides: list[int], limit: float = GAMMA_LIMIT) -> float:
    """Estimate how often a guess is right from whole rounds (PAPERS 1.6).

    The maximum-likelihood estimate of a geometric stop: right guesses over right
    guesses plus rounds that had a wrong one, at most `limit`.

    >>> round(estimate_gamma([3, 4, 3, 2], [4, 4, 4, 4], limit=0.9), 3)
    0.8
    """
    right = sum(matches)
    wrong = sum(match < stride for match, stride in zip(matches, strides, strict=True))
    return min(right / (right + wrong), limit) if right + wrong else limit


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedStride:
    """Verify every `stride` guesses in one batch: the paper's base.

    With `overlap`, the next step is written while the batch is out, on the last
    query's guess (the paper computes this gain; here it is run).
    """

    stride: int = 3  # RaLMSpec's section 5 (PAPERS 1.10)
    overlap: bool = False

    def __post_init__(self) -> None:
        """Refuse a stride that never verifies."""
        if self.stride < 1:
            raise ConfigError(f"stride must be at least 1, got {self.stride}")

    def begin(self, curve: BatchCurve) -> Policy:
        """Make the policy for one request."""
        return _Rounds(curve, overlap=self.overlap, stride=self.stride)


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimalStride:
    """Choose the stride of each round from what was measured: the paper's OS3."""

    overlap: bool = True
    window: int = 5  # rounds that the guess rate is estimated over (PAPERS 1.10)
    gamma_limit: float = GAMMA_LIMIT
    max_stride: int = MAX_STRIDE

    def __post_init__(self) -> None:
        """Refuse settings without a meaning."""
        if self.window < 1:
            raise ConfigError(f"window must be at least 1, got {self.window}")
        if not 0.0 <= self.gamma_limit < 1.0:
            raise ConfigError(f"gamma_limit must be in [0, 1), got {self.gamma_limit}")
        if self.max_stride < 1:
            raise ConfigError(f"max_stride must be at least 1, got {self.max_stride}")

    def begin(self, curve: BatchCurve) -> Policy:
        """Make the policy for one request."""
        return _OptimalRounds(curve, self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuous:
    """Search whenever a lane is free, and write on meanwhile: the default.

    With one lane the batch size sets itself: it is what was written during the
    last search. With several, each query starts when it is born.
    """

    window: int = 64  # the most unverified steps at once
    lanes: int = 1  # searches that may be out at a time

    def __post_init__(self) -> None:
        """Refuse settings that could never search or write."""
        if self.window < 1:
            raise ConfigError(f"window must be at least 1, got {self.window}")
        if self.lanes < 1:
            raise ConfigError(f"lanes must be at least 1, got {self.lanes}")

    def begin(self, curve: BatchCurve) -> Policy:
        """Make the policy for one request."""
        return _Flowing(curve, self)


class _Rounds:
    """Speculate `stride` steps, verify them in one batch, repeat.

    A round is one step with verified hits and stride - 1 on guesses; the last
    query's guess is not written on before the batch is out (PAPERS 1.12).
    """

    def __init__(self, curve: BatchCurve, *, overlap: bool, stride: int) -> None:
        self._curve = curve
        self._overlap = overlap
        self._stride = stride

    def may_write(self, view: View) -> bool:
        if view.searching:
            return self._overlap and view.ahead < view.in_flight
        return view.pending < self._stride

    def batches(self, view: View) -> list[int]:
        if view.searching or not view.pending:
            return []
        return [view.pending] if view.stalled or view.pending >= self._stride else []

    def wrote(self, seconds: float) -> None:
        """Nothing is adapted to it."""

    def searched(self, queries: int, seconds: float) -> None:
        self._curve.observe(queries, seconds)

    def judged(self, right: bool) -> None:
        """Nothing is adapted to it."""


class _OptimalRounds(_Rounds):
    """Rounds whose stride is chosen anew when one has been verified."""

    def __init__(self, curve: BatchCurve, setting: OptimalStride) -> None:
        super().__init__(curve, overlap=setting.overlap, stride=1)
        self._setting = setting
        self._step_s = Smoothed()
        self._rounds: deque[list[bool]] = deque(maxlen=setting.window)
        self._over = False

    def may_write(self, view: View) -> bool:
        if self._over and not view.searching:
            self._over = False
            self._stride = self._choose()
        return super().may_write(view)

    def wrote(self, seconds: float) -> None:
        self._step_s.observe(seconds)

    def searched(self, queries: int, seconds: float) -> None:
        super().searched(queries, seconds)
        self._rounds.append([])
        self._over = True

    def judged(self, right: bool) -> None:
        if self._rounds:
            self._rounds[-1].append(right)

    def _choose(self) -> int:
        rounds = [guesses for guesses in self._rounds if guesses]
        if self._step_s.value is None or not rounds:
            return self._stride
        gamma = estimate_gamma(
            [sum(guesses) for guesses in rounds],
            [len(guesses) for guesses in rounds],
            self._setting.gamma_limit,
        )
        return optimal_stride(
            self._step_s.value,
            self._curve,
            gamma,
            overlap=self._overlap,
            limit=self._setting.max_stride,
            slack=STRIDE_SLACK,
        )


class _Flowing:
    """Keep the lanes and the model busy."""

    RECENT = 32  # guesses that the guess rate is taken over
    HOPELESS = 0.1  # below this share of right guesses running ahead only wastes work

    def __init__(self, curve: BatchCurve, setting: Continuous) -> None:
        self._curve = curve
        self._setting = setting
        self._recent: deque[bool] = deque(maxlen=self.RECENT)

    def may_write(self, view: View) -> bool:
        hopeless = len(self._recent) >= 8 and self._guess_rate() < self.HOPELESS
        return view.ahead < self._setting.window and not hopeless

    def batches(self, view: View) -> list[int]:
        free = self._setting.lanes - view.searching
        if free <= 0 or not view.pending:
            return []
        if view.pending <= free:
            return [1] * view.pending
        share = self._worthwhile(-(-view.pending // free))
        sizes = [share] * free
        return [size for size in _within(sizes, view.pending) if size]

    def wrote(self, seconds: float) -> None:
        """Nothing is adapted to it."""

    def searched(self, queries: int, seconds: float) -> None:
        self._curve.observe(queries, seconds)

    def judged(self, right: bool) -> None:
        self._recent.append(right)

    def _guess_rate(self) -> float:
        """Estimate with two right guesses assumed beforehand, so that a start is optimistic."""
        return (sum(self._recent) + 2) / (len(self._recent) + 2)

    def _worthwhile(self, most: int) -> int:
        """Choose the batch that verifies the most steps a second, as OS3 counts them."""
        gamma = min(self._guess_rate(), 0.999)

        def rate(size: int) -> float:
            return (1 - gamma**size) / max(self._curve(size), LEAST_SECONDS)

        return max(range(1, most + 1), key=lambda size: (rate(size), size))


def _within(sizes: list[int], total: int) -> list[int]:
    """Cut a list of sizes where their sum passes a total.

    >>> _within([3, 3, 3], 7)
    [3, 3, 1]
    """
    cut = []
    for size in sizes:
        cut.append(min(size, total))
        total -= cut[-1]
    return cut
