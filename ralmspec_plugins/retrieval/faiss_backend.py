"""Dense search with FAISS: exact over flat vectors, approximate over HNSW and IVF indexes."""

import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ralmspec_plugins.errors import IndexFileError
from ralmspec_plugins.records import Hits, Passage, Query
from ralmspec_plugins.retrieval.corpus import check_k
from ralmspec_plugins.retrieval.dense import DenseCorpus
from ralmspec_plugins.retrieval.dense_table import DenseTable
from ralmspec_plugins.retrieval.encoders import Encoder
from ralmspec_plugins.retrieval.faiss_recipes import RECIPES, Hnsw, Recipe
from ralmspec_plugins.retrieval.optional import optional
from ralmspec_plugins.retrieval.parts import Parts
from ralmspec_plugins.retrieval.ranking import IntArray, Metric, Vectors, certified_top_k


def _faiss() -> Any:
    return optional("faiss", "faiss", "faiss-cpu")


class FaissFlat:
    """Exact search by FAISS's own scan, then ranked as every exact retriever here ranks.

    The vectors are searched where they are, also memory-mapped: no index is made.
    FAISS gives a batch no advantage below some 128,000 / dimension queries, unless
    `lower_blas_threshold` is set (GROUND.md) - which changes all of FAISS in this
    process, so nothing here does it unasked.
    """

    exact = True
    pure = True

    def __init__(
        self, corpus: DenseCorpus, *, k: int = 1, lower_blas_threshold: bool = False
    ) -> None:
        """Search a corpus.

        Args:
            corpus: the passages and their vectors.
            k: how many passages a query gets.
            lower_blas_threshold: let batches through BLAS, for the whole process.
        """
        self._faiss = _faiss()
        self.corpus = corpus
        self.k = check_k(k)
        self.size = corpus.size
        self.inline_encode = corpus.inline_encode
        self.signature: Hashable = ("faiss-flat", k, *corpus.identity)
        if lower_blas_threshold:
            self._faiss.cvar.distance_compute_blas_threshold = 3 * corpus.dimension

    @classmethod
    def build(
        cls,
        passages: Sequence[Passage],
        encoder: Encoder | None = None,
        *,
        vectors: NDArray[np.float32] | None = None,
        k: int = 1,
        metric: str = Metric.IP,
        lower_blas_threshold: bool = False,
    ) -> Self:
        """Encode the passages, unless their vectors are given, and search them."""
        _faiss()  # before hours of encoding
        corpus = DenseCorpus.encoded(passages, encoder, metric, vectors)
        return cls(corpus, k=k, lower_blas_threshold=lower_blas_threshold)

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
        matrix = self.corpus.matrix(queries)
        first = min(self.size, check_k(width) + max(8, width // 4))
        fast, rows = self._nearest(matrix, first)
        return [self._certified(matrix[at], width, rows[at], fast[at]) for at in range(len(matrix))]

    def _certified(self, query: Vectors, width: int, rows: IntArray, fast: Vectors) -> Hits:
        def candidates(count: int) -> tuple[IntArray, Vectors]:
            if count == len(rows):
                return rows, fast
            more_fast, more_rows = self._nearest(query[None], count)
            return more_rows[0], more_fast[0]

        corpus = self.corpus
        best, scores = certified_top_k(
            candidates,
            lambda chosen: corpus.exact(chosen, query),
            corpus.places,
            width,
            corpus.error(query),
        )
        return corpus.hits(best, scores)

    def _nearest(self, queries: Vectors, count: int) -> tuple[Vectors, IntArray]:
        if self.corpus.metric is Metric.L2:
            far, rows = self._faiss.knn(queries, self.corpus.vectors, count)
            return -far, rows
        inner = self._faiss.METRIC_INNER_PRODUCT
        fast, rows = self._faiss.knn(queries, self.corpus.vectors, count, metric=inner)
        return fast, rows

    def table(self, capacity: int) -> DenseTable:
        """Make an empty table for a pool."""
        return self.corpus.table(capacity)

    def parts(self) -> Parts:
        """Give what must be saved."""
        return Parts.of_dense("faiss-flat", self.corpus, self.k)

    @classmethod
    def from_parts(cls, parts: Parts, encoder: Encoder | None, k: int) -> Self:
        """Make the retriever again from what was saved."""
        return cls(parts.dense(encoder), k=k)


class FaissApproximate:
    """Search in an HNSW or IVF index: fast, and now and then not the best passages.

    What is verified comes from a search with this k and these settings, one
    query at a time, so nothing depends on the batch. A wider search may start
    with other hits, so there is none (this is no `WideRetriever`). What the index
    returns is scored exactly and ordered as everywhere.
    """

    exact = False
    pure = True

    def __init__(self, corpus: DenseCorpus, index: Any, recipe: Recipe, *, k: int = 1) -> None:
        """Search an index that holds exactly the corpus's vectors, in order.

        Raises:
            IndexFileError: the index holds something else.
        """
        self._faiss = _faiss()
        if (index.ntotal, index.d) != corpus.vectors.shape:
            raise IndexFileError(
                f"the FAISS index holds {index.ntotal} vectors of dimension {index.d}, the corpus "
                f"{corpus.size} of {corpus.dimension}; build it again"
            )
        self.corpus = corpus
        self.index = index
        self.recipe = recipe
        self.k = check_k(k)
        self.size = corpus.size
        self.inline_encode = corpus.inline_encode
        # Two graphs over the same corpus may answer differently: the index is digested too.
        digest = hashlib.sha256(self._serialised().data).hexdigest()[:32]
        self.signature: Hashable = (recipe.name, k, digest, *corpus.identity)

    @classmethod
    def build(
        cls,
        passages: Sequence[Passage],
        encoder: Encoder | None = None,
        *,
        recipe: Recipe | None = None,
        vectors: NDArray[np.float32] | None = None,
        k: int = 1,
        metric: str = Metric.IP,
    ) -> Self:
        """Encode the passages, unless their vectors are given, and index them."""
        faiss = _faiss()
        corpus = DenseCorpus.encoded(passages, encoder, metric, vectors)
        kind = faiss.METRIC_L2 if corpus.metric is Metric.L2 else faiss.METRIC_INNER_PRODUCT
        recipe = recipe or Hnsw()
        index = recipe.make(faiss, corpus, kind)
        index.train(corpus.vectors)
        index.add(corpus.vectors)
        return cls(corpus, index, recipe, k=k)

    def encode(self, text: str) -> Query:
        """Encode one query, alone in its pass."""
        return self.corpus.encode(text)

    def search(self, queries: Sequence[Query]) -> list[Hits]:
        """Find k good passages of each query, each searched by itself."""
        if not queries:
            return []
        found = []
        for query in self.corpus.matrix(queries):
            _, rows = self.index.search(query[None], min(self.k, self.size))
            found.append(self.corpus.ranked(rows[0][rows[0] >= 0], query, self.k))
        return found

    def table(self, capacity: int) -> DenseTable:
        """Make an empty table for a pool, which may find better passages than the index."""
        return self.corpus.table(capacity)

    def parts(self) -> Parts:
        """Give what must be saved."""
        parts = Parts.of_dense(self.recipe.name, self.corpus, self.k, recipe=self.recipe.settings())
        return replace(parts, blobs={"index.faiss": self._serialised().tobytes()})

    def _serialised(self) -> NDArray[np.uint8]:
        serialised: NDArray[np.uint8] = self._faiss.serialize_index(self.index)
        return serialised

    @classmethod
    def from_parts(cls, parts: Parts, encoder: Encoder | None, k: int) -> Self:
        """Make the retriever again from what was saved.

        Raises:
            IndexFileError: the saved index cannot be read.
        """
        data = np.frombuffer(parts.blob("index.faiss"), dtype=np.uint8)
        try:
            index = _faiss().deserialize_index(data)
        except RuntimeError as error:
            raise IndexFileError(
                f"index.faiss cannot be read ({error}); build the knowledge base again"
            ) from error
        recipe = RECIPES[parts.backend](**parts.setting("recipe"))
        return cls(parts.dense(encoder), index, recipe, k=k)
