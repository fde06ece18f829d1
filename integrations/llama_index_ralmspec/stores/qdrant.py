"""Batch search of `llama_index.vector_stores.qdrant.QdrantVectorStore`, dense vectors."""

from collections.abc import Mapping
from typing import Any, Final

from llama_index.core.indices.vector_store.retrievers import VectorIndexRetriever

from llama_index_ralmspec.stores.base import Found, NodeMaker, narrowing
from ralmspec_plugins.adapters.stores.qdrant import (
    Points,
    QdrantSearch,
    is_rest_model,
    search_params,
    vector_of,
)

_KNOWN: Final = frozenset({"qdrant_filters", "search_params"})


def qdrant_search(retriever: VectorIndexRetriever) -> QdrantSearch | None:
    """Return the batch search of a Qdrant collection; `None` for unsupported settings."""
    settings = narrowing(retriever, _KNOWN)
    store: Any = retriever._vector_store  # noqa: SLF001
    if settings is None or type(store._client).__name__ != "QdrantClient":  # noqa: SLF001
        return None
    own, params = settings.kwargs.get("qdrant_filters"), settings.kwargs.get("search_params")
    if not is_rest_model(own) or not (isinstance(params, dict) or is_rest_model(params)):
        return None

    def options() -> Mapping[str, Any]:
        return {
            "filter": store._build_query_filter(settings.query(None)) if own is None else own,  # noqa: SLF001
        }

    async def awaited() -> Any:
        """Return the asynchronous client, initialised as by the store's `aquery`."""
        store._ensure_async_client()  # noqa: SLF001 the error is the store's own
        client = store._aclient  # noqa: SLF001
        if store._legacy_vector_format is None:  # noqa: SLF001
            await store._adetect_vector_format(store.collection_name)  # noqa: SLF001
        return client

    def found(points: list[Any]) -> Found:
        vectors = [vector_of(point, store.dense_vector_name) for point in points]
        for point in points:
            point.vector = None  # the store's own search does not fetch vectors
        return Found(store.parse_to_query_result(points), vectors)

    return QdrantSearch(
        k=settings.k,
        points=lambda: Points(store._client, store.collection_name, store.dense_vector_name),  # noqa: SLF001
        distance=lambda: _distance(store),
        params=lambda: search_params(params) if isinstance(params, dict) else params,
        awaited=awaited,
        options=options,
        documents=NodeMaker(retriever, found),
        shown=float,  # as Qdrant returns it
    )


def _distance(store: Any) -> Any:
    """Return the distance with which the store creates collections; only guesses depend on it."""
    config = store._dense_config  # noqa: SLF001
    return "Cosine" if config is None else config.distance
