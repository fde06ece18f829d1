"""Batch search of `llama_index.vector_stores.chroma.ChromaVectorStore`."""

import math
from importlib import import_module
from typing import Any, Final

from llama_index.core.indices.vector_store.retrievers import VectorIndexRetriever
from llama_index.core.vector_stores.types import VectorStoreQueryResult
from llama_index.core.vector_stores.utils import metadata_dict_to_node

from llama_index_ralmspec.stores.base import Found, NodeMaker, narrowing
from ralmspec_plugins.adapters.stores.chroma import ChromaRow, ChromaSearch

_KNOWN: Final = frozenset({"where", "where_document"})
_LARGEST: Final = 700.0  # `exp` overflows for arguments not much larger


def chroma_search(retriever: VectorIndexRetriever) -> ChromaSearch | None:
    """Return the batch search of a Chroma collection; `None` for unsupported settings."""
    settings = narrowing(retriever, _KNOWN)
    store: Any = retriever._vector_store  # noqa: SLF001
    if settings is None or (settings.filters is not None and "where" in settings.kwargs):
        return None

    def where() -> Any:
        if settings.filters is None:
            return settings.kwargs.get("where") or None
        module = import_module(type(store).__module__)
        return module._to_chroma_filter(settings.filters) or None  # noqa: SLF001 its own conversion

    return ChromaSearch(
        k=settings.k,
        collection=lambda: store._collection,  # noqa: SLF001
        options=lambda: {
            "where": where(),
            "where_document": settings.kwargs.get("where_document"),
        },
        documents=NodeMaker(retriever, _found),
        shown=lambda distance: math.exp(min(-distance, _LARGEST)),
    )


def _found(rows: list[ChromaRow]) -> Found:
    """Return nodes and similarities as the store does; rows of older versions raise an error."""
    result = VectorStoreQueryResult(
        nodes=[metadata_dict_to_node(dict(row.metadata or {}), text=row.text) for row in rows],
        similarities=[math.exp(-row.score) for row in rows],
        ids=[row.id for row in rows],
    )
    return Found(result, [row.vector for row in rows])
