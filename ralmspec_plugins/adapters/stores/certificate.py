"""The certificate: whether every float32 scan of the same vectors would give the same ranking.

A store's scan for a batch and its scan for one query may be different kernels: FAISS has
three, chosen by the numbers of queries, rows and threads, whose scores differ in the last
bits. What one of them ranks first the others rank first too, where the scores lie further
apart than both kernels' errors. Where they do not (near ties, duplicates) nothing can be
said, and the query is asked as the host asks.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from ralmspec_plugins.retrieval.ranking import (
    LARGEST_NORM,
    Metric,
    Vectors,
    exact_scores,
    kernel_error,
)

MARGIN = 8  # rows fetched behind the k-th, so that what was not fetched is clearly worse
_LARGEST_DIMENSION = 8192  # up to here `tie_margin` holds


@dataclass(frozen=True, slots=True)
class Candidates:
    """The rows that a scan found for one query, and how good a row can be that it left out.

    `vectors` [rows, dimension] are those that the store scores with.
    `worst`: the scan's score of the last row (bigger is better, so distances are
    negated); `None` where no row was left out.
    `largest_norm`: of the rows left out; `None` where it is not known.
    """

    vectors: Vectors
    worst: float | None
    largest_norm: float | None = None

    @classmethod
    def of_scan(
        cls,
        vectors: Vectors,
        scores: Vectors,
        k: int,
        complete: bool,
        largest_norm: float | None = None,
    ) -> Self:
        """Take as many rows of a scan as certify its first k; `complete`: it left out none."""
        count = min(k + MARGIN, len(scores))
        if complete and count == len(scores):
            return cls(vectors, None)
        worst = float(scores[count - 1]) if count else np.inf
        return cls(vectors[:count], worst, largest_norm)


def is_clear_of_ties(
    query: Vectors,
    found: Candidates,
    k: int,
    metric: Metric,
    threshold: float | None = None,
) -> bool:
    """Return whether any float32 scan would give the first k of these rows, in this order.

    With the exact scores t (float64) and a bound e on any float32 kernel's error, every
    kernel keeps the order of two rows with t_i - t_j > 2 e. A row that was left out has
    a kernel score of at most worst + 2 e', where e' bounds the error for such rows.

    Args:
        query: the vector that the store searches with.
        found: the rows that one such scan found, best first.
        k: how many rows the host reads.
        metric: what the store scores by.
        threshold: a score that the host cuts at; no row's score may lie within e of it.
    """
    rows = found.vectors
    if not len(rows):
        return found.worst is None
    if len(query) > _LARGEST_DIMENSION or not _tame(query) or not _tame(rows):
        return False
    exact = exact_scores(rows, query, metric)
    best = -np.sort(-exact)[: k + 1]
    norms = np.linalg.norm(rows.astype(np.float64), axis=1)
    query_norm = float(np.linalg.norm(query.astype(np.float64)))
    error = kernel_error(metric, len(query), float(norms.max()), query_norm)
    if not bool((best[:-1] - best[1:] > 2 * error).all()):
        return False
    if threshold is not None and bool((np.abs(exact - threshold) <= error).any()):
        return False
    last = float(best[:k][-1])
    return _clear_of_the_rest(found, last, error, metric, query_norm, len(query))


def _clear_of_the_rest(
    found: Candidates, last: float, error: float, metric: Metric, query_norm: float, dimension: int
) -> bool:
    """Whether no row that was left out can come before the last one that counts."""
    if found.worst is None:
        return True
    largest = found.largest_norm
    if largest is None:
        if metric is not Metric.L2:
            return False
        largest = tie_margin(query_norm, last)
    rest = kernel_error(metric, dimension, largest, query_norm)
    return found.worst + 2 * rest < last - error


def tie_margin(query_norm: float, last: float) -> float:
    """Bound the norms of the rows that may come before a row of this L2 score.

    A row whose norm exceeds the query's by r, with r at least 2 D (D the last one's
    distance) and at least |q| / 10, is at least r away. A kernel's error for it is at
    most gamma (2 |q| + r)^2 <= 441 gamma r^2, below 0.22 r^2 for dimensions up to 8192:
    any kernel puts it beyond 0.78 r^2. The last one's own distance and error are at most
    D^2 + gamma (2 |q| + D)^2 <= 0.25 r^2 + 420 gamma r^2 < 0.46 r^2.

    >>> tie_margin(1.0, -0.25)
    2.0
    """
    return query_norm + max(2 * float(np.sqrt(max(-last, 0.0))), query_norm / 10)


def _tame(vectors: Vectors) -> bool:
    """Whether no entry is NaN, infinite or so large that a product could overflow."""
    return bool((np.abs(vectors) < LARGEST_NORM / vectors.shape[-1]).all())
