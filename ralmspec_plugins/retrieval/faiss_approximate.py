"""Approximate dense search with FAISS: HNSW and IVF indexes, in batches that change nothing."""

from collections.abc import Hashable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ralmspec_plugins.errors import IndexFileError
from ralmspec_plugins.retrieval.corpus import check_k
from ralmspec_plugins.retrieval.dense import DenseCorpus
from ralmspec_plugins.retrieval.dense_table import DenseTable
from ralmspec_plugins.retrieval.encoders import Encoder
from ralmspec_plugins.retrieval.faiss_queries import IndexQueries, index_digest, write_to
from ralmspec_plugins.retrieval.faiss_recipes import RECIPES, Hnsw, Recipe
from ralmspec_plugins.retrieval.optional import optional
from ralmspec_plugins.retrieval.parts import Parts
from ralmspec_plugins.retrieval.ranking import IntArray, Metric, Vectors
from ralmspec_plugins.types import Hits, Passage, Query


def _faiss() -> Any:
    return optional("faiss", "faiss", "faiss-cpu")


class FaissApproximate:
    """Search in an HNSW or IVF index: fast, and now and then not the best passages.

    What is verified comes from a search with this k and these settings. A wider
    search may start with other hits, so there is none (this is no `WideRetriever`).
    What the index returns is scored exactly and ordered as everywhere.
    A query's hits do not depend on its batch (see `IndexQueries`).
    """

    exact = False
    pure = True

    def __init__(
        self,
        corpus: DenseCorpus,
        index: Any,
        recipe: Recipe,
        *,
        k: int = 1,
        digest: str | None = None,
    ) -> None:
        """Search an index that holds exactly the corpus's vectors, in order.

        Args:
            corpus: the passages and their vectors.
            index: FAISS's index of them.
            recipe: how it was made.
            k: how many passages a query gets.
            digest: the index's, where storage knows it already.

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
        self.queries = IndexQueries(self._faiss, index)
        self._digest = digest or index_digest(self._faiss, index)
        self._count = min(recipe.candidates(k), self.size)
        self.signature: Hashable = (recipe.name, k, self._count, self._digest, *corpus.identity)

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
        """Find k good passages of each query, in the way that is fastest for so many."""
        if not queries:
            return []
        return self.queries.ranked(self.corpus.matrix(queries), self._count, self._ranked)

    def _ranked(self, query: Vectors, _: Vectors, rows: IntArray) -> Hits:
        return self.corpus.ranked(rows[rows >= 0], query, self.k)

    def table(self, capacity: int) -> DenseTable:
        """Make an empty table for a pool, which may find better passages than the index."""
        return self.corpus.table(capacity)

    def parts(self) -> Parts:
        """Give what must be saved."""
        parts = Parts.of_dense(
            self.recipe.name,
            self.corpus,
            self.k,
            recipe=self.recipe.settings(),
            index_digest=self._digest,
        )
        return replace(parts, written={"index.faiss": partial(write_to, self._faiss, self.index)})

    @classmethod
    def from_parts(cls, parts: Parts, encoder: Encoder | None, k: int) -> Self:
        """Make the retriever again from what was saved.

        Raises:
            IndexFileError: the saved index cannot be read.
        """
        file = parts.file("index.faiss")
        try:
            index = _faiss().read_index(str(file))
        except RuntimeError as error:
            raise IndexFileError(
                f"index.faiss cannot be read ({error}); build the knowledge base again"
            ) from error
        recipe = RECIPES[parts.backend](**parts.setting("recipe"))
        digest = parts.setting("index_digest")
        return cls(parts.dense(encoder), index, recipe, k=k, digest=digest)
