"""FAISS, over the index that a host holds: what a batch finds, and for how much of it that is sure.

FAISS chooses its kernel by the numbers of queries, rows and threads: one query over
10,000 rows and more runs through BLAS, split by rows, where two threads are free; a
few queries run through a sequential kernel; from queries x dimension = 128,000 on
through BLAS again. Their scores differ in the last bits, so a flat index's batch is
believed only as far as the certificate goes, or searched such that the sequential
kernel is used, which takes each query by itself: `alike_search`.
"""

import threading
from dataclasses import dataclass
from importlib import import_module
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from ralmspec_plugins.retrieval.ranking import (
    LARGEST_NORM,
    Metric,
    Vectors,
    exact_scores,
    kernel_error,
)

# Says whether every float32 scan of the same vectors would give the same ranking.
#
# A store's scan for a batch and its scan for one query may be different kernels:
# FAISS has three, chosen by the numbers of queries, rows and threads, whose scores
# differ in the last bits. What one of them ranks first the others rank first too,
# where the scores lie further apart than both kernels' errors. Where they do not
# (near ties, duplicates) nothing can be said, and the query is asked as the host asks.


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


def is_clear_of_ties(
    query: Vectors,
    found: Candidates,
    k: int,
    metric: Metric,
    threshold: float | None = None,
) -> bool:
    """Say whether any float32 scan would give the first k of these rows, in this order.

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


_FLAT = {"IndexFlat", "IndexFlatL2", "IndexFlatIP"}
_METRICS = {0: Metric.IP, 1: Metric.L2}  # faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2
_ROWS_AT_ONCE = 65536
_SPLIT_ROWS = 10_000  # from here on a single query is split by rows, if there are threads
_BLAS_FROM = {20, 128_000}  # the defaults: in queries (up to faiss 1.12), in queries x dimension
_FEW = 19  # as many queries as no version takes through BLAS, if the dimension allows

_lock = threading.Lock()
_norms: "WeakKeyDictionary[Any, tuple[int, object, float]]" = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class FaissRows:
    """One query's rows, best first.

    `positions` in the index; `scores` as the scan gave them, bigger is better;
    `complete`: no row of the index was left out; `largest_norm` of all rows, where it counts.
    """

    positions: NDArray[np.int64]
    scores: Vectors
    vectors: Vectors
    complete: bool
    largest_norm: float | None

    def candidates(self, k: int) -> Candidates:
        """Give as many rows as it takes to certify the first k."""
        count = min(k + MARGIN, len(self.positions))
        if self.complete and count == len(self.positions):
            return Candidates(self.vectors, None)
        worst = float(self.scores[count - 1]) if count else np.inf
        return Candidates(self.vectors[:count], worst, self.largest_norm)


def flat_metric(index: Any) -> Metric | None:
    """Give the metric of an exact flat index on the CPU; `None` for any other index."""
    kind = type(index)
    if kind.__module__.partition(".")[0] != "faiss" or kind.__name__ not in _FLAT:
        return None
    return _METRICS.get(int(index.metric_type))


def flat_search(index: Any, queries: Vectors, width: int, stamp: object) -> list[FaissRows]:
    """Search a flat index for `width` rows a query, and some more to certify these.

    Args:
        index: a flat index (`flat_metric`).
        queries: [queries, dimension], prepared as the host prepares a single one.
        width: how many rows are wanted.
        stamp: any object that is another one after rows were removed: the largest norm of
            the rows is remembered with it, and with the number of rows.
    """
    total = int(index.ntotal)
    count = min(width + MARGIN, total)
    if count < 1:
        return [_nothing(index.d) for _ in queries]
    metric = flat_metric(index)
    scores, positions = index.search(queries, count)
    fast = -scores if metric is Metric.L2 else scores
    largest = _largest_norm(index, stamp) if metric is Metric.IP else None
    found = []
    for row_scores, row_positions in zip(fast, positions, strict=True):
        there = row_positions >= 0  # NaN somewhere: fewer, and then nothing is sure
        kept = row_positions[there]
        complete = len(kept) == total
        vectors = index.reconstruct_batch(kept)
        found.append(FaissRows(kept, row_scores[there], vectors, complete, largest))
    return found


def plain_search(index: Any, queries: Vectors, width: int) -> list[NDArray[np.int64]]:
    """Search any index, and promise nothing; positions of what was not found are left out."""
    _, positions = index.search(queries, width)
    return [row[row >= 0] for row in positions]


def alike_search(
    index: Any, queries: Vectors, width: int
) -> list[tuple[NDArray[np.int64], Vectors]]:
    """Search a flat index for many queries, each to the bit as if it were asked alone.

    As many go together as the sequential kernel takes, which scans for each by itself,
    with a heap of its own: rows, ties and scores are those of a single search.

    Args:
        index: a flat index (`flat_metric`).
        queries: [queries, dimension].
        width: how many rows a query.

    Returns:
        For each query the rows' positions, best first, and their scores as FAISS gives them.
    """
    at_once = _together(index)
    found = []
    for start in range(0, len(queries), at_once):
        scores, positions = index.search(queries[start : start + at_once], width)
        there = positions >= 0
        rows = zip(positions, scores, there, strict=True)
        found += [(own[kept], own_scores[kept]) for own, own_scores, kept in rows]
    return found


def _together(index: Any) -> int:
    """Say how many queries the sequential kernel takes; 1 where a single one goes otherwise."""
    faiss = import_module("faiss")
    blas_from = int(faiss.cvar.distance_compute_blas_threshold)
    split = int(index.ntotal) >= _SPLIT_ROWS and faiss.omp_get_max_threads() > 1
    if split or blas_from not in _BLAS_FROM:
        return 1
    return max(1, min(_FEW, (max(_BLAS_FROM) - 1) // int(index.d)))


def _nothing(dimension: int) -> FaissRows:
    empty = np.empty((0, dimension), dtype=np.float32)
    none = np.empty(0, dtype=np.int64)
    return FaissRows(none, empty[:, 0], empty, complete=True, largest_norm=None)


def _largest_norm(index: Any, stamp: object) -> float:
    """Give the largest norm of an index's rows: read once, as long as the index is the same."""
    total = int(index.ntotal)
    with _lock:
        known = _norms.get(index)
    if known is not None and known[0] == total and known[1] is stamp:
        return known[2]
    largest = 0.0
    for start in range(0, total, _ROWS_AT_ONCE):
        rows = index.reconstruct_n(start, min(_ROWS_AT_ONCE, total - start))
        squares = np.einsum("ij,ij->i", rows, rows, dtype=np.float64)
        largest = max(largest, float(np.sqrt(squares.max())))
    with _lock:
        _norms[index] = total, stamp, largest
    return largest
