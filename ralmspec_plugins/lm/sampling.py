"""Sampling settings, and draws that depend on seed and position only."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ralmspec_plugins.errors import ConfigError, ModelError


@dataclass(frozen=True, slots=True, kw_only=True)
class Greedy:
    """Chooses the most likely token."""

    repetition_penalty: float = 1.0  # 1 is none, as in transformers

    def __post_init__(self) -> None:
        """Check the penalty as transformers does."""
        _check_penalty(self.repetition_penalty)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Draws the next token; temperature 1, top_k 0, top_p 1 and penalty 1 have no effect."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        """Check the settings."""
        if not self.temperature > 0:
            raise ConfigError(
                f"temperature must be above 0, got {self.temperature}; "
                "use Greedy() for the most likely token"
            )
        if self.top_k < 0:
            raise ConfigError(f"top_k must be at least 0, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        _check_penalty(self.repetition_penalty)


def uniform(seed: int, position: int) -> float:
    """Return the random number, in [0, 1), of a position of a text."""
    key = np.array([seed % 2**64, position], dtype=np.uint64)
    return float(np.random.Generator(np.random.Philox(key=key)).random())


def draw(scores: NDArray[np.float64], seed: int, position: int) -> int:
    """Return an index drawn with probability softmax(scores), by inversion in float64.

    The random number is from a counter-based generator keyed by (seed,
    position): a position that is generated again draws the same number.

    Raises:
        ModelError: the scores are no distribution, because the model returned NaN.
    """
    weights = np.exp(scores - scores.max())
    cumulative = weights.cumsum()
    total = cumulative[-1]
    if not total > 0:
        raise ModelError(f"The model's scores at position {position} are not numbers (NaN).")
    index = int(cumulative.searchsorted(uniform(seed, position) * total, side="right"))
    # The product may round up to the total itself; then the last possible token is chosen.
    return index if index < len(weights) else int(np.flatnonzero(weights)[-1])


def _check_penalty(penalty: float) -> None:
    if not penalty > 0:
        raise ConfigError(f"repetition_penalty must be above 0, got {penalty}")
