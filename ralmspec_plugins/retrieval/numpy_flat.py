"""Exact dense search with numpy alone: one matrix product a tile, nothing sorted but the best."""

from collections.abc import Hashable, Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ralmspec_plugins.records import Hits, Passage, Query
from ralmspec_plugins.retrieval.corpus import check_k
from ralmspec_plugins.retrieval.dense import DenseCorpus
from ralmspec_plugins.retrieval.dense_table import DenseTable
from ralmspec_plugins.retrieval.encoders import Encoder
from ralmspec_plugins.retrieval.parts import Parts
from ralmspec_plugins.retrieval.ranking import IntArray, Metric, Vectors, nominee_bound

_FIRST_ROWS = 1024  # sets the bar; all later rows only have to be held against it
_SECOND_ROWS = 16_384  # raises it
_TILE_SCORES = 1 << 20  # 4 MB; each tile is one wait for all BLAS threads, so few are better
_QUERIES_AT_ONCE = 64


class NumpyFlat:
    """Every passage is scored; the answer is the true top k, bit for bit, in any batch."""

    exact = True
    pure = True

    def __init__(self, corpus: DenseCorpus, *, k: int = 1) -> None:
        """Search a corpus, whose vectors may be memory-mapped and are not copied."""
        self.corpus = corpus
        self.k = check_k(k)
        self.size = corpus.size
        self.inline_encode = corpus.inline_encode
        self.signature: Hashable = ("numpy-flat", k, *corpus.identity)

    @classmethod
    def build(
        cls,
        passages: Sequence[Passage],
        encoder: Encoder | None = None,
        *,
        vectors: NDArray[np.float32] | None = None,
        k: int = 1,
        metric: str = Metric.IP,
    ) -> Self:
        """Encode the passages, unless their vectors are given, and search them."""
        return cls(DenseCorpus.encoded(passages, encoder, metric, vectors), k=k)

    def encode(self, text: str) -> Query:
        """Encode one query, alone in its pass."""
        return self.corpus.encode(text)

    def search(self, queries: Sequence[Query]) -> list[Hits]:
        """Find the best k passages of each query."""
        return self.search_wide(queries, self.k)

    def search_wide(self, queries: Sequence[Query], width: int) -> list[Hits]:
        """Find the best `width` passages of each query."""
        if not queries:
            return []
        corpus = self.corpus
        matrix = corpus.matrix(queries)
        found = []
        for start in range(0, len(matrix), _QUERIES_AT_ONCE):
            batch = matrix[start : start + _QUERIES_AT_ONCE]
            for query, rows in zip(batch, scan(corpus, batch, check_k(width)), strict=True):
                found.append(corpus.ranked(rows, query, width))
        return found

    def table(self, capacity: int) -> DenseTable:
        """Make an empty table for a pool."""
        return self.corpus.table(capacity)

    def parts(self) -> Parts:
        """Give what must be saved."""
        return Parts.of_dense("numpy-flat", self.corpus, self.k)

    @classmethod
    def from_parts(cls, parts: Parts, encoder: Encoder | None, k: int) -> Self:
        """Make the retriever again from what was saved."""
        return cls(parts.dense(encoder), k=k)


class Shortlist:
    """The rows that may still belong to one query's top k, and the bar for new ones."""

    def __init__(self, k: int, error: float) -> None:
        """Start with everything allowed in."""
        self._k, self._error = k, error
        self._fast = np.empty(0, dtype=np.float32)
        self.rows: IntArray = np.empty(0, dtype=np.int64)
        self.bar = np.float32(-np.inf)

    def add(self, rows: IntArray, fast: Vectors) -> None:
        """Take in rows that passed the bar, raise it, and drop what no longer passes."""
        self.rows = np.concatenate([self.rows, rows])
        self._fast = np.concatenate([self._fast, fast])
        surplus = len(self._fast) - self._k
        if surplus >= 0:
            kth = np.partition(self._fast, surplus)[surplus]
            self.bar = nominee_bound(float(kth), self._error)
            kept = self._fast >= self.bar
            self.rows, self._fast = self.rows[kept], self._fast[kept]


def scan(corpus: DenseCorpus, queries: Vectors, k: int) -> list[IntArray]:
    """Nominate, for each query, all rows that may belong to its true top k.

    A tile of rows times all queries is one matrix product, and picking from it
    one comparison with each query's bar: after the first tile hardly any row
    passes, so nothing is ever sorted or partitioned but a handful of numbers.
    """
    shortlists = [Shortlist(k, corpus.error(query)) for query in queries]
    columns = np.ascontiguousarray(queries.T)  # [dim, queries]
    opening = _fast_scores(corpus, columns, 0, _FIRST_ROWS)
    for column, shortlist in enumerate(shortlists):
        shortlist.add(np.arange(len(opening)), opening[:, column])
    bars = np.array([shortlist.bar for shortlist in shortlists])
    start, stop = _FIRST_ROWS, _SECOND_ROWS
    while start < corpus.size:
        fast = _fast_scores(corpus, columns, start, stop)
        passed = np.flatnonzero(fast >= bars)
        if len(passed):
            _share(passed, fast, start, shortlists, bars)
        start, stop = stop, stop + _TILE_SCORES // len(queries)
    return [shortlist.rows for shortlist in shortlists]


def _fast_scores(corpus: DenseCorpus, columns: Vectors, start: int, stop: int) -> Vectors:
    """Score a tile in float32; for L2 as 2 x.q - |x|^2, which ranks alike."""
    fast = corpus.vectors[start:stop] @ columns  # [rows, queries]
    if corpus.squares is not None:
        fast *= 2
        fast -= corpus.squares[start:stop, None]
    return fast


def _share(
    passed: IntArray, fast: Vectors, start: int, shortlists: list[Shortlist], bars: Vectors
) -> None:
    """Hand each query the rows of a tile that passed its bar."""
    rows, columns = np.divmod(passed, len(shortlists))
    scores = fast.ravel()[passed]
    for column in np.unique(columns).tolist():
        mine = columns == column
        shortlists[column].add(rows[mine] + start, scores[mine])
        bars[column] = shortlists[column].bar
