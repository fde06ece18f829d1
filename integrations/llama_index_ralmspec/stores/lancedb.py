"""Batch search of `llama_index.vector_stores.lancedb.LanceDBVectorStore`."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Final

import numpy as np
from llama_index.core.indices.vector_store.retrievers import VectorIndexRetriever
from llama_index.core.vector_stores.types import VectorStoreQueryResult
from llama_index.core.vector_stores.utils import metadata_dict_to_node

from llama_index_ralmspec.stores.base import Found, IndexSearch, Narrowing, narrowing
from ralmspec_plugins.adapters.batch_search import BatchSearch, Metric, Vector
from ralmspec_plugins.adapters.fingerprint import object_id
from ralmspec_plugins.adapters.stores import lancedb
from ralmspec_plugins.adapters.stores.common import TieCounter
from ralmspec_plugins.adapters.stores.faiss import is_clear_of_ties
from ralmspec_plugins.retrieval.ranking import Metric as ScanMetric

_KNOWN: Final = frozenset({"where"})
_LOCAL: Final = "lancedb.table.LanceTable"


def lancedb_search(retriever: VectorIndexRetriever) -> BatchSearch | None:
    """Search a local LanceDB table in batches; `None` for settings that are not known."""
    settings = narrowing(retriever, _KNOWN)
    store: Any = retriever._vector_store  # noqa: SLF001
    if settings is None or (settings.filters is not None and "where" in settings.kwargs):
        return None
    kind = type(store._table)  # noqa: SLF001
    if f"{kind.__module__}.{kind.__qualname__}" != _LOCAL:
        return None
    if store.query_type != "vector" or store.refine_factor is not None:
        return None
    return IndexSearch(retriever, LanceStore(store, settings))


@dataclass(frozen=True, slots=True)
class LanceStore:
    """A batch of queries in one scan; those whose ranking is not certain are asked singly."""

    store: Any
    settings: Narrowing
    name: str = "LanceDB"
    metric: Metric = "l2"  # what a scan ranks by where nobody says otherwise
    again: TieCounter = field(
        default_factory=TieCounter, compare=False
    )  # calls besides the batches

    @property
    def exact(self) -> bool:
        """Whether the table is scanned, and not searched by an index."""
        return lancedb.scans(self.store._table, self.store.vector_column_name)  # noqa: SLF001

    @property
    def wide(self) -> bool:
        """Where the own k is certain, so is the start of a wider search."""
        return self.exact

    @property
    def k(self) -> int:
        """How many nodes the store gives: it fetches more than asked for if it is told so."""
        return self.settings.k * int(self.store.overfetch_factor)

    @property
    def signature(self) -> Hashable:
        """The store, its table, and what narrows the search."""
        store = self.store
        place = object_id(store._table), store.vector_column_name  # noqa: SLF001
        return "LanceDB", object_id(store), place, self.settings.key

    def score_of(self, value: float) -> float:
        """Make a similarity of a squared distance."""
        return math.exp(-value)

    def query_many(self, vectors: Sequence[Vector], k: int) -> list[Found]:
        """Find the best k rows of each query vector; what lies behind the own k is for pools."""
        if not self.exact:  # it has got an index meanwhile
            return [self._single(vector) for vector in vectors]
        own, limit = min(k, self.k), lancedb.with_margin(k)
        table, column = self.store.table, self.store.vector_column_name
        found = lancedb.batch_rows(table, column, vectors, limit, self._where(), True, None)
        return [
            self._certified(vector, rows, limit, own, k)
            for vector, rows in zip(vectors, found, strict=True)
        ]

    def _certified(self, vector: Vector, rows: Any, limit: int, own: int, k: int) -> Found:
        column = self.store.vector_column_name
        query = np.asarray(vector, dtype=np.float32)
        found = lancedb.candidates(rows, column, own, limit) if len(rows) else None
        if found is not None and is_clear_of_ties(query, found, own, ScanMetric.L2):
            return self._found(rows.slice(0, k))
        return self._single(vector)

    def _found(self, rows: Any) -> Found:
        """Make nodes and similarities as the store does; it fails for rows of older versions."""
        column, table = self.store.vector_column_name, rows.to_pandas()
        nodes = []
        for _, item in table.iterrows():
            node = metadata_dict_to_node(item.metadata)
            node.embedding = list(item[column])
            nodes.append(node)
        similarities = self._module._to_llama_similarities(table)  # noqa: SLF001
        result = VectorStoreQueryResult(nodes, similarities, table["id"].tolist())
        return Found(result, list(lancedb.vectors_of(rows, column)))

    def _single(self, vector: Vector) -> Found:
        """Ask one query as the host does; it says with an error where nothing is found."""
        self.again.add()
        result = self.store.query(self.settings.query(vector), **self.settings.kwargs)
        return Found(result, [node.embedding for node in result.nodes])

    def _where(self) -> Any:
        filters = self.settings.filters
        if filters is None:
            return self.settings.kwargs.get("where")
        return self._module._to_lance_filter(filters, self.store._metadata_keys)  # noqa: SLF001

    @property
    def _module(self) -> Any:
        return import_module(type(self.store).__module__)
