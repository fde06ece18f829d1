"""Batch search of `langchain_milvus.Milvus`, one dense vector field."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStoreRetriever

from langchain_ralmspec.stores.registry import DEFAULT_K, BatchSearch, Metric, Scored, Vector
from ralmspec_plugins.adapters.fingerprint import object_id, value_fingerprint
from ralmspec_plugins.adapters.stores.milvus import batch_hits

_OPTIONS = {"param", "expr", "timeout"}
_METRICS: dict[str, Metric] = {"L2": "l2", "IP": "ip", "COSINE": "cosine"}


def milvus_search(retriever: VectorStoreRetriever) -> BatchSearch | None:
    """Search a Milvus collection in batches; `None` for settings that are not known."""
    store: Any = retriever.vectorstore
    settings = retriever.search_kwargs
    k = settings.get("k", DEFAULT_K)
    if not settings.keys() <= {"k", *_OPTIONS} or type(k) is not int or k < 1:
        return None
    if not isinstance(store.embeddings, Embeddings) or store.builtin_func or store.col is None:
        return None
    if not isinstance(store._vector_field, str) or store._is_sparse:  # noqa: SLF001
        return None
    params = settings.get("param") or store.search_params
    if not isinstance(params, dict):
        return None
    options = {
        "search_params": params,
        "filter": settings.get("expr"),
        "timeout": store.timeout or settings.get("timeout"),
    }
    return MilvusSearch(store=store, k=k, options=options)


@dataclass(frozen=True, slots=True)
class MilvusSearch:
    """A list of vectors in one call; whether it agrees with single calls must be probed."""

    store: Any
    k: int
    options: dict[str, Any]
    name: str = "Milvus"
    exact: bool = False
    wide: bool = False

    @property
    def metric(self) -> Metric | None:
        """The metric of the search parameters."""
        return _METRICS.get(str(self.options["search_params"].get("metric_type")))

    @property
    def signature(self) -> Hashable:
        """The client, the collection, and what narrows the search."""
        store = self.store
        place = (store.collection_name, store._vector_field)  # noqa: SLF001
        return ("Milvus", object_id(store.client), place, value_fingerprint(self.options))

    def relevance(self) -> Callable[[float], float] | None:
        """Scores may depend on the batch in the last bits, so thresholds go one by one."""
        return None

    def search(self, vectors: Sequence[Vector], k: int) -> list[list[Scored]]:
        """Find the best k documents of each query."""
        store = self.store
        field = store._vector_field  # noqa: SLF001
        found = batch_hits(
            store.client,
            store.collection_name,
            vectors,
            k,
            field,
            store._get_output_fields(),  # noqa: SLF001 what the wrapper itself reads
            self.options,
        )
        return [[self._scored(hit, field) for hit in hits] for hits in found]

    def _scored(self, hit: dict[str, Any], field: str) -> Scored:
        vector = hit["entity"].get(field)
        document = self.store._parse_document(hit["entity"])  # noqa: SLF001 takes the vector out
        return Scored(document, vector, hit["distance"])
