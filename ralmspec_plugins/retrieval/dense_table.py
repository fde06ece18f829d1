"""The vectors of a pool's passages, ranked as a search over all passages ranks them."""

from collections.abc import Sequence

import numpy as np

from ralmspec_plugins.errors import InputError
from ralmspec_plugins.retrieval.ranking import (
    LARGEST_NORM,
    Metric,
    Vectors,
    exact_scores,
    kernel_error,
    nominees,
)
from ralmspec_plugins.retrieval.vectors import norm_of
from ralmspec_plugins.types import Hit, Query


class DenseTable:
    """The vectors of a pool's passages, ranked as the retriever ranks its own."""

    def __init__(self, metric: Metric, dimension: int, capacity: int) -> None:
        """Make room for `capacity` passages."""
        self._metric = metric
        self._vectors = np.zeros((capacity, dimension), dtype=np.float32)
        self._squares = np.zeros(capacity, dtype=np.float32)
        self._norms = np.zeros(capacity)
        self._ids = [""] * capacity

    def put(self, slot: int, hit: Hit) -> None:
        """Remember a passage's vector under a slot number.

        Raises:
            InputError: the hit does not carry a vector of the right dimension.
        """
        vector = np.asarray(hit.features)
        if vector.shape != self._vectors.shape[1:]:
            raise InputError(
                f"the hit {hit.passage.id!r} carries no vector of {self._vectors.shape[1]} "
                "dimensions; a pool takes hits of its own retriever only"
            )
        norm = norm_of(vector)
        if not norm < LARGEST_NORM:
            raise InputError(
                f"the vector of {hit.passage.id!r} holds NaN, infinite or huge entries"
            )
        self._vectors[slot] = vector
        self._squares[slot] = norm * norm
        self._norms[slot] = norm
        self._ids[slot] = hit.passage.id

    def rank(self, query: Query, slots: Sequence[int], k: int) -> list[tuple[int, float]]:
        """Give the best k of these slots with exact scores; `range(n)` is the fastest."""
        if not len(slots) or k < 1:
            return []
        whole = isinstance(slots, range) and slots.step == 1
        chosen = slice(slots[0], slots[-1] + 1) if whole else np.asarray(slots, dtype=np.int64)
        rows: Vectors = self._vectors[chosen]
        vector: Vectors = query.encoding
        fast = rows @ vector
        if self._metric is Metric.L2:
            fast = 2 * fast - self._squares[chosen]
        largest = float(self._norms[chosen].max())
        error = kernel_error(self._metric, len(vector), largest, norm_of(vector))
        near = nominees(fast, k, error)
        scores = exact_scores(rows[near], vector, self._metric).tolist()
        found = [(slots[at], score) for at, score in zip(near.tolist(), scores, strict=True)]
        if len(found) > 1:
            found.sort(key=lambda pair: (-pair[1], self._ids[pair[0]]))
        return found[:k]
