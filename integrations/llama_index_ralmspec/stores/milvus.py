"""Batch search of `llama_index.vector_stores.milvus.MilvusVectorStore`, dense vectors."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from llama_index.core.indices.vector_store.retrievers import VectorIndexRetriever
from llama_index.core.vector_stores.types import VectorStoreQueryResult

from llama_index_ralmspec.stores.base import Found, IndexSearch, Narrowing, narrowing
from ralmspec_plugins.adapters.batch_search import BatchSearch, Metric, Vector
from ralmspec_plugins.adapters.fingerprint import object_id
from ralmspec_plugins.adapters.stores.milvus import abatch_hits, batch_hits

_SEARCH: Final = "milvus_search_config"
_PARTITIONS: Final = "milvus_partition_names"
_KNOWN: Final = frozenset({_SEARCH, _PARTITIONS, "string_expr", "milvus_scalar_filters"})
_METRICS: Final[dict[str, Metric]] = {"L2": "l2", "IP": "ip", "COSINE": "cosine"}


def milvus_search(retriever: VectorIndexRetriever) -> BatchSearch | None:
    """Search a Milvus collection in batches; `None` for settings that are not known."""
    settings = narrowing(retriever, _KNOWN)
    store: Any = retriever._vector_store  # noqa: SLF001
    if settings is None or not store.enable_dense or store.enable_sparse:
        return None
    return IndexSearch(retriever, MilvusStore(store, settings))


@dataclass(frozen=True, slots=True)
class MilvusStore:
    """A list of vectors in one call; whether it agrees with single calls must be probed."""

    store: Any
    settings: Narrowing
    name: str = "Milvus"
    exact: bool = False
    wide: bool = False

    @property
    def metric(self) -> Metric | None:
        """The metric that the store makes its collections with."""
        return _METRICS.get(str(self.store.similarity_metric))

    @property
    def k(self) -> int:
        """How many nodes the settings ask for."""
        return self.settings.k

    @property
    def signature(self) -> Hashable:
        """The store, its collection, and what narrows the search."""
        return "Milvus", object_id(self.store), self.store.collection_name, self.settings.key

    def score_of(self, value: float) -> float:
        """Show the value of the metric as it is."""
        return value

    def query_many(self, vectors: Sequence[Vector], k: int) -> list[Found]:
        """Find the best k nodes of each query vector."""
        found = batch_hits(self.store.client, *self._asked(vectors, k), **self._options())
        return [self._found(hits) for hits in found]

    async def aquery_many(self, vectors: Sequence[Vector], k: int) -> list[Found]:
        """Do the same with the asynchronous client."""
        found = await abatch_hits(self.store.aclient, *self._asked(vectors, k), **self._options())
        return [self._found(hits) for hits in found]

    def _asked(self, vectors: Sequence[Vector], k: int) -> tuple[str, Sequence[Vector], int, str]:
        return self.store.collection_name, vectors, k, self.store.embedding_field

    def _options(self) -> dict[str, Any]:
        """Read the settings as the store's own search does."""
        given = self.settings.kwargs
        condition, fields = self.store._prepare_before_search(  # noqa: SLF001
            self.settings.query(None), **given
        )
        return {
            "fields": fields,
            "options": {
                "filter": condition or given.get("string_expr", ""),
                "search_params": given.get(_SEARCH, self.store.search_config),
                "partition_names": given.get(_PARTITIONS),
            },
        }

    def _found(self, hits: list[dict[str, Any]]) -> Found:
        vectors = [hit["entity"].get(self.store.embedding_field) for hit in hits]
        nodes, similarities, ids = self.store._parse_from_milvus_results([hits])  # noqa: SLF001
        return Found(VectorStoreQueryResult(nodes, similarities, ids), vectors)
