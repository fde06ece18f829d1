"""Batch search of LangChain's InMemoryVectorStore, by its own formula on shared arrays."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore, VectorStoreRetriever
from langchain_core.vectorstores import utils as host
from numpy.typing import NDArray

from langchain_ralmspec.stores.base import known_k
from ralmspec_plugins.adapters.batch_search import Metric, Scored, Vector


class InMemorySearch:
    """Scores every query separately, exactly as the store does, with one array for a batch.

    Converting the vectors from lists to an array takes most of the time of the store's own
    search, which does this for each query.
    """

    name = "InMemoryVectorStore"
    exact = True  # each query has its own matrix product
    wide = True  # the results are a prefix of one sorted list
    metric: Metric = "cosine"

    def __init__(
        self, store: InMemoryVectorStore, k: int, accept: Callable[[Document], bool] | None
    ) -> None:
        """Create a search of this store for the documents that `accept` returns true for."""
        self._store = store
        self._accept = accept
        self.k = k

    def relevance(self) -> None:
        """Return `None`: the store has no relevance scores and raises its own error."""

    def search(self, vectors: Sequence[Vector], k: int) -> list[list[Scored]]:
        """Return the best k documents of each vector."""
        rows = self._accepted()
        if not rows:
            return [[] for _ in vectors]
        table = np.array([row["vector"] for row in rows])  # [rows, dim]
        norms = np.linalg.norm(table, axis=1) if _plain(table) else None
        return [self._best(rows, _cosines(vector, table, norms), k) for vector in vectors]

    def _accepted(self) -> list[dict[str, Any]]:
        rows = list(self._store.store.values())
        if self._accept is None:
            return rows
        return [row for row in rows if self._accept(_document(row))]

    @staticmethod
    def _best(
        rows: Sequence[dict[str, Any]], cosines: NDArray[np.floating[Any]], k: int
    ) -> list[Scored]:
        best = cosines.argsort()[::-1][:k]  # the store's own sort, so that ties are equal
        return [
            Scored(_document(rows[at]), rows[at]["vector"], float(cosines[at].item()))
            for at in best
        ]


def in_memory_search(retriever: VectorStoreRetriever) -> InMemorySearch | None:
    """Return the batch search of a retriever over an `InMemoryVectorStore`."""
    store, settings = retriever.vectorstore, retriever.search_kwargs
    k = known_k(settings, {"filter"})
    if k is None or not isinstance(store, InMemoryVectorStore):
        return None
    if not hasattr(host, "_cosine_similarity"):
        return None
    return InMemorySearch(store, k, settings.get("filter"))


def _document(row: dict[str, Any]) -> Document:
    return Document(id=row["id"], page_content=row["text"], metadata=row["metadata"])


def _plain(table: NDArray[Any]) -> bool:
    """Return whether the store scores these vectors by numpy alone, and without a warning."""
    return (
        not getattr(host, "_HAS_SIMSIMD", True)
        and table.ndim == 2
        and table.dtype.kind in "fiu"
        and bool(np.isfinite(table).all())
    )


def _cosines(
    vector: Vector, table: NDArray[Any], norms: NDArray[Any] | None
) -> NDArray[np.floating[Any]]:
    """Return the scores of all rows by the store's own operations on the same shapes."""
    query = np.array([vector])  # [1, dim]
    if norms is not None and query.shape[1:] == table.shape[1:] and _plain(query):
        with np.errstate(divide="ignore", invalid="ignore"):
            cosines = np.dot(query, table.T) / np.outer(np.linalg.norm(query, axis=1), norms)
        lost = ~np.isfinite(cosines)
        if not lost.all():
            cosines[lost] = 0.0
            scores: NDArray[np.floating[Any]] = cosines[0]
            return scores
    # Warnings and errors are the store's own.
    found: NDArray[np.floating[Any]] = host._cosine_similarity([vector], table)[0]  # noqa: SLF001
    return found
