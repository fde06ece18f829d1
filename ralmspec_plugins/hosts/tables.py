"""Ranks a pool's passages by the host's vectors where they are known, and by words where not."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ralmspec_plugins.speculators.proxy import Bm25ProxyTable
from ralmspec_plugins.types import Hit, Query

Metric: TypeAlias = Literal["cosine", "ip", "l2"]
Floats: TypeAlias = NDArray[np.float64]
# Makes the host's score of the metric's value: a cosine, a product, or a squared distance.
ScoreOf: TypeAlias = Callable[[float], float]
_TINY: Final = 1e-300  # a zero vector's cosine is 0, as hosts have it, not NaN


class HostTable:
    """The passages of a pool over a host's store.

    It ranks with the store's metric as long as every passage and the query bring a
    vector; one that does not, and it ranks by words from then on. What it ranks
    wrongly (the store's ties are its own) costs a guess, never truth.

    Where it is known how the host makes scores, guesses have such ones, right but for the
    last bits: whatever looks at scores behind a retriever sees sensible ones. Ranked by
    words, they are NaN.
    """

    def __init__(
        self,
        metric: Metric | None,
        vector_of: Callable[[Hit], Any],
        query_vector_of: Callable[[Query], Any],
        score_of: ScoreOf | None = None,
        kept: Callable[[Hit], Hit] | None = None,
    ) -> None:
        """Start empty; grows with the pool.

        Args:
            metric: how the store ranks; `None`: by words.
            vector_of: gives a passage's vector, or `None`.
            query_vector_of: gives a query's, or `None`.
            score_of: makes the host's scores; `None`: it gives none, or others.
            kept: gives of a hit what the pool keeps of it; `None`: all of it.
        """
        if kept is not None:
            self.kept = kept
        self.scored = score_of is not None
        self._score_of = score_of
        self._metric = metric
        self._vector_of = vector_of
        self._query_vector_of = query_vector_of
        self._hits: dict[int, Hit] = {}
        self._vectors: Floats = np.zeros((0, 0))
        self._squares: Floats = np.zeros(0)
        self._words: Bm25ProxyTable | None = None

    def put(self, slot: int, hit: Hit) -> None:
        """Remember a passage under a slot number, over whatever was there."""
        self._hits[slot] = hit
        if self._words is not None:
            self._words.put(slot, hit)
        elif self._metric is None or not self._keep(slot, self._vector_of(hit)):
            self._by_words()

    def rank(self, query: Query, slots: Sequence[int], k: int) -> list[tuple[int, float]]:
        """Give the best k of these slots, best first, ties by passage id."""
        vector = None if self._words is not None else self._query_vector_of(query)
        if vector is None:
            ranked = self._by_words().rank(query, slots, k)
            return [(slot, math.nan) for slot, _ in ranked] if self.scored else ranked
        asked: Floats = np.asarray(vector, dtype=np.float64)
        scores = self._scores(asked, np.asarray(slots))
        best = np.argsort(-scores, kind="stable")[: k + 1]  # one more, to see a tie at the end
        if len(best) > k and scores[best[k - 1]] == scores[best[k]]:
            best = np.flatnonzero(scores >= scores[best[k]])
        found = [(slots[at], float(scores[at])) for at in best.tolist()]
        ranked = sorted(found, key=lambda pair: (-pair[1], self._hits[pair[0]].passage.id))[:k]
        if self._score_of is None:
            return ranked
        return [(slot, self._shown(score, asked, self._score_of)) for slot, score in ranked]

    def _shown(self, score: float, query: Floats, score_of: ScoreOf) -> float:
        """Make the host's score of one that only ranks, which leaves out the query's own norm."""
        square = float(query @ query)
        if self._metric == "l2":
            return score_of(max(square - score, 0.0))
        if self._metric == "cosine":
            return score_of(score / math.sqrt(max(square, _TINY)))
        return score_of(score)

    def _keep(self, slot: int, vector: Any) -> bool:
        """Store a vector; say whether it is one."""
        if vector is None:
            return False
        row: Floats = np.asarray(vector, dtype=np.float64)
        if row.ndim != 1 or (len(self._vectors) and row.shape != self._vectors.shape[1:]):
            return False
        if not np.isfinite(row).all():
            return False
        if slot >= len(self._vectors):
            grown = np.zeros((max(64, 2 * slot), len(row)))
            squares = np.zeros(len(grown))
            if len(self._vectors):
                grown[: len(self._vectors)] = self._vectors
                squares[: len(self._squares)] = self._squares
            self._vectors, self._squares = grown, squares
        self._vectors[slot] = row
        self._squares[slot] = row @ row
        return True

    def _scores(self, query: Floats, slots: NDArray[np.int64]) -> Floats:
        products: Floats = self._vectors[slots] @ query
        if self._metric == "ip":
            return products
        if self._metric == "l2":
            return 2 * products - self._squares[slots]
        return products / np.sqrt(np.maximum(self._squares[slots], _TINY))

    def _by_words(self) -> Bm25ProxyTable:
        """Rank by words from now on."""
        if self._words is None:
            self._words = Bm25ProxyTable()
            for slot, hit in self._hits.items():
                self._words.put(slot, hit)
            self._vectors, self._squares = np.zeros((0, 0)), np.zeros(0)
        return self._words
