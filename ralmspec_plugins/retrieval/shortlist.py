"""The rows that may still belong to a query's true top k, while a scan is going on."""

from collections.abc import Sequence

import numpy as np

from ralmspec_plugins.retrieval.ranking import IntArray, Vectors, nominee_bound


class Shortlist:
    """The rows that may still belong to one query's top k, and the bar for new ones.

    It is raised when as many rows have come as were kept before: at once where k is
    1, and where it is 1024 not for each handful that passes.
    """

    def __init__(self, k: int, error: float) -> None:
        """Start with everything allowed in."""
        self._k, self._error = k, error
        self._rows: list[IntArray] = []
        self._fast: list[Vectors] = []
        self._count = 0  # of rows in these
        self._room = k  # rows at which the bar is raised
        self.bar = np.float32(-np.inf)

    def add(self, rows: IntArray, fast: Vectors) -> None:
        """Take in rows that passed the bar; raise it, and drop what no longer passes."""
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
        """All rows that may belong to the top k, none known not to, and their fast scores."""
        if self._count > self._k:
            self._raise_bar()
        if not self._rows:
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
        return np.concatenate(self._rows), np.concatenate(self._fast)

    @property
    def rows(self) -> IntArray:
        """The rows of these alone."""
        return self.kept[0]

    def merge(self, other: "Shortlist") -> None:
        """Take in another shortlist, made over other rows for the same query."""
        self.add(*other.kept)


def deal(numbers: IntArray, fast: Vectors, shortlists: Sequence[Shortlist]) -> None:
    """Hand each query's rows to its shortlist.

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
