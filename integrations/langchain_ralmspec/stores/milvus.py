"""Batch search of `langchain_milvus.Milvus`, one dense vector field."""

from typing import Any

from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStoreRetriever

from langchain_ralmspec.stores.base import each_row, known_k
from ralmspec_plugins.adapters.batch_search import Scored
from ralmspec_plugins.adapters.stores.milvus import Entities, MilvusSearch


def milvus_search(retriever: VectorStoreRetriever) -> MilvusSearch | None:
    """Return the batch search of a Milvus collection; `None` for unsupported settings."""
    store: Any = retriever.vectorstore
    settings = retriever.search_kwargs
    k = known_k(settings, {"param", "expr", "timeout"})
    if k is None or not isinstance(store.embeddings, Embeddings):
        return None
    if store.builtin_func or store.col is None or store._is_sparse:  # noqa: SLF001
        return None
    if not isinstance(store._vector_field, str):  # noqa: SLF001
        return None

    def params() -> Any:
        return settings.get("param") or store.search_params

    def scored(hit: dict[str, Any]) -> Scored:
        vector = hit["entity"].get(store._vector_field)  # noqa: SLF001
        document = store._parse_document(hit["entity"])  # noqa: SLF001 removes the vector
        return Scored(document, vector, hit["distance"])

    if not isinstance(params(), dict):
        return None
    return MilvusSearch(
        k=k,
        entities=lambda: Entities(store.client, store.collection_name, store._vector_field),  # noqa: SLF001
        metric_type=lambda: params().get("metric_type"),
        options=lambda: {
            "search_params": params(),
            "filter": settings.get("expr"),
            "timeout": store.timeout or settings.get("timeout"),
            "output_fields": store._get_output_fields(),  # noqa: SLF001 the fields that the wrapper reads
        },
        documents=each_row(scored),
    )
