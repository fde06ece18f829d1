"""Batch search of `llama_index.vector_stores.faiss.FaissVectorStore`."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from llama_index.core.indices.vector_store.retrievers import VectorIndexRetriever
from llama_index.core.vector_stores.types import VectorStoreQueryResult

from llama_index_ralmspec.stores.base import Found, IndexSearch, narrowing
from ralmspec_plugins.adapters.batch_search import BatchSearch, Metric, Vector
from ralmspec_plugins.adapters.fingerprint import object_id
from ralmspec_plugins.adapters.stores.common import TieCounter, own_first
from ralmspec_plugins.adapters.stores.faiss import alike_search, flat_metric
from ralmspec_plugins.retrieval.ranking import Metric as ScanMetric
from ralmspec_plugins.retrieval.ranking import Vectors

_Row: TypeAlias = tuple[int, float]


def faiss_search(retriever: VectorIndexRetriever) -> BatchSearch | None:
    """Search a FAISS index in batches; `None` for filters, which the store refuses itself."""
    settings = narrowing(retriever)
    if settings is None or settings.filters is not None:
        return None
    return IndexSearch(retriever, FaissStore(store=retriever._vector_store, k=settings.k))  # noqa: SLF001


@dataclass(frozen=True, slots=True)
class FaissStore:
    """A batch of queries in as few scans as leave each query's scores what they are alone."""

    store: Any
    k: int
    name: str = "FAISS"
    again: TieCounter = field(
        default_factory=TieCounter, compare=False
    )  # calls besides the batches

    @property
    def exact(self) -> bool:
        """Whether the index is a flat one."""
        return flat_metric(self._index) is not None

    @property
    def wide(self) -> bool:
        """A flat index scores a row alike, whatever the width; ties are asked once more."""
        return self.exact

    @property
    def metric(self) -> Metric | None:
        """How a pool ranks by the index's vectors; others may be unable to give them back."""
        scan = flat_metric(self._index)
        return None if scan is None else "l2" if scan is ScanMetric.L2 else "ip"

    @property
    def signature(self) -> Hashable:
        """The store and its index: it takes no settings."""
        return ("FAISS", object_id(self.store), object_id(self._index))

    def score_of(self, value: float) -> float:
        """Show a product or a squared distance as it is."""
        return value

    def query_many(self, vectors: Sequence[Vector], k: int) -> list[Found]:
        """Find the best k rows of each query vector."""
        queries = [np.array(vector, dtype=np.float32) for vector in vectors]
        own = min(k, self.k) if self.exact else k
        rows = own_first(
            self._rows, queries, own, k, lambda row: row[1], lambda row: row[0], self.again.add
        )
        return [self._found(one) for one in rows]

    def _rows(self, queries: Sequence[Vectors], width: int) -> list[list[_Row]]:
        table = np.stack(queries)
        if self.exact:
            found = alike_search(self._index, table, width)
        else:
            scores, positions = self._index.search(table, width)
            found = [
                (own[own >= 0], its[own >= 0]) for own, its in zip(positions, scores, strict=True)
            ]
        return [list(zip(own.tolist(), its, strict=True)) for own, its in found]

    def _found(self, rows: Sequence[_Row]) -> Found:
        positions = [position for position, _ in rows]
        result = VectorStoreQueryResult(
            similarities=[score for _, score in rows],
            ids=[str(position) for position in positions],
        )
        known = self._index.reconstruct_batch(np.array(positions)) if rows and self.exact else None
        return Found(result, None if known is None else list(known))

    @property
    def _index(self) -> Any:
        return self.store._faiss_index  # noqa: SLF001
