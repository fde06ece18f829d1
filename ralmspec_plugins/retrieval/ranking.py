"""The ranking of candidates, shared by all exact retrievers.

A fast float32 kernel (a matrix product, a library's scan) differs in the last
bits between batches, so it only selects candidates. These are scored again
in float64, each row separately, and sorted by (score descending, passage id
ascending). So all searches, passage caches and batch sizes agree to the bit.
"""

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ralmspec_plugins.errors import ConfigError

FloatArray: TypeAlias = NDArray[np.float64]
IntArray: TypeAlias = NDArray[np.int64]
Vectors: TypeAlias = NDArray[np.float32]

FLOAT32_ROUNDOFF = 2.0**-24  # its unit roundoff
_U64 = 2.0**-53  # and of float64
_TINY = 2.0**-125  # upper bound of the error of flushing one product or operand to zero
_ROWS_AT_ONCE = 1024  # rescored at a time; limits memory, and changes no bit
LARGEST_NORM = 1e17  # up to this norm squares and products do not overflow


class Metric(StrEnum):
    """The metric of passages' and queries' vectors; a bigger score is always better."""

    IP = "ip"  # inner product
    COSINE = "cosine"  # inner product of vectors that are normalised when stored and encoded
    L2 = "l2"  # minus the squared Euclidean distance


def metric_of(name: str) -> Metric:
    """Return a metric by name.

    Raises:
        ConfigError: the name is unknown.
    """
    try:
        return Metric(name)
    except ValueError:
        known = ", ".join(Metric)
        raise ConfigError(f"unknown metric {name!r}; known are {known}") from None


def exact_scores(rows: NDArray[np.floating[Any]], query: Vectors, metric: Metric) -> FloatArray:
    """Return the scores of rows in float64, each independent of all others.

    An elementwise product, summed along the contiguous row: numpy adds each row
    pairwise in an order that only the dimension determines. A matrix-vector product
    would be faster, but may give identical rows unequal scores.

    >>> row = np.array([[3.0, 4.0]], dtype=np.float32)
    >>> exact_scores(row, np.array([1.0, 1.0], dtype=np.float32), Metric.IP).tolist()
    [7.0]
    >>> exact_scores(row, np.array([0.0, 0.0], dtype=np.float32), Metric.L2).tolist()
    [-25.0]
    """
    scores = np.empty(len(rows), dtype=np.float64)
    wide_query = query.astype(np.float64)
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        block = np.array(rows[start : start + _ROWS_AT_ONCE], dtype=np.float64, order="C")
        if metric is Metric.L2:
            block -= wide_query
            block *= block
            np.negative(block, out=block)
        else:
            block *= wide_query  # exact: 24 bits times 24 bits fit in 53
        scores[start : start + _ROWS_AT_ONCE] = block.sum(axis=1) + 0.0  # and never -0.0
    return scores


def kernel_error(
    metric: Metric,
    dimension: int,
    largest_norm: float,
    query_norm: float,
    roundoff: float = FLOAT32_ROUNDOFF,
) -> float:
    """Return an upper bound of the difference of a float32 kernel's score and `exact_scores`.

    A sum of d products, in any order and with or without fused operations, is
    within gamma_d * sum|x_i q_i| <= gamma_d |x||q| of the truth, where
    gamma_n = n u / (1 - n u) (Higham, Accuracy and Stability, section 3.1). For
    L2 both forms in use, sum (x_i - q_i)^2 and 2 x.q - |x|^2 (- |q|^2), stay
    within gamma_{d+4} (|x| + |q|)^2. The float64 score's own error is added in
    the same form, and an allowance for results flushed to zero. `roundoff` is u,
    for a kernel with less precise additions than float32 arithmetic on a CPU.
    """
    terms = dimension + 4
    gamma = terms * roundoff / (1 - terms * roundoff) + terms * _U64 / (1 - terms * _U64)
    both = largest_norm + query_norm
    scale = both * both if metric is Metric.L2 else largest_norm * query_norm
    return gamma * scale * (1 + 1e-9) + dimension * _TINY * (1 + both)


def nominee_bound(kth_fast: float, error: float) -> np.float32:
    """Return the minimum fast score of rows that may belong to the true top k.

    k rows have an exact score of at least `kth_fast - error`; a row whose fast
    score is below `kth_fast - 2 error` has a smaller exact score than all of
    these. So exactly the rows with at least this score are candidates.
    """
    bound: np.float32 = np.nextafter(np.float32(kth_fast - 2 * error), np.float32(-np.inf))
    return bound


def nominees(fast: Vectors, k: int, error: float) -> IntArray:
    """Return the positions of all scores that may belong to the true top k."""
    if k >= len(fast):
        return np.arange(len(fast))
    kth = fast.max() if k == 1 else np.partition(fast, len(fast) - k)[len(fast) - k]
    return np.flatnonzero(fast >= nominee_bound(float(kth), error))


def row_numbers(slots: Sequence[int]) -> IntArray:
    """Return slot numbers as an index array; a range without iterating over it."""
    if isinstance(slots, range):
        return np.arange(slots.start, slots.stop, slots.step)
    return np.asarray(slots, dtype=np.int64)


def best_first(scores: FloatArray | Vectors, places: IntArray, k: int) -> IntArray:
    """Return the positions of the best k: score descending, then place (of the id) ascending."""
    if len(scores) > 4 * k:
        kth = np.partition(scores, len(scores) - k)[len(scores) - k]
        kept = np.flatnonzero(scores >= kth)
        return kept[np.lexsort((places[kept], -scores[kept]))[:k]]
    return np.lexsort((places, -scores))[:k]


def certified_top_k(
    candidates: Callable[[int], tuple[IntArray, Vectors]],
    exact: Callable[[IntArray], FloatArray],
    places: IntArray,
    k: int,
    error: float,
) -> tuple[IntArray, FloatArray]:
    """Return the top k with a kernel that returns its top m, with m as large as necessary.

    The margin doubles until the last candidate's fast score is below the k-th
    rescored one by more than twice the kernel's error: then no omitted row
    can belong to the top k. (One error would suffice; the other is a reserve for
    foreign kernels.)

    Args:
        candidates: returns a width's best rows, and their fast scores, best first.
        exact: scores rows as `exact_scores` does.
        places: each row's position in the order of passage ids.
        k: the number of results.
        error: the kernel's bound, from `kernel_error`.
    """
    size = len(places)
    k = min(k, size)
    width = min(size, k + max(8, k // 4))
    while True:
        rows, fast = candidates(width)
        scores = exact(rows)
        best = best_first(scores, places[rows], k)
        if width == size or float(fast[-1]) < scores[best[-1]] - 2 * error:
            return rows[best], scores[best]
        width = min(size, 2 * width)


# The rows that may still belong to a query's true top k, during a scan.


class Shortlist:
    """The rows that may still belong to one query's top k, and the bar for new ones.

    The bar is raised when as many rows were added as were kept before: immediately for a k of
    1, and not for every few rows for a k of 1024.
    """

    def __init__(self, k: int, error: float) -> None:
        """Create a shortlist that accepts all rows."""
        self._k, self._error = k, error
        self._rows: list[IntArray] = []
        self._fast: list[Vectors] = []
        self._count = 0  # number of rows in these
        self._room = k  # number of rows at which the bar is raised
        self.bar = np.float32(-np.inf)

    def add(self, rows: IntArray, fast: Vectors) -> None:
        """Add rows that passed the bar; raise it, and drop rows that no longer pass."""
        self._rows.append(rows)
        self._fast.append(fast)
        self._count += len(rows)
        if self._count >= self._room:
            self._raise_bar()

    def _raise_bar(self) -> None:
        rows, fast = np.concatenate(self._rows), np.concatenate(self._fast)
        kth = np.partition(fast, len(fast) - self._k)[len(fast) - self._k]
        self.bar = nominee_bound(float(kth), self._error)
        kept = fast >= self.bar
        self._rows, self._fast = [rows[kept]], [fast[kept]]
        self._count = len(self._rows[0])
        self._room = 2 * self._count if self._k > 1 else self._count + 1

    @property
    def kept(self) -> tuple[IntArray, Vectors]:
        """Return all rows that may belong to the top k, and their fast scores."""
        if self._count > self._k:
            self._raise_bar()
        if not self._rows:
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
        return np.concatenate(self._rows), np.concatenate(self._fast)

    @property
    def rows(self) -> IntArray:
        """Return the rows without their scores."""
        return self.kept[0]

    def merge(self, other: "Shortlist") -> None:
        """Add another shortlist of other rows for the same query."""
        self.add(*other.kept)


def deal(numbers: IntArray, fast: Vectors, shortlists: Sequence[Shortlist]) -> None:
    """Add each query's rows to its shortlist.

    Args:
        numbers: each is a row, times the number of queries, plus a query.
        fast: their scores.
        shortlists: the queries'.
    """
    rows, queries = np.divmod(numbers, len(shortlists))
    order = np.argsort(queries.astype(np.uint16), kind="stable")  # 16 bits are sorted by radix
    rows, fast = rows[order], fast[order]
    ends = np.cumsum(np.bincount(queries, minlength=len(shortlists))).tolist()
    for shortlist, start, end in zip(shortlists, [0, *ends], ends, strict=False):
        if start < end:
            shortlist.add(rows[start:end], fast[start:end])
