"""FAISS, by the index of a host: batch searches, certified where kernels differ.

FAISS chooses its kernel by the numbers of queries, rows and threads: one query over
10,000 rows and more runs through BLAS, split by rows, where two threads are free; a
few queries run through a sequential kernel; from queries x dimension = 128,000 on
through BLAS again. Their scores differ in the last bits. So for a host that returns scores
a flat index is searched with the sequential kernel, which processes each query
separately (`FaissSearch`); for other hosts a batch uses any kernel, and its results
are used if they are certified (`CertifiedFaissSearch`).
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from ralmspec_plugins.adapters.batch_search import Metric, Scored, Vector, note_repeat
from ralmspec_plugins.adapters.stores.base import StoreSearch, own_first
from ralmspec_plugins.adapters.stores.certificate import MARGIN, Candidates, is_clear_of_ties
from ralmspec_plugins.retrieval.ranking import Metric as ScanMetric
from ralmspec_plugins.retrieval.ranking import Vectors, exact_scores

_FLAT = {"IndexFlat", "IndexFlatL2", "IndexFlatIP"}
_METRICS = {0: ScanMetric.IP, 1: ScanMetric.L2}  # faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2
_ROWS_AT_ONCE = 65536
_SAMPLE = 16  # rows whose change shows that all rows were replaced
_SPLIT_ROWS = (
    10_000  # from this number of rows on a single query is split by rows, if there are threads
)
_BLAS_FROM = {20, 128_000}  # the defaults: in queries (up to faiss 1.12), in queries x dimension
_HEAP_ROWS = 100  # from this number of rows a search uses a reservoir, without an order of ties
_FEW = 19  # the number of queries up to which no version uses BLAS, if the dimension allows

_lock = threading.Lock()
_norms: "WeakKeyDictionary[Any, tuple[tuple[int, bytes], object, float]]" = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class FaissRow:
    """A row's position in the index, its FAISS score, and its vector if that is cheap."""

    id: int
    score: float
    vector: Any = None


@dataclass(frozen=True, slots=True)
class FlatScan:
    """The result of a flat index for one query, best first.

    `positions` in the index; `scores` of the scan, bigger is better;
    `complete`: no row of the index is omitted; `largest_norm` of all rows, if it is relevant;
    `equals_ordered`: the host's search orders equal vectors by position.
    """

    query: Vectors
    metric: ScanMetric
    positions: NDArray[np.int64]
    scores: Vectors
    vectors: Vectors
    complete: bool
    largest_norm: float | None
    equals_ordered: bool = False

    def rows(self, width: int) -> list[FaissRow]:
        """Return the best rows."""
        columns = self.positions[:width].tolist(), self.scores[:width], self.vectors[:width]
        return [FaissRow(*row) for row in zip(*columns, strict=True)]

    def is_certain(self, k: int, width: int, cut: float | None = None) -> bool:
        """Return whether every scan returns the first k rows in this order.

        Args:
            k: the number of rows that the host reads.
            width: the number of scanned rows, if the host has a minimum score.
            cut: that score, bigger is better.
        """
        read = k if cut is None else width
        found = Candidates.of_scan(
            self.vectors, self.scores, read, self.complete, self.largest_norm
        )
        ordered = self.positions[: len(found.vectors)] if self.equals_ordered else None
        return is_clear_of_ties(self.query, found, k, self.metric, cut, ordered)


def flat_metric(index: Any) -> ScanMetric | None:
    """Return the metric of an exact flat index on the CPU; `None` for any other index."""
    kind = type(index)
    if kind.__module__.partition(".")[0] != "faiss" or kind.__name__ not in _FLAT:
        return None
    return _METRICS.get(int(index.metric_type))


def flat_search(
    index: Any, queries: Vectors, width: int, stamp: object, own: int | None = None
) -> list[FlatScan]:
    """Search a flat index for `width` rows a query, and some more to certify these.

    Args:
        index: a flat index (`flat_metric`).
        queries: [queries, dimension], prepared as the host prepares a single one.
        width: the number of rows.
        stamp: an object that is replaced when rows are removed: the largest norm of
            the rows is cached by it, and by the number of rows.
        own: the number of rows of the host's search of one query; `None`: `width`.
    """
    metric, total = flat_metric(index), int(index.ntotal)
    assert metric is not None, "an index that is not flat has no scan"
    count = min(width + MARGIN, total)
    if count:
        scores, positions = index.search(queries, count)
    else:
        scores, positions = np.empty((len(queries), 0)), np.empty((len(queries), 0), np.int64)
    fast = -scores if metric is ScanMetric.L2 else scores
    largest = _largest_norm(index, stamp) if metric is ScanMetric.IP else None
    ordered = orders_equals(index, width if own is None else own)
    found = []
    for query, row_scores, row_positions in zip(queries, fast, positions, strict=True):
        there = row_positions >= 0  # fewer with NaN: nothing is certain
        kept = row_positions[there]
        vectors = index.reconstruct_batch(kept)
        complete = len(kept) == total
        scan = FlatScan(query, metric, kept, row_scores[there], vectors, complete, largest, ordered)
        found.append(scan)
    return found


def plain_search(
    index: Any, queries: Vectors, width: int
) -> list[tuple[NDArray[np.int64], Vectors]]:
    """Search any index, without a guarantee.

    Returns:
        For each query the rows' positions, best first, and their FAISS scores;
        missing rows are omitted.
    """
    scores, positions = index.search(queries, width)
    rows = zip(positions, scores, positions >= 0, strict=True)
    return [(own[there], own_scores[there]) for own, own_scores, there in rows]


def alike_search(
    index: Any, queries: Vectors, width: int
) -> list[tuple[NDArray[np.int64], Vectors]]:
    """Search a flat index for many queries, with results equal to single searches to the bit.

    The sequential kernel processes as many queries as it supports, each in a separate scan
    and heap: rows, ties and scores are those of a single search.

    Args:
        index: a flat index (`flat_metric`).
        queries: [queries, dimension].
        width: the number of rows per query.

    Returns:
        For each query the rows' positions, best first, and their FAISS scores.
    """
    at_once, found = _together(index), []
    for start in range(0, len(queries), at_once):
        found += plain_search(index, queries[start : start + at_once], width)
    return found


def orders_equals(index: Any, width: int) -> bool:
    """Return whether a single search orders equal vectors by position, and omits the last ones.

    The sequential kernel computes each row alone, and the heap of distances compares positions
    where these are equal; the heap of products and the reservoir of wider searches do not.
    A small index shows whether this holds.

    Args:
        index: a flat index (`flat_metric`).
        width: the number of rows of the single search.
    """
    return (
        _is_sequential(index)
        and width < _HEAP_ROWS
        and _heap_orders(int(index.metric_type), int(index.d))
    )


@lru_cache(maxsize=64)
def _heap_orders(metric: int, dimension: int) -> bool:
    """Search an index in which each of a few vectors stands at many positions."""
    random = np.random.default_rng(0)
    several = random.standard_normal((5, dimension)).astype(np.float32)
    which = random.integers(0, len(several), 203)
    index = import_module("faiss").IndexFlat(dimension, metric)
    index.add(several[which])
    for query in several:
        for width in (1, 7, 60, _HEAP_ROWS - 1):
            _, found = index.search(query[None], width)
            scores = exact_scores(several, query, _METRICS[metric])[which]
            order = np.lexsort((np.arange(len(which)), -scores))
            if found[0].tolist() != order[:width].tolist():
                return False
    return True


def _is_sequential(index: Any) -> bool:
    """Return whether a single query is searched by the sequential kernel."""
    faiss = import_module("faiss")
    split = int(index.ntotal) >= _SPLIT_ROWS and faiss.omp_get_max_threads() > 1
    return not split and int(faiss.cvar.distance_compute_blas_threshold) in _BLAS_FROM


def _together(index: Any) -> int:
    """Return how many queries the sequential kernel supports; 1 if a single one uses another."""
    if not _is_sequential(index):
        return 1
    return max(1, min(_FEW, (max(_BLAS_FROM) - 1) // int(index.d)))


def _largest_norm(index: Any, stamp: object) -> float:
    """Return the largest norm of an index's rows, cached while the index is unchanged.

    Rows are appended, removed, or all replaced: a sample that includes the last row shows
    changes that keep the number of rows.
    """
    total = int(index.ntotal)
    some = index.reconstruct_batch(np.linspace(0, total - 1, min(total, _SAMPLE)).astype(np.int64))
    seen = total, some.tobytes()
    with _lock:
        known = _norms.get(index)
    if known is not None and known[0] == seen and known[1] is stamp:
        return known[2]
    largest = 0.0
    for start in range(0, total, _ROWS_AT_ONCE):
        rows = index.reconstruct_n(start, min(_ROWS_AT_ONCE, total - start))
        squares = np.einsum("ij,ij->i", rows, rows, dtype=np.float64)
        largest = max(largest, float(np.sqrt(squares.max())))
    with _lock:
        _norms[index] = seen, stamp, largest
    return largest


def _pool_metric(index: Any) -> Metric | None:
    scan = flat_metric(index)
    return None if scan is None else "l2" if scan is ScanMetric.L2 else "ip"


@dataclass(frozen=True, slots=True, kw_only=True)
class FaissSearch(StoreSearch[FaissRow]):
    """Searches a batch in as few scans as keep the scores of single searches."""

    index: Callable[[], Any]
    name: str = "FAISS"

    @property
    def exact(self) -> bool:
        """Whether the index is a flat one."""
        return flat_metric(self.index()) is not None

    @property
    def wide(self) -> bool:
        """Whether wider searches are exact: true, since ties are searched again."""
        return self.exact

    @property
    def metric(self) -> Metric | None:
        """The metric of the index's vectors; `None` if it cannot return them."""
        return _pool_metric(self.index())

    def search(self, vectors: Sequence[Vector], k: int) -> list[list[Scored]]:
        """Return the best k documents of each query; those beyond the own k are prefetched."""
        queries = [np.array(vector, dtype=np.float32) for vector in vectors]
        own = min(k, self.k) if self.exact else k
        if self.exact and orders_equals(self.index(), k):  # the first rows are the narrow search's
            return self.own_documents(self._rows(queries, k), own)
        return self.own_documents(own_first(self._rows, queries, own, k), own)

    def _rows(self, queries: Sequence[Vectors], width: int) -> list[list[FaissRow]]:
        index, table = self.index(), np.stack(queries)
        if flat_metric(index) is None:
            found = plain_search(index, table, width)
            vectors = [[None] * len(positions) for positions, _ in found]
        else:
            found = alike_search(index, table, width)
            vectors = [index.reconstruct_batch(positions) for positions, _ in found]
        return [
            [FaissRow(*row) for row in zip(positions.tolist(), scores, own, strict=True)]
            for (positions, scores), own in zip(found, vectors, strict=True)
        ]


def keeps_all(_: Scored) -> bool:
    """Return true for each document."""
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class CertifiedFaissSearch(FaissSearch):
    """Searches a batch in one scan; queries with an uncertain ranking are searched separately.

    Args:
        single: searches one query for a number of documents as the host does, and returns the
            same objects as `documents`.
        stamp: returns an object that is replaced when rows are removed.
        normalized: whether the host normalises queries and rows.
        fetch_k: the number of rows before a filter; `None`: there is no filter.
        keeps: returns the filter of documents; may raise the host's own error.
        threshold: the host's minimum or maximum score.
        upwards: whether the threshold is a minimum.
    """

    single: Callable[[Vector, int], list[Scored]]
    stamp: Callable[[], object]
    normalized: Callable[[], bool]
    fetch_k: int | None = None
    keeps: Callable[[], Callable[[Scored], bool]] = lambda: keeps_all
    threshold: float | None = None
    upwards: Callable[[], bool] = lambda: False

    @property
    def wide(self) -> bool:
        """Whether wider searches are exact: a filter gets the same rows, a threshold may not."""
        return self.exact and self.threshold is None

    @property
    def metric(self) -> Metric | None:
        """The metric of the index's vectors, for passage caches."""
        metric = _pool_metric(self.index())
        return "cosine" if metric is not None and self.normalized() else metric

    def search(self, vectors: Sequence[Vector], k: int) -> list[list[Scored]]:
        """Return the best k documents of each query; those beyond the own k are prefetched."""
        queries, keeps = self._prepared(vectors), self.keeps()
        if flat_metric(self.index()) is not None:
            return self._scanned(vectors, queries, keeps, k)
        if self.threshold is not None:  # without scores to compare
            return [self._with_rest(self.single(vector, self.k), []) for vector in vectors]
        width = k if self.fetch_k is None else self.fetch_k
        found = self.documents(self._rows(list(queries), width))
        return [[hit for hit in hits if keeps(hit)][:k] for hits in found]

    def _prepared(self, vectors: Sequence[Vector]) -> Vectors:
        queries = np.array(list(vectors), dtype=np.float32)
        if self.normalized():
            normalize = import_module("faiss").normalize_L2
            for at in range(len(queries)):  # each separately, as a host does
                normalize(queries[at : at + 1])
        return queries

    def _scanned(
        self, vectors: Sequence[Vector], queries: Vectors, keeps: Callable[[Scored], bool], k: int
    ) -> list[list[Scored]]:
        """Return the documents of one scan, and of single searches where it is not certain.

        Single searches do not run in parallel: the bits of BLAS depend on its free threads.
        """
        width, own = (k, min(k, self.k)) if self.fetch_k is None else (self.fetch_k, self.fetch_k)
        scans = flat_search(self.index(), queries, width, self.stamp(), own)
        found = self.documents([scan.rows(width) for scan in scans])
        made = []
        for vector, scan, hits in zip(vectors, scans, found, strict=True):
            read, wider, cut = self._passing(scan, hits, [*map(keeps, hits)], min(k, self.k))
            if not scan.is_certain(read, len(hits), cut):
                note_repeat(1)
                wider = self._with_rest(self.single(vector, min(k, self.k)), wider)
            made.append(wider[:k])
        return made

    def _passing(
        self, scan: FlatScan, hits: list[Scored], passing: list[bool], own: int
    ) -> tuple[int, list[Scored], float | None]:
        """Return the number of rows that the host reads, what passes, and the cut of scores."""
        cut = None
        if self.threshold is not None:
            l2 = scan.metric is ScanMetric.L2  # scores are negated distances
            cut = -self.threshold if l2 else self.threshold
            above = exact_scores(scan.vectors[: len(hits)], scan.query, scan.metric) >= cut
            within = (above == (self.upwards() != l2)).tolist()
            passing = [ok and its for ok, its in zip(passing, within, strict=True)]
        kept = [at for at, ok in enumerate(passing) if ok]
        read = kept[own - 1] + 1 if len(kept) >= own else len(hits)
        return read, [hits[at] for at in kept], cut

    def _with_rest(self, own: Sequence[Scored], wider: Sequence[Scored]) -> list[Scored]:
        """Return the documents of the host's search, and the other ones of a wider search.

        Where the host found fewer than it asked for (it filters `fetch_k` rows), there are no
        others: those of a wider search stood in a tie with the host's last row.
        """
        if len(own) < self.k:
            return list(own)
        seen = {id(hit.document): hit for hit in wider}
        first = [seen.pop(id(hit.document), hit) for hit in own]
        return [*first, *seen.values()] if self.wide else first
