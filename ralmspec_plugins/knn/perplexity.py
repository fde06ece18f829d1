"""The perplexity of held-out texts, with and without the neighbours."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ralmspec_plugins.errors import ConfigError, InputError
from ralmspec_plugins.knn.interpolation import Floats, Mixing, log_prob_of, mix
from ralmspec_plugins.knn.search import Neighbours
from ralmspec_plugins.knn.state import Reading
from ralmspec_plugins.types import Query

BLOCK = 1024  # tokens of a window, as in knn-transformers
STRIDE = 512  # tokens between windows, as in knn-transformers: the minimum context of later tokens
BATCH = 64  # queries in one search


class TextModel(Protocol):
    """A model that processes whole windows."""

    context: int | None

    def encode(self, text: str) -> tuple[int, ...]:
        """Tokenise a text as the datastore's were."""
        ...

    def read(self, tokens: Sequence[int], following: Sequence[int]) -> Reading:
        """Return the output of a window's last positions, which these tokens follow."""
        ...


class HiddenSearch(Protocol):
    """Searches the neighbours of hidden states."""

    def search(self, queries: Sequence[Query]) -> list[Neighbours]:
        """Search a batch."""
        ...


@dataclass(frozen=True, slots=True)
class Foretold:
    """The log-probabilities of the tokens of held-out texts, under both distributions.

    All tokens except the first of each text are counted, each with at least
    `block - stride` tokens of context, if there are so many. The perplexity is computed for
    any weight, without a further search.

    >>> halves = np.log([0.5, 0.5])
    >>> foretold = Foretold(halves, np.log([1.0, 0.25]), 1)
    >>> round(foretold.model_perplexity, 9), round(foretold.perplexity(1.0), 9)
    (2.0, 2.0)
    """

    model: Floats = field(repr=False)  # log-probabilities  # [tokens]
    neighbours: Floats = field(repr=False)  # -inf where no neighbour has the token  # [tokens]
    texts: int

    @property
    def tokens(self) -> int:
        """The number of predicted tokens."""
        return len(self.model)

    @property
    def model_perplexity(self) -> float:
        """The perplexity of the model without neighbours."""
        return _perplexity(self.model)

    def perplexity(self, weight: float) -> float:
        """Return the perplexity of the mixture with this weight of the neighbours (lambda).

        Raises:
            ConfigError: the weight is not above 0 and at most 1.
        """
        return _perplexity(mix(self.model, self.neighbours, Mixing(weight=weight).weight))


def foretell(
    model: TextModel,
    search: HiddenSearch,
    texts: Sequence[str],
    *,
    temperature: float = 1.0,
    block: int = BLOCK,
    stride: int = STRIDE,
    progress: Callable[[int], None] | None = None,
) -> Foretold:
    """Return the log-probabilities of all tokens of held-out texts except each text's first.

    Args:
        model: processes windows; they are cut to its context.
        search: the datastore's search.
        texts: independent texts; one with fewer than two tokens is ignored.
        temperature: of the distances.
        block: the number of tokens of a window.
        stride: the number of tokens between windows; below `block`.
        progress: called with the number of predicted tokens.

    Raises:
        ConfigError: a number is out of range.
        InputError: there is no token to predict.
    """
    Mixing(temperature=temperature)
    if not 1 <= stride < block:
        raise ConfigError(f"stride must be at least 1 and below block, got {stride} and {block}")
    if model.context is not None and block > model.context:
        block = model.context
        stride = min(stride, max(1, block // 2))
    parts: list[tuple[Floats, Floats]] = []
    done = 0
    for text in texts:
        tokens = model.encode(text)
        for start, first, end in windows(len(tokens), block, stride):
            following = tokens[first:end]
            reading = model.read(tokens[start : end - 1], following)
            parts.append((reading.log_probs, _votes(search, reading, following, temperature)))
            done += len(following)
            if progress is not None:
                progress(done)
    if not parts:
        raise InputError("there is no token to predict: give a text of at least two tokens")
    own, neighbours = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Foretold(own, neighbours, len(texts))


def windows(length: int, block: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Yield the windows of a text: start, first predicted token, and end.

    Each token except the first is predicted once.

    >>> list(windows(10, 6, 3))
    [(0, 1, 6), (3, 6, 9), (6, 9, 10)]
    """
    first = 1
    for start in range(0, length, stride):
        end = min(start + block, length)
        if first < end:
            yield start, first, end
            first = end


def _votes(
    search: HiddenSearch, reading: Reading, following: Sequence[int], temperature: float
) -> Floats:
    """Return the log-probabilities of the following tokens by the neighbours."""
    voted = np.empty(len(following))
    for start in range(0, len(following), BATCH):
        part = reading.hidden[start : start + BATCH]
        queries = [Query("", hidden, key=hidden.tobytes()) for hidden in part]
        for place, near in enumerate(search.search(queries), start=start):
            voted[place] = log_prob_of(following[place], near, temperature)
    return voted


def _perplexity(log_probs: Floats) -> float:
    mean = float(log_probs.mean())
    return math.exp(-mean) if mean > -math.inf else math.inf
