"""Batch search of `langchain_chroma.Chroma`."""

from typing import Any

from langchain_core.documents import Document
from langchain_core.vectorstores import VectorStoreRetriever

from langchain_ralmspec.stores.base import each_row, known_k, stores_relevance
from ralmspec_plugins.adapters.batch_search import Scored
from ralmspec_plugins.adapters.stores.chroma import ChromaRow, ChromaSearch


def chroma_search(retriever: VectorStoreRetriever) -> ChromaSearch | None:
    """Return the batch search of a Chroma collection; `None` for unsupported settings."""
    store: Any = retriever.vectorstore
    settings = retriever.search_kwargs
    k = known_k(settings, {"filter", "where_document"})
    if k is None or store.embeddings is None or store._chroma_collection is None:  # noqa: SLF001
        return None
    narrowed = {
        "where": settings.get("filter"),
        "where_document": settings.get("where_document"),
    }
    return ChromaSearch(
        k=k,
        collection=lambda: store._collection,  # noqa: SLF001 no public name
        options=lambda: narrowed,
        documents=each_row(_scored),
        relevance=stores_relevance(store),
    )


def _scored(row: ChromaRow) -> Scored | None:
    """Return a row's document as the wrapper does, which omits rows without text."""
    if row.text is None:
        return None
    document = Document(page_content=row.text, metadata=dict(row.metadata or {}), id=row.id)
    return Scored(document, row.vector, row.score)
