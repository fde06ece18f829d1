"""Batch search of `langchain_chroma.Chroma`."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from langchain_core.documents import Document
from langchain_core.vectorstores import VectorStoreRetriever

from langchain_ralmspec.stores.registry import DEFAULT_K, BatchSearch, Metric, Scored, Vector
from ralmspec_plugins.adapters.fingerprint import object_id, value_fingerprint
from ralmspec_plugins.adapters.stores import chroma
from ralmspec_plugins.adapters.stores.common import TieCounter

_KNOWN = {"k", "filter", "where_document"}
_METRICS: dict[str | None, Metric] = {"l2": "l2", "cosine": "cosine", "ip": "ip"}


def chroma_search(retriever: VectorStoreRetriever) -> BatchSearch | None:
    """Search a Chroma collection in batches; `None` for settings that are not known."""
    store: Any = retriever.vectorstore
    settings = retriever.search_kwargs
    k = settings.get("k", DEFAULT_K)
    if not settings.keys() <= _KNOWN or type(k) is not int or k < 1:
        return None
    if store.embeddings is None or store._chroma_collection is None:  # noqa: SLF001
        return None
    return ChromaSearch(
        store=store,
        k=k,
        filter=settings.get("filter"),
        where_document=settings.get("where_document"),
    )


@dataclass(frozen=True, slots=True)
class ChromaSearch:
    """A list of queries in one call; exact with the embedded client, which runs them singly."""

    store: Any
    k: int
    filter: Any
    where_document: Any
    name: str = "Chroma"
    again: TieCounter = field(
        default_factory=TieCounter, compare=False
    )  # calls besides the batches

    @property
    def exact(self) -> bool:
        """Whether the client is the embedded one."""
        return chroma.embedded(self.store._client)  # noqa: SLF001 no public name

    @property
    def wide(self) -> bool:
        """Up to `ef_search` rows the graph is walked alike; wider is not searched."""
        return self.exact and chroma.reach_of(self._collection) > 0

    @property
    def metric(self) -> Metric | None:
        """The collection's distance."""
        return _METRICS.get(chroma.space_of(self._collection))

    @property
    def signature(self) -> Hashable:
        """The client, the collection, and what narrows the search."""
        client = object_id(self.store._client)  # noqa: SLF001
        narrowed = value_fingerprint([self.filter, self.where_document])
        return ("Chroma", object_id(self.store), client, str(self._collection.id), narrowed)

    def relevance(self) -> Callable[[float], float] | None:
        """Give the store's own function; it knows no other distances."""
        try:
            made: Callable[[float], float] = self.store._select_relevance_score_fn()  # noqa: SLF001
        except ValueError:
            return None
        return made

    def search(self, vectors: Sequence[Vector], k: int) -> list[list[Scored]]:
        """Find the best k documents of each query; what lies behind the own k is for pools."""
        collection = self._collection
        rows = partial(self._rows, collection)
        found = chroma.own_rows(collection, rows, vectors, k, self.k, self.again.add)
        return [_scored(one) for one in found]

    def _rows(
        self, collection: Any, vectors: Sequence[Vector], limit: int
    ) -> list[list[chroma.ChromaRow]]:
        return chroma.batch_rows(collection, vectors, limit, self.filter, self.where_document)

    @property
    def _collection(self) -> Any:
        return self.store._collection  # noqa: SLF001


def _scored(rows: Sequence[chroma.ChromaRow]) -> list[Scored]:
    """Make documents as the wrapper does, which leaves out rows without a text."""
    return [
        Scored(
            Document(page_content=row.text, metadata=dict(row.metadata or {}), id=row.id),
            row.vector,
            row.distance,
        )
        for row in rows
        if row.text is not None
    ]
