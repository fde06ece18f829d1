"""Milvus, by the client of a host: a list of vectors in one search.

Milvus Lite multiplies matrices for several queries, so inner products
and cosines differ from those of a single search in the last bits; the results of a server
depend on its index and version. So there is no guarantee: this is used only
if batches are compared with single searches.
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
    """The location of entities: a client's collection, and its vector field."""

    client: Any
    collection: str
    field: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MilvusSearch(StoreSearch[dict[str, Any]]):
    """Searches a list of vectors in one call; agreement with single calls must be probed.

    Args:
        entities: the location; the client is a `MilvusClient`.
        metric_type: Milvus' name of the collection's metric.
        awaited: returns the host's `AsyncMilvusClient`.
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
        """Return the best k documents of each query."""
        found = self.entities().client.search(**self._asked(vectors, k))
        return self.documents([list(hits) for hits in found])

    async def asearch(self, vectors: Sequence[Vector], k: int) -> list[list[Scored]]:
        """Return the results of `search` by the host's asynchronous client, if it has one."""
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
