"""Batch search of `llama_index.vector_stores.milvus.MilvusVectorStore`, dense vectors."""

from collections.abc import Mapping
from typing import Any, Final

from llama_index.core.indices.vector_store.retrievers import VectorIndexRetriever
from llama_index.core.vector_stores.types import VectorStoreQueryResult

from llama_index_ralmspec.stores.base import Found, NodeMaker, narrowing
from ralmspec_plugins.adapters.stores.milvus import Entities, MilvusSearch

_SEARCH: Final = "milvus_search_config"
_PARTITIONS: Final = "milvus_partition_names"
_KNOWN: Final = frozenset({_SEARCH, _PARTITIONS, "string_expr", "milvus_scalar_filters"})


def milvus_search(retriever: VectorIndexRetriever) -> MilvusSearch | None:
    """Return the batch search of a Milvus collection; `None` for unsupported settings."""
    settings = narrowing(retriever, _KNOWN)
    store: Any = retriever._vector_store  # noqa: SLF001
    if settings is None or not store.enable_dense or store.enable_sparse:
        return None

    def options() -> Mapping[str, Any]:
        """Return the settings as the store's own search reads them."""
        given = settings.kwargs
        condition, fields = store._prepare_before_search(settings.query(None), **given)  # noqa: SLF001
        return {
            "filter": condition or given.get("string_expr", ""),
            "search_params": given.get(_SEARCH, store.search_config),
            "partition_names": given.get(_PARTITIONS),
            "output_fields": fields,
        }

    def found(hits: list[dict[str, Any]]) -> Found:
        vectors = [hit["entity"].get(store.embedding_field) for hit in hits]
        nodes, similarities, ids = store._parse_from_milvus_results([hits])  # noqa: SLF001
        return Found(VectorStoreQueryResult(nodes, similarities, ids), vectors)

    return MilvusSearch(
        k=settings.k,
        entities=lambda: Entities(store.client, store.collection_name, store.embedding_field),
        metric_type=lambda: store.similarity_metric,  # with which it creates its collections
        awaited=lambda: store.aclient,
        options=options,
        documents=NodeMaker(retriever, found),
        shown=float,  # the metric's value, unchanged
    )
