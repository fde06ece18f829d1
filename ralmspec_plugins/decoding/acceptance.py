"""How the acceptance of a text's drafts develops while it is written."""

from typing import Final

_RECENT: Final = 16.0  # time constant of the running means, in drafted tokens
_PATIENCE: Final = 24  # judged drafts before a fall counts
_FALLEN: Final = 0.7  # part of the best acceptance below which it has fallen


class RunningRatio:
    """A running ratio of what came true to what was expected."""

    def __init__(self) -> None:
        """Start at 1."""
        self._true = self._expected = _RECENT

    @property
    def value(self) -> float:
        """The ratio."""
        return self._true / self._expected

    def add(self, true: float, expected: float) -> None:
        """Count an outcome; older ones fade as more is expected."""
        fade = 1.0 - expected / (4.0 * _RECENT)
        self._true = self._true * fade + true
        self._expected = self._expected * fade + expected


class AcceptanceTrend:
    """How often drafts of a text are accepted: recently, and at best."""

    def __init__(self) -> None:
        """Start without drafts."""
        self._recent = 0.0
        self._best = 0.0
        self._judged = 0
        self._patience = _PATIENCE

    def add(self, right: int, wrong: int) -> None:
        """Count accepted and rejected drafts."""
        for outcome in (1.0,) * right + (0.0,) * wrong:
            self._judged += 1
            weight = max(1.0 / self._judged, 1.0 / _RECENT)
            self._recent += (outcome - self._recent) * weight
        if self._judged >= _PATIENCE:
            self._best = max(self._best, self._recent)

    @property
    def has_fallen(self) -> bool:
        """Whether enough drafts were judged, and far fewer are accepted than at best."""
        return self._judged >= self._patience and self._recent < _FALLEN * self._best

    def begin_again(self) -> None:
        """Judge new chunks; each time with twice the patience."""
        self._judged = 0
        self._patience *= 2

    def lost(self, depth: int) -> float:
        """Return the passes per token that the fall costs, with drafts of this depth."""
        now, best = (sum(rate**n for n in range(depth + 1)) for rate in (self._recent, self._best))
        return 1.0 / now - 1.0 / best
