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

from ralmspec_plugins.hosts.stores.certificate import MARGIN, Candidates
from ralmspec_plugins.retrieval.ranking import Metric, Vectors

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
