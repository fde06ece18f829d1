"""What the wrong guesses of a request may cost."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.metrics import MetricsRecorder
from ralmspec_plugins.steps import Step
from ralmspec_plugins.types import Query


@dataclass(frozen=True, slots=True, kw_only=True)
class WasteLimits:
    """Bounds on the work of a request that is discarded; `None`: no bound.

    Attributes:
        max_wasted_tokens: tokens of discarded calls of the model.
        max_wasted_encodings: encodings of queries that are not part of the answer.
    """

    max_wasted_tokens: int | None = None
    max_wasted_encodings: int | None = None

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
    known only at its end.
    """

    def __init__(self, limits: WasteLimits, metrics: MetricsRecorder) -> None:
        """Create a budget of which nothing is spent."""
        self._limits = limits
        self._metrics = metrics
        self.limited_by: str | None = None  # the bound that was reached last

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
