"""Milvus, over the client that a host holds: a list of vectors in one search.

Milvus Lite multiplies matrices where there are several queries, so inner products
and cosines differ from a single search's in the last bits; what a server does
depends on its index and version. So nothing is promised here: this is used only
where batches are compared with single searches.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ralmspec_plugins.adapters.batch_search import Metric, Scored, Vector
from ralmspec_plugins.adapters.stores.base import StoreSearch

_METRICS: Final[dict[str, Metric]] = {"L2": "l2", "IP": "ip", "COSINE": "cosine"}


@dataclass(frozen=True, slots=True)
class Entities:
    """Where entities are: a client's collection, and its field of vectors."""

    client: Any
    collection: str
    field: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MilvusSearch(StoreSearch[dict[str, Any]]):
    """A list of vectors in one call; whether it agrees with single calls must be probed.

    Args:
        entities: where to search; the client a `MilvusClient`.
        metric_type: Milvus' name of the collection's metric.
        awaited: gives the host's `AsyncMilvusClient`.
        options: all other arguments of `MilvusClient.search`; `output_fields` without the vectors.
    """

    entities: Callable[[], Entities]
    metric_type: Callable[[], Any]
    awaited: Callable[[], Any] | None = None
    name: str = "Milvus"
    exact: bool = False
    wide: bool = False

    @property
    def metric(self) -> Metric | None:
        """The collection's metric."""
        return _METRICS.get(str(self.metric_type()))

    def search(self, vectors: Sequence[Vector], k: int) -> list[list[Scored]]:
        """Find the best k documents of each query."""
        found = self.entities().client.search(**self._asked(vectors, k))
        return self.documents([list(hits) for hits in found])

    async def asearch(self, vectors: Sequence[Vector], k: int) -> list[list[Scored]]:
        """Find the same by the host's asynchronous client, if it has one."""
        if self.awaited is None:
            return await asyncio.to_thread(self.search, vectors, k)
        found = await self.awaited().search(**self._asked(vectors, k))
        return await asyncio.to_thread(self.documents, [list(hits) for hits in found])

    def _asked(self, vectors: Sequence[Vector], limit: int) -> dict[str, Any]:
        place, options = self.entities(), self.options()
        return {
            **options,
            "collection_name": place.collection,
            "data": list(vectors),
            "anns_field": place.field,
            "limit": limit,
            "output_fields": [*options["output_fields"], place.field],
        }
