"""Batch search of `llama_index.vector_stores.faiss.FaissVectorStore`."""

from typing import Any

from llama_index.core.indices.vector_store.retrievers import VectorIndexRetriever
from llama_index.core.vector_stores.types import VectorStoreQueryResult

from llama_index_ralmspec.stores.base import Found, NodeMaker, narrowing
from ralmspec_plugins.adapters.stores.faiss import FaissRow, FaissSearch


def faiss_search(retriever: VectorIndexRetriever) -> FaissSearch | None:
    """Return the batch search of a FAISS index; `None` for filters, which the store rejects."""
    settings = narrowing(retriever)
    store: Any = retriever._vector_store  # noqa: SLF001
    if settings is None or settings.filters is not None:
        return None
    return FaissSearch(
        k=settings.k,
        index=lambda: store._faiss_index,  # noqa: SLF001
        documents=NodeMaker(retriever, _found),
        shown=float,  # a product or a squared distance, unchanged
    )


def _found(rows: list[FaissRow]) -> Found:
    result = VectorStoreQueryResult(
        similarities=[row.score for row in rows], ids=[str(row.id) for row in rows]
    )
    vectors = [row.vector for row in rows]
    return Found(result, None if any(one is None for one in vectors) else vectors)
