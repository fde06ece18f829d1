"""Batch search of `langchain_community.vectorstores.LanceDB`."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np
from langchain_core.documents import Document
from langchain_core.vectorstores import VectorStoreRetriever

from langchain_ralmspec.stores.registry import BatchSearch, Metric, Scored, Vector
from ralmspec_plugins.adapters.fingerprint import object_id, value_fingerprint
from ralmspec_plugins.adapters.stores import lancedb
from ralmspec_plugins.adapters.stores.common import TieCounter
from ralmspec_plugins.adapters.stores.faiss import is_clear_of_ties
from ralmspec_plugins.retrieval.ranking import Metric as ScanMetric

_KNOWN = {"k", "filter", "name", "prefilter", "query_type", "metrics", "fts"}
_METRICS: dict[str, Metric] = {"l2": "l2", "cosine": "cosine", "dot": "ip"}


def lancedb_search(retriever: VectorStoreRetriever) -> BatchSearch | None:
    """Search a local LanceDB table in batches; `None` for settings that are not known.

    The wrapper's `distance` chooses how relevances are made of scores, not how the
    table is searched: that is L2 unless `metrics` says otherwise.
    """
    store: Any = retriever.vectorstore
    settings = retriever.search_kwargs
    narrowed = settings.get("filter")
    if not settings.keys() <= _KNOWN or store.api_key is not None:
        return None
    if settings.get("query_type", "vector") != "vector" or store.embeddings is None:
        return None
    if narrowed is not None and not isinstance(narrowed, dict | str):
        return None
    k = settings.get("k")
    k = store.limit if k is None else k
    metrics = settings.get("metrics") or "l2"
    if type(k) is not int or k < 1 or metrics not in _METRICS:
        return None
    search = LanceSearch(
        store=store,
        k=k,
        settings={name: value for name, value in settings.items() if name != "k"},
        metric=_METRICS[metrics],
        certified=metrics == "l2" and (narrowed is None or settings.get("prefilter") is True),
    )
    return search if search.table() is not None else None


@dataclass(frozen=True, slots=True)
class LanceSearch:
    """A batch of queries in one scan; those whose ranking is not certain are asked singly.

    `certified`: an L2 search that is filtered before it ranks, if at all. Of a search that
    is filtered behind it (the wrapper's default) the rows that fell away are not seen.
    """

    store: Any
    k: int
    settings: dict[str, Any]
    metric: Metric
    certified: bool
    name: str = "LanceDB"
    again: TieCounter = field(
        default_factory=TieCounter, compare=False
    )  # calls besides the batches

    @property
    def exact(self) -> bool:
        """Whether the table is scanned, and the scan can be certified."""
        return self.certified and self._scanned(self.table())

    @property
    def wide(self) -> bool:
        """Where the own k is certain, so is the start of a wider search."""
        return self.exact

    @property
    def signature(self) -> Hashable:
        """The store, its table, and what narrows the search."""
        store = self.store
        table = (self.settings.get("name") or store._table_name, store._vector_key)  # noqa: SLF001
        return ("LanceDB", object_id(store), table, value_fingerprint(self.settings))

    def table(self) -> Any:
        """Open the table, as the wrapper does for each search."""
        return self.store.get_table(self.settings.get("name"))

    def relevance(self) -> Callable[[float], float] | None:
        """Scores may depend on the scan in the last bits, so thresholds go one by one."""
        return None

    def search(self, vectors: Sequence[Vector], k: int) -> list[list[Scored]]:
        """Find the best k documents of each query; what lies behind the own k is for pools."""
        table = self.table()
        own = min(k, self.k)
        if self.certified and not self._scanned(table):  # it has got an index meanwhile
            return [self._single(vector, own) for vector in vectors]
        limit = lancedb.with_margin(k) if self.certified else k
        found = lancedb.batch_rows(
            table,
            self.store._vector_key,  # noqa: SLF001
            vectors,
            limit,
            self._where(),
            self.settings.get("prefilter", False),
            self.settings.get("metrics"),
        )
        if not self.certified:
            return [
                self._scored(rows) if len(rows) else self._single(vector, k)
                for vector, rows in zip(vectors, found, strict=True)
            ]
        return [
            self._certified(vector, rows, limit, own, k)
            for vector, rows in zip(vectors, found, strict=True)
        ]

    def _certified(self, vector: Vector, rows: Any, limit: int, own: int, k: int) -> list[Scored]:
        column = self.store._vector_key  # noqa: SLF001
        query = np.asarray(vector, dtype=np.float32)
        found = lancedb.candidates(rows, column, own, limit) if len(rows) else None
        if found is not None and is_clear_of_ties(query, found, own, ScanMetric.L2):
            return self._scored(rows.slice(0, k))
        return self._single(vector, own)

    def _scored(self, rows: Any) -> list[Scored]:
        """Make documents of rows as the wrapper does."""
        documents: list[Document] = self.store.results_to_docs(rows)
        vectors = lancedb.vectors_of(rows, self.store._vector_key)  # noqa: SLF001
        return [Scored(document, row) for document, row in zip(documents, vectors, strict=True)]

    def _single(self, vector: Vector, own: int) -> list[Scored]:
        """Ask one query as the host does, its warning about empty results included."""
        self.again.add()
        return self._scored(self.store._query(vector, own, **self.settings))  # noqa: SLF001

    def _where(self) -> str | None:
        narrowed = self.settings.get("filter")
        if isinstance(narrowed, dict):
            made: str = import_module(type(self.store).__module__).to_lance_filter(narrowed)
            return made
        return narrowed

    def _scanned(self, table: Any) -> bool:
        return lancedb.scans(table, self.store._vector_key)  # noqa: SLF001
