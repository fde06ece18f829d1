"""Batch search of `langchain_qdrant.QdrantVectorStore`, dense vectors."""

from typing import Any, Final

from langchain_core.vectorstores import VectorStoreRetriever

from langchain_ralmspec.stores.base import each_row, known_k, stores_relevance
from ralmspec_plugins.adapters.batch_search import Scored
from ralmspec_plugins.adapters.stores.qdrant import Points, QdrantSearch, is_rest_model, vector_of

_OPTIONS: Final = frozenset({"filter", "offset", "score_threshold", "consistency"})


def qdrant_search(retriever: VectorStoreRetriever) -> QdrantSearch | None:
    """Return the batch search of a Qdrant collection; `None` for unsupported settings."""
    store: Any = retriever.vectorstore
    settings = retriever.search_kwargs
    k = known_k(settings, {"search_params", *_OPTIONS})
    if k is None or type(store.client).__name__ != "QdrantClient":
        return None
    if getattr(store.retrieval_mode, "value", None) != "dense" or store.embeddings is None:
        return None
    if not all(is_rest_model(settings.get(name)) for name in ("filter", "search_params")):
        return None
    options = {name: settings[name] for name in _OPTIONS if name in settings}

    def scored(point: Any) -> Scored:
        document = store._document_from_point(  # noqa: SLF001 the wrapper's own conversion
            point, store.collection_name, store.content_payload_key, store.metadata_payload_key
        )
        return Scored(document, vector_of(point, store.vector_name), point.score)

    return QdrantSearch(
        k=k,
        points=lambda: Points(store.client, store.collection_name, store.vector_name),
        distance=lambda: store.distance,
        params=lambda: settings.get("search_params"),
        options=lambda: options,
        documents=each_row(scored),
        relevance=stores_relevance(store),
    )
