"""What the wrong guesses of a request may cost."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from ralmspec_plugins.effects import Extend, FormQuery, Work
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.metrics import MetricsRecorder
from ralmspec_plugins.steps import Step
from ralmspec_plugins.types import Query, Span


class WasteShare:
    """The share of discarded calls among all calls of a model that is not exceeded. Thread-safe.

    Engines whose settings have the same object count together. In the worst case all calls that
    depend on a guess are discarded, so each of them counts as wasted until it is part of an
    answer: with a share of 0.1 the first one is made after nine others.

    >>> share = WasteShare(0.5)
    >>> share.allows_one
    False
    >>> share.began(speculative=False)
    >>> share.allows_one
    True
    """

    def __init__(self, limit: float) -> None:
        """Count no calls yet.

        Args:
            limit: the share, 0 to 1; 0: no guess.

        Raises:
            ConfigError: it is no such number.
        """
        if type(limit) not in (int, float) or not 0 <= limit <= 1:
            raise ConfigError(f"max_wasted_share must be from 0 to 1, or None, got {limit!r}")
        self.limit = limit
        self._calls = self._at_risk = 0
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        """Return the limit."""
        return f"WasteShare({self.limit})"

    def __reduce__(self) -> tuple[type["WasteShare"], tuple[float]]:
        """Return what a copy is made of: the limit, without the counts."""
        return WasteShare, (self.limit,)

    @property
    def allows_one(self) -> bool:
        """Whether one more call that depends on a guess keeps to the share."""
        return self._at_risk + 1 <= self.limit * (self._calls + 1)

    def began(self, *, speculative: bool) -> None:
        """Count a call."""
        with self._lock:
            self._calls += 1
            self._at_risk += speculative

    def kept(self) -> None:
        """Record that a speculative call has become part of an answer."""
        with self._lock:
            self._at_risk -= 1


@dataclass(frozen=True, slots=True, kw_only=True)
class WasteLimits:
    """Bounds on the work of a request that is discarded; `None`: no bound.

    Attributes:
        max_wasted_tokens: tokens of discarded calls of the model.
        max_wasted_encodings: encodings of queries that are not part of the answer.
        max_wasted_share: of the calls of all requests.
    """

    max_wasted_tokens: int | None = None
    max_wasted_encodings: int | None = None
    max_wasted_share: WasteShare | None = None

    def __post_init__(self) -> None:
        """Check the bounds."""
        for name in ("max_wasted_tokens", "max_wasted_encodings"):
            most = getattr(self, name)
            if most is not None and (type(most) is not int or most < 0):
                raise ConfigError(
                    f"{name} must be a whole number of at least 0 (0: no guess), or None for no "
                    f"bound, got {most!r}"
                )


NO_LIMITS: Final = WasteLimits()


class WasteBudget:
    """The bound that allows a request no further guess, if one is reached.

    In the worst case all undecided guesses are wrong, so whatever depends on one counts as
    wasted until it is verified. Encodings then do not exceed their bound, except for those that
    are repeated after a failure; tokens exceed theirs by at most one call, since their number is
    known only at its end; the share of all requests' calls by calls that several requests begin at
    the same moment.
    """

    def __init__(self, limits: WasteLimits, metrics: MetricsRecorder) -> None:
        """Create a budget of which nothing is spent."""
        self._limits = limits
        self._metrics = metrics
        self.limited_by: str | None = None  # the bound that was reached last
        self._share = limits.max_wasted_share
        self._speculative: set[Work] = set()  # calls in flight that depend on a guess
        self._at_risk: dict[int, Span] = {}  # of completed ones, by identity

    def began(self, need: Work) -> None:
        """Count a call of the model that begins, for the share of all requests' calls."""
        if self._share is not None and isinstance(need, FormQuery | Extend):
            self._share.began(speculative=need.speculative)
            if need.speculative:
                self._speculative.add(need)

    def ended(self, need: Work, span: Span) -> None:
        """Record the span of a completed call."""
        if need in self._speculative:
            self._speculative.remove(need)
            self._at_risk[id(span)] = span

    def committed(self, step: Step) -> None:
        """Record that the calls of a step are part of the answer."""
        for span in (step.asked_span, step.span):
            if span is not None and self._at_risk.pop(id(span), None) is not None:
                assert self._share is not None
                self._share.kept()

    def is_spent(self, steps: Sequence[Step]) -> bool:
        """Return whether a bound is reached if all guesses in the window are wrong."""
        limits = self._limits
        spent = (
            ("max_wasted_tokens", limits.max_wasted_tokens, self._tokens),
            ("max_wasted_encodings", limits.max_wasted_encodings, self._encodings),
        )
        for name, most, count in spent:
            if most is not None and count(steps) >= most:
                self.limited_by = name
                return True
        if self._share is not None and not self._share.allows_one:
            self.limited_by = "max_wasted_share"
            return True
        return False

    def _tokens(self, steps: Sequence[Step]) -> int:
        undecided = 0
        for step, follows_guess in _in_order(steps):
            if follows_guess and step.asked_span is not None:
                undecided += step.asked_span.tokens
            if (follows_guess or step.ahead) and step.span is not None:
                undecided += step.span.tokens
        return self._metrics.wasted_tokens + undecided

    def _encodings(self, steps: Sequence[Step]) -> int:
        encoded = self._metrics.encoded
        needed, waiting = set(self._metrics.used_texts), set()
        for step, follows_guess in _in_order(steps):
            if not isinstance(step.query, Query):
                continue
            if not follows_guess:
                needed.add(step.query.text)
            elif step.unencoded is not None and step.query.text not in encoded:
                waiting.add(step.query.text)
        return encoded.total() - len(needed & encoded.keys()) + len(waiting)


def _in_order(steps: Sequence[Step]) -> Iterator[tuple[Step, bool]]:
    """Return the steps, each with whether it follows an unverified one."""
    follows_guess = False
    for step in steps:
        yield step, follows_guess
        follows_guess = follows_guess or not step.verified
