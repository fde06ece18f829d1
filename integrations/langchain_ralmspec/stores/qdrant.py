"""Batch search of `langchain_qdrant.QdrantVectorStore`, dense vectors."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain_core.vectorstores import VectorStoreRetriever

from langchain_ralmspec.stores.registry import DEFAULT_K, BatchSearch, Metric, Scored, Vector
from ralmspec_plugins.adapters.fingerprint import object_id, value_fingerprint
from ralmspec_plugins.adapters.stores import qdrant
from ralmspec_plugins.adapters.stores.common import TieCounter, own_first

_OPTIONS = {"filter", "search_params", "offset", "score_threshold", "consistency"}
_METRICS: dict[str, Metric] = {"Cosine": "cosine", "Dot": "ip", "Euclid": "l2"}


def qdrant_search(retriever: VectorStoreRetriever) -> BatchSearch | None:
    """Search a Qdrant collection in batches; `None` for settings that are not known."""
    store: Any = retriever.vectorstore
    settings = retriever.search_kwargs
    k = settings.get("k", DEFAULT_K)
    if not settings.keys() <= {"k", *_OPTIONS} or type(k) is not int or k < 1:
        return None
    if getattr(store.retrieval_mode, "value", None) != "dense" or store.embeddings is None:
        return None
    if not all(qdrant.rest_model(settings.get(name)) for name in ("filter", "search_params")):
        return None
    if type(store.client).__name__ != "QdrantClient":
        return None
    options = {name: settings[name] for name in _OPTIONS if name in settings}
    return QdrantSearch(store=store, k=k, options=options)


@dataclass(frozen=True, slots=True)
class QdrantSearch:
    """A list of queries in one request, which the server answers one by one."""

    store: Any
    k: int
    options: dict[str, Any]
    name: str = "Qdrant"
    again: TieCounter = field(
        default_factory=TieCounter, compare=False
    )  # calls besides the batches
    exact: bool = True

    @property
    def wide(self) -> bool:
        """Whether every vector is compared: in local mode, or with `SearchParams(exact=True)`."""
        return qdrant.brute_force(self.store.client, self.options.get("search_params"))

    @property
    def metric(self) -> Metric | None:
        """The collection's distance."""
        return _METRICS.get(getattr(self.store.distance, "value", ""))

    @property
    def signature(self) -> Hashable:
        """The client, the collection, and what narrows the search."""
        store = self.store
        place = (store.collection_name, store.vector_name)
        keys = (store.content_payload_key, store.metadata_payload_key)
        return ("Qdrant", object_id(store.client), place, keys, _frozen_options(self.options))

    def relevance(self) -> Callable[[float], float] | None:
        """Give the store's own function; it knows no other distances."""
        try:
            made: Callable[[float], float] = self.store._select_relevance_score_fn()  # noqa: SLF001
        except ValueError:
            return None
        return made

    def search(self, vectors: Sequence[Vector], k: int) -> list[list[Scored]]:
        """Find the best k documents of each query; what lies behind the own k is for pools."""
        own = min(k, self.k)
        found = own_first(
            self._points,
            vectors,
            own,
            k,
            lambda point: point.score,
            lambda point: point.id,
            self.again.add,
        )
        return [[self._scored(point) for point in points] for points in found]

    def _points(self, vectors: Sequence[Vector], limit: int) -> list[list[Any]]:
        store = self.store
        options = {**self.options, "query_filter": self.options.get("filter")}
        return qdrant.batch_points(
            store.client, store.collection_name, vectors, limit, store.vector_name, options
        )

    def _scored(self, point: Any) -> Scored:
        store = self.store
        document = store._document_from_point(  # noqa: SLF001 the wrapper's own reading
            point, store.collection_name, store.content_payload_key, store.metadata_payload_key
        )
        return Scored(document, qdrant.vector_of(point, store.vector_name), point.score)


def _frozen_options(options: dict[str, Any]) -> Hashable:
    """Freeze the options; filters and parameters are mutable models, taken by their content."""
    plain = {
        name: value.model_dump() if hasattr(value, "model_dump") else value
        for name, value in options.items()
    }
    return value_fingerprint(plain)
