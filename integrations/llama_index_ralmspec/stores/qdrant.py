"""Batch search of `llama_index.vector_stores.qdrant.QdrantVectorStore`, dense vectors."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from llama_index.core.indices.vector_store.retrievers import VectorIndexRetriever

from llama_index_ralmspec.stores.base import Found, IndexSearch, Narrowing, narrowing
from ralmspec_plugins.adapters.batch_search import BatchSearch, Metric, Vector
from ralmspec_plugins.adapters.fingerprint import object_id
from ralmspec_plugins.adapters.stores import qdrant
from ralmspec_plugins.adapters.stores.common import TieCounter, own_first, put_first, tied

_KNOWN: Final = frozenset({"qdrant_filters", "search_params"})
_METRICS: Final[dict[str, Metric]] = {"Cosine": "cosine", "Dot": "ip", "Euclid": "l2"}


def qdrant_search(retriever: VectorIndexRetriever) -> BatchSearch | None:
    """Search a Qdrant collection in batches; `None` for settings that are not known."""
    settings = narrowing(retriever, _KNOWN)
    store: Any = retriever._vector_store  # noqa: SLF001
    if settings is None or type(store._client).__name__ != "QdrantClient":  # noqa: SLF001
        return None
    params = settings.kwargs.get("search_params")
    if not qdrant.rest_model(settings.kwargs.get("qdrant_filters")):
        return None
    if not isinstance(params, dict) and not qdrant.rest_model(params):
        return None
    return IndexSearch(retriever, QdrantStore(store, settings))


@dataclass(frozen=True, slots=True)
class QdrantStore:
    """A list of queries in one request, which the server answers one by one."""

    store: Any
    settings: Narrowing
    name: str = "Qdrant"
    again: TieCounter = field(
        default_factory=TieCounter, compare=False
    )  # calls besides the batches
    exact: bool = True

    @property
    def wide(self) -> bool:
        """Whether every vector is compared: in local mode, or with `SearchParams(exact=True)`."""
        return qdrant.brute_force(self.store._client, self._params())  # noqa: SLF001

    @property
    def metric(self) -> Metric | None:
        """The distance that the store makes its collections with: a pool only guesses by it."""
        config = self.store._dense_config  # noqa: SLF001
        return "cosine" if config is None else _METRICS.get(getattr(config.distance, "value", ""))

    @property
    def k(self) -> int:
        """How many nodes the settings ask for."""
        return self.settings.k

    @property
    def signature(self) -> Hashable:
        """The store, its collection, and what narrows the search."""
        return "Qdrant", object_id(self.store), self.store.collection_name, self.settings.key

    def score_of(self, value: float) -> float:
        """Show a cosine or product as it is, and a distance not squared."""
        return math.sqrt(value) if self.metric == "l2" else value

    def query_many(self, vectors: Sequence[Vector], k: int) -> list[Found]:
        """Find the best k points of each query vector."""

        def search(some: Sequence[Vector], limit: int) -> list[list[Any]]:
            return qdrant.batch_points(self.store._client, *self._asked(some, limit))  # noqa: SLF001

        points = own_first(search, vectors, min(k, self.k), k, _score, _identity, self.again.add)
        return [self._found(one) for one in points]

    async def aquery_many(self, vectors: Sequence[Vector], k: int) -> list[Found]:
        """Do the same with the asynchronous client, which may be another one's data."""
        self.store._ensure_async_client()  # noqa: SLF001 the error is the store's own
        client = self.store._aclient  # noqa: SLF001
        if self.store._legacy_vector_format is None:  # noqa: SLF001 as its `aquery` does
            await self.store._adetect_vector_format(self.store.collection_name)  # noqa: SLF001
        own = min(k, self.k)
        points = await qdrant.abatch_points(client, *self._asked(vectors, k))
        doubtful = tied(points, own, _score) if k > own else []
        if doubtful:
            self.again.add()
            some = [vectors[at] for at in doubtful]
            narrow = await qdrant.abatch_points(client, *self._asked(some, own))
            put_first(points, doubtful, narrow, _identity)
        return [self._found(one) for one in points]

    def _asked(
        self, vectors: Sequence[Vector], limit: int
    ) -> tuple[str, Sequence[Vector], int, str, Mapping[str, Any]]:
        own = self.settings.kwargs.get("qdrant_filters")
        if own is None:
            own = self.store._build_query_filter(self.settings.query(None))  # noqa: SLF001
        options = {"query_filter": own, "search_params": self._params()}
        return self.store.collection_name, vectors, limit, self.store.dense_vector_name, options

    def _params(self) -> Any:
        params = self.settings.kwargs.get("search_params")
        return qdrant.search_params(params) if isinstance(params, dict) else params

    def _found(self, points: Sequence[Any]) -> Found:
        vectors = [qdrant.vector_of(point, self.store.dense_vector_name) for point in points]
        for point in points:
            point.vector = None  # the store's own search does not read them, and leaves them out
        return Found(self.store.parse_to_query_result(list(points)), vectors)


def _score(point: Any) -> float:
    return float(point.score)


def _identity(point: Any) -> Hashable:
    identity: Hashable = point.id
    return identity
