"""What a retriever's settings say to its vector store besides the query itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llama_index.core.indices.vector_store.retrievers import VectorIndexRetriever
from llama_index.core.vector_stores.types import (
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)

from ralmspec_plugins.adapters.batch_search import Vector
from ralmspec_plugins.adapters.fingerprint import frozen


@dataclass(frozen=True, slots=True)
class Narrowing:
    """The settings of a dense search by similarity, and nothing else."""

    k: int
    filters: MetadataFilters | None
    node_ids: list[str] | None
    doc_ids: list[str] | None
    kwargs: Mapping[str, Any]

    def query(self, vector: Vector | None, k: int | None = None) -> VectorStoreQuery:
        """Make the store's own query of a vector, as the retriever makes it."""
        return VectorStoreQuery(
            query_embedding=vector,
            similarity_top_k=self.k if k is None else k,
            node_ids=self.node_ids,
            doc_ids=self.doc_ids,
            mode=VectorStoreQueryMode.DEFAULT,
            filters=self.filters,
        )

    @property
    def key(self) -> bytes:
        """Name what narrows the search, by value."""
        return frozen([self.filters, self.node_ids, self.doc_ids, dict(self.kwargs)])


def narrowing(
    retriever: VectorIndexRetriever, known: frozenset[str] = frozenset()
) -> Narrowing | None:
    """Read a retriever's settings; `None` where they ask for more than a dense search.

    Args:
        retriever: the host's.
        known: the `vector_store_kwargs` that the caller knows how to heed.
    """
    own: Any = vars(retriever)
    k, kwargs = own["_similarity_top_k"], own["_kwargs"]
    if type(k) is not int or k < 1 or own["_vector_store_query_mode"] != "default":
        return None
    if not isinstance(kwargs, dict) or not kwargs.keys() <= known:
        return None
    return Narrowing(k, own["_filters"], own["_node_ids"], own["_doc_ids"], kwargs)
