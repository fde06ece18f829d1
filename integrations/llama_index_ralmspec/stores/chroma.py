"""Batch search of `llama_index.vector_stores.chroma.ChromaVectorStore`."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Final

from llama_index.core.indices.vector_store.retrievers import VectorIndexRetriever
from llama_index.core.vector_stores.types import VectorStoreQueryResult
from llama_index.core.vector_stores.utils import metadata_dict_to_node

from llama_index_ralmspec.stores.base import Found, IndexSearch, Narrowing, narrowing
from ralmspec_plugins.adapters.batch_search import BatchSearch, Metric, Vector
from ralmspec_plugins.adapters.fingerprint import object_id
from ralmspec_plugins.adapters.stores import chroma
from ralmspec_plugins.adapters.stores.common import TieCounter

_KNOWN: Final = frozenset({"where", "where_document"})
_METRICS: Final[dict[str | None, Metric]] = {"l2": "l2", "cosine": "cosine", "ip": "ip"}
_LARGEST: Final = 700.0  # of which there is an exponential


def chroma_search(retriever: VectorIndexRetriever) -> BatchSearch | None:
    """Search a Chroma collection in batches; `None` for settings that are not known."""
    settings = narrowing(retriever, _KNOWN)
    if settings is None or (settings.filters is not None and "where" in settings.kwargs):
        return None
    return IndexSearch(retriever, ChromaStore(retriever._vector_store, settings))  # noqa: SLF001


@dataclass(frozen=True, slots=True)
class ChromaStore:
    """A list of queries in one call; exact with the embedded client, which runs them singly."""

    store: Any
    settings: Narrowing
    name: str = "Chroma"
    again: TieCounter = field(
        default_factory=TieCounter, compare=False
    )  # calls besides the batches

    @property
    def exact(self) -> bool:
        """Whether the client is the embedded one."""
        return chroma.embedded(self._collection._client)  # noqa: SLF001 no public name

    @property
    def wide(self) -> bool:
        """Up to `ef_search` rows the graph is walked alike; wider is not searched."""
        return self.exact and chroma.reach_of(self._collection) > 0

    @property
    def metric(self) -> Metric | None:
        """The collection's distance."""
        return _METRICS.get(chroma.space_of(self._collection))

    @property
    def k(self) -> int:
        """How many nodes the settings ask for."""
        return self.settings.k

    @property
    def signature(self) -> Hashable:
        """The client, the collection, and what narrows the search."""
        client = object_id(self._collection._client)  # noqa: SLF001
        return "Chroma", object_id(self.store), client, str(self._collection.id), self.settings.key

    def score_of(self, value: float) -> float:
        """Make a similarity of a distance: of 1 less a cosine or product, or of a square."""
        distance = value if self.metric == "l2" else 1.0 - value
        return math.exp(min(-distance, _LARGEST))

    def query_many(self, vectors: Sequence[Vector], k: int) -> list[Found]:
        """Find the best k rows of each query vector."""
        collection = self._collection
        rows = chroma.own_rows(collection, self._rows, vectors, k, self.k, self.again.add)
        return [_found(one) for one in rows]

    def _rows(self, vectors: Sequence[Vector], limit: int) -> list[list[chroma.ChromaRow]]:
        narrowed = self.settings.kwargs
        return chroma.batch_rows(
            self._collection, vectors, limit, self._where(), narrowed.get("where_document")
        )

    def _where(self) -> Any:
        filters = self.settings.filters
        if filters is None:
            return self.settings.kwargs.get("where") or None
        module = import_module(type(self.store).__module__)
        return module._to_chroma_filter(filters) or None  # noqa: SLF001 the store's own reading

    @property
    def _collection(self) -> Any:
        return self.store._collection  # noqa: SLF001


def _found(rows: Sequence[chroma.ChromaRow]) -> Found:
    """Make nodes and similarities as the store does; it fails for rows of older versions."""
    result = VectorStoreQueryResult(
        nodes=[metadata_dict_to_node(dict(row.metadata or {}), text=row.text) for row in rows],
        similarities=[math.exp(-row.distance) for row in rows],
        ids=[row.id for row in rows],
    )
    return Found(result, [row.vector for row in rows])
