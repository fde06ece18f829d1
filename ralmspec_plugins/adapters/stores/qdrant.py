"""Qdrant, by the client of a host: a list of queries in one request.

A server searches each segment for every query of the list separately, with the
scoring of a single query; the local mode is a loop over single queries. So a
query's points do not depend on the batch.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

from ralmspec_plugins.adapters.batch_search import Metric, Scored, Vector
from ralmspec_plugins.adapters.stores.base import StoreSearch, aown_first, own_first

_REST_MODELS: Final = "qdrant_client.http.models"
_LOCAL: Final = frozenset({"QdrantLocal", "AsyncQdrantLocal"})
_METRICS: Final[dict[str, Metric]] = {"Cosine": "cosine", "Dot": "ip", "Euclid": "l2"}


def is_rest_model(value: Any) -> bool:
    """Return whether a filter or search parameter can be used in a list of requests."""
    return value is None or type(value).__module__.startswith(_REST_MODELS)


def search_params(values: dict[str, Any]) -> Any:
    """Return search parameters from plain values, as a host does."""
    return import_module(_REST_MODELS).SearchParams(**values)


def vector_of(point: Any, field: str) -> Any:
    """Return a point's own vector, or `None`."""
    vector = point.vector
    return vector.get(field) if isinstance(vector, dict) else vector


@dataclass(frozen=True, slots=True)
class Points:
    """The location of points: a client's collection, and the name of its vectors ("": none)."""

    client: Any
    collection: str
    field: str


@dataclass(frozen=True, slots=True, kw_only=True)
class QdrantSearch(StoreSearch[Any]):
    """Searches a list of queries in one request, which the server processes one by one.

    Args:
        points: the location; the client is a `QdrantClient`.
        distance: the collection's `Distance`, or its name.
        awaited: returns the host's `AsyncQdrantClient`, whose data may differ.
        params: the `SearchParams`, or `None`.
        options: `filter`, `offset` and `score_threshold` of a `QueryRequest`, and `consistency`.
    """

    points: Callable[[], Points]
    distance: Callable[[], Any]
    params: Callable[[], Any]
    awaited: Callable[[], Awaitable[Any]] | None = None
    name: str = "Qdrant"
    exact: bool = True

    @property
    def wide(self) -> bool:
        """Whether the search is exhaustive: in local mode, or with `SearchParams(exact=True)`."""
        if type(getattr(self.points().client, "_client", None)).__name__ in _LOCAL:
            return True
        return getattr(self.params(), "exact", None) is True

    @property
    def metric(self) -> Metric | None:
        """The collection's distance."""
        distance = self.distance()
        return _METRICS.get(getattr(distance, "value", distance))

    def stored_score(self, value: float) -> float:
        """Return a score: an unchanged cosine or product, or a distance that is not squared."""
        return math.sqrt(value) if self.metric == "l2" else value

    def search(self, vectors: Sequence[Vector], k: int) -> list[list[Scored]]:
        """Return the best k documents of each query; those beyond the own k are prefetched."""
        own = min(k, self.k)
        return self.own_documents(own_first(self._points, vectors, own, k, self.ties), own)

    async def asearch(self, vectors: Sequence[Vector], k: int) -> list[list[Scored]]:
        """Return the results of `search` by the host's asynchronous client, if it has one."""
        if self.awaited is None:
            return await asyncio.to_thread(self.search, vectors, k)
        client, own = await self.awaited(), min(k, self.k)

        async def points(vectors: Sequence[Vector], limit: int) -> list[list[Any]]:
            return _listed(await client.query_batch_points(**self._asked(vectors, limit)))

        found = await aown_first(points, vectors, own, k, self.ties)
        return await asyncio.to_thread(self.own_documents, found, own)

    def _points(self, vectors: Sequence[Vector], limit: int) -> list[list[Any]]:
        client = self.points().client
        return _listed(client.query_batch_points(**self._asked(vectors, limit)))

    def _asked(self, vectors: Sequence[Vector], limit: int) -> dict[str, Any]:
        place, options = self.points(), dict(self.options())
        consistency = options.pop("consistency", None)
        request: Callable[..., Any] = import_module(_REST_MODELS).QueryRequest
        requests = [
            request(
                query=list(vector.tolist() if hasattr(vector, "tolist") else vector),
                using=place.field,
                params=self.params(),
                limit=limit,
                with_payload=True,
                with_vector=[place.field] if place.field else True,
                **options,
            )
            for vector in vectors
        ]
        return {
            "collection_name": place.collection,
            "requests": requests,
            "consistency": consistency,
        }


def _listed(answers: Sequence[Any]) -> list[list[Any]]:
    return [list(answer.points) for answer in answers]
