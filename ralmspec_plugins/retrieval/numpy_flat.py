"""Exact dense search with numpy alone: float32 products nominate, float64 scores decide."""

from collections.abc import Hashable, Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ralmspec_plugins.retrieval.corpus import check_k
from ralmspec_plugins.retrieval.dense import DenseCorpus
from ralmspec_plugins.retrieval.dense_table import DenseTable
from ralmspec_plugins.retrieval.encoders import Encoder
from ralmspec_plugins.retrieval.parts import Parts
from ralmspec_plugins.retrieval.ranking import Metric
from ralmspec_plugins.retrieval.scan import InTurn, OwnThreads, Scan, check_threads
from ralmspec_plugins.types import Hits, Passage, Query

_QUERIES_AT_ONCE = 64


class NumpyFlat:
    """Every passage is scored; the answer is the true top k, bit for bit, in any batch.

    With `threads=n` the rows are scanned by n threads of the retriever's own,
    which is faster for batches and gives the same bits. BLAS must then run on
    one thread. That is a switch of the whole process, and it stays set: other
    users of numpy's BLAS in it (and of the BLAS that scipy or FAISS bring
    along) get one thread too. So it is left alone unless this argument asks
    for it. `threads` is not saved; a loaded knowledge base gets them by
    `NumpyFlat(loaded.corpus, k=loaded.k, threads=n)`.
    """

    exact = True
    pure = True

    def __init__(self, corpus: DenseCorpus, *, k: int = 1, threads: int | None = None) -> None:
        """Search a corpus, whose vectors may be memory-mapped and are not copied.

        Args:
            corpus: the passages and their vectors.
            k: how many passages a query gets.
            threads: scan on so many threads of our own, with BLAS held to one thread in the
                whole process; None leaves the threads to BLAS.

        Raises:
            ConfigError: k or threads below 1.
            MissingExtraError: threads are asked for, and threadpoolctl is not installed.
        """
        self.corpus = corpus
        self.k = check_k(k)
        self._scan: Scan = InTurn() if threads is None else OwnThreads(threads)
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
        threads: int | None = None,
    ) -> Self:
        """Encode the passages, unless their vectors are given, and search them."""
        check_threads(threads)  # before encoding for hours
        return cls(DenseCorpus.encoded(passages, encoder, metric, vectors), k=k, threads=threads)

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
            for query, rows in zip(batch, self._scan(corpus, batch, check_k(width)), strict=True):
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
