"""The certificate: whether every float32 scan of the same vectors would give the same ranking.

A store's scan for a batch and its scan for one query may be different kernels: FAISS has
three, chosen by the numbers of queries, rows and threads, whose scores differ in the last
bits. Their rankings are equal if the scores differ by more
than the errors of both kernels, or if the vectors are equal and the host's search is known to
order these by position. Otherwise (near ties, other duplicates) nothing is certain, and the query
is searched as the host does.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ralmspec_plugins.retrieval.ranking import (
    LARGEST_NORM,
    Metric,
    Vectors,
    exact_scores,
    kernel_error,
)

MARGIN = 8  # rows fetched after the k-th, so that the others are clearly worse
_LARGEST_DIMENSION = 8192  # the maximum for `tie_margin`


@dataclass(frozen=True, slots=True)
class Candidates:
    """The rows of a scan for one query, and an upper bound of the rows that it omitted.

    `vectors` [rows, dimension] are those of the store's scores.
    `worst`: the scan's score of the last row (bigger is better, so distances are
    negated); `None` if no row was omitted.
    `largest_norm`: of the omitted rows; `None` if it is unknown.
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
        """Return as many rows of a scan as certify its first k; `complete`: no row is omitted."""
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
    positions: NDArray[np.int64] | None = None,
) -> bool:
    """Return whether any float32 scan returns the first k of these rows, in this order.

    With the exact scores t (float64) and a bound e on any float32 kernel's error, every
    kernel keeps the order of two rows with t_i - t_j > 2 e. An omitted row has
    a kernel score of at most worst + 2 e', where e' bounds the error for such rows.

    Args:
        query: the query vector.
        found: the rows of one such scan, best first.
        k: the number of rows that the host reads.
        metric: the store's metric.
        threshold: the host's minimum score; no row's score may be within e of it.
        positions: of the rows in the store, if the host's search orders equal vectors by them;
            `None`: equal vectors are a tie.
    """
    rows = found.vectors
    if not len(rows):
        return found.worst is None
    if len(query) > _LARGEST_DIMENSION or not _tame(query) or not _tame(rows):
        return False
    exact = exact_scores(rows, query, metric)
    order = np.argsort(-exact, kind="stable")
    best = exact[order]
    norms = np.linalg.norm(rows.astype(np.float64), axis=1)
    query_norm = float(np.linalg.norm(query.astype(np.float64)))
    error = kernel_error(metric, len(query), float(norms.max()), query_norm)
    apart = best[:-1] - best[1:] > 2 * error
    clear = apart.copy()
    if positions is not None:
        clear |= _equal_in_order(rows[order], positions[order])
    if not bool(clear[: _reach(apart, k)].all()):
        return False
    if threshold is not None and bool((np.abs(exact - threshold) <= error).any()):
        return False
    last = float(best[:k][-1])
    return _clear_of_the_rest(found, last, error, metric, query_norm, len(query))


def _reach(apart: NDArray[np.bool_], k: int) -> int:
    """Return how many neighbours decide the first k rows: up to the first two apart after these.

    Of equal vectors, one that this scan ranks far behind may stand first in the store.
    """
    after = np.flatnonzero(apart[k - 1 :])
    return k - 1 + int(after[0]) if len(after) else len(apart)


def _equal_in_order(rows: Vectors, positions: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which neighbours are equal vectors with ascending positions."""
    equal: NDArray[np.bool_] = (rows[:-1] == rows[1:]).all(axis=1)
    return equal & (positions[:-1] < positions[1:])


def _clear_of_the_rest(
    found: Candidates, last: float, error: float, metric: Metric, query_norm: float, dimension: int
) -> bool:
    """Return whether no omitted row can rank before the last relevant one."""
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
    """Return an upper bound of the norms of rows that may rank before a row of this L2 score.

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
    """Return whether no entry is NaN, infinite or so large that a product could overflow."""
    return bool((np.abs(vectors) < LARGEST_NORM / vectors.shape[-1]).all())
