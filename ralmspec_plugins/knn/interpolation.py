"""Mixes a model's next-token distribution with that of the nearest neighbours, in log space.

Khandelwal et al. 2020: the neighbours of a hidden state vote for their
next tokens with the weights softmax(-distance / temperature), and

    p(token) = weight * p_knn(token) + (1 - weight) * p_model(token).

All in float64, in an order that only the inputs determine: the same neighbours give
the same probabilities to the bit.
"""

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.knn.search import Neighbours

Floats: TypeAlias = NDArray[np.float64]
LogProbs: TypeAlias = NDArray[np.float32] | Floats  # [vocabulary]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixing:
    """The weight of the neighbours, and the temperature of their distances."""

    weight: float = 0.25  # lambda: 0.25 in the model's own domain, about 0.65 in another
    temperature: float = 1.0  # of the distances, as in Khandelwal et al. 2020

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ConfigError: a number is out of range.
        """
        if not 0 < self.weight <= 1:
            raise ConfigError(
                f"weight must be above 0 and at most 1, got {self.weight}; "
                "a weight of 0 is the model alone, and needs no datastore"
            )
        if not 0 < self.temperature < math.inf:
            raise ConfigError(f"temperature must be above 0 and finite, got {self.temperature}")


def votes(neighbours: Neighbours, temperature: float) -> tuple[NDArray[np.int32], Floats]:
    """Return the tokens that the neighbours vote for, ascending, with their log-probabilities.

    A token that several neighbours vote for has the sum of their weights. In log
    space distant neighbours do not underflow, as exp(-1000) does.

    >>> near = Neighbours(np.arange(3), np.array([7, 3, 7]), np.zeros(3))
    >>> tokens, log_probs = votes(near, 1.0)
    >>> tokens.tolist(), np.exp(log_probs).round(3).tolist()
    ([3, 7], [0.333, 0.667])
    """
    order = neighbours.values.argsort(kind="stable")
    tokens = neighbours.values[order]
    starts = np.flatnonzero(np.diff(tokens, prepend=-1))  # the start of each token's votes
    scores = neighbours.distances[order] / -temperature
    # Neighbours are ordered by distance, so each token's first vote is its strongest.
    strongest = scores[starts]
    counts = np.diff(starts, append=len(tokens))
    summed = np.add.reduceat(np.exp(scores - np.repeat(strongest, counts)), starts)
    log_weights: Floats = strongest + np.log(summed)
    top = log_weights.max()
    return tokens[starts], log_weights - (top + math.log(np.exp(log_weights - top).sum()))


def interpolate(
    log_probs: LogProbs, neighbours: Neighbours, weight: float, temperature: float
) -> Floats:
    """Return the mixture's log-probabilities for the whole vocabulary.

    Without neighbours it is the model's own distribution. With a weight of 1 it is
    only that of the neighbours, and other tokens are impossible (-inf).

    Args:
        log_probs: of the model.  # [vocabulary]
        neighbours: of the hidden state, nearest first.
        weight: the neighbours' share (lambda), above 0 and at most 1.
        temperature: of the distances.
    """
    mixed = log_probs.astype(np.float64)
    if not len(neighbours):
        return mixed
    tokens, voted = votes(neighbours, temperature)
    mixed += math.log1p(-weight) if weight < 1 else -math.inf
    mixed[tokens] = np.logaddexp(mixed[tokens], voted + math.log(weight))
    return mixed


def log_prob_of(token: int, neighbours: Neighbours, temperature: float) -> float:
    """Return the log-probability of a token by the neighbours only; -inf without a vote."""
    if not len(neighbours):
        return -math.inf
    tokens, voted = votes(neighbours, temperature)
    place = int(tokens.searchsorted(token))
    return float(voted[place]) if place < len(tokens) and tokens[place] == token else -math.inf


def mix(model: Floats, neighbours: Floats, weight: float) -> Floats:
    """Return the mixed log-probabilities of the same tokens, elementwise."""
    own = math.log1p(-weight) if weight < 1 else -math.inf
    mixed: Floats = np.logaddexp(model + own, neighbours + math.log(weight))
    return mixed
