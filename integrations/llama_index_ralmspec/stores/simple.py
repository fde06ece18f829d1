"""Batch search of LlamaIndex' SimpleVectorStore, with its own scores for the best rows."""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from llama_index.core.indices.query import embedding_utils as host
from llama_index.core.indices.vector_store.retrievers import VectorIndexRetriever
from llama_index.core.vector_stores.types import VectorStoreQueryResult
from llama_index.core.vector_stores.utils import build_metadata_filter_fn
from numpy.typing import NDArray

from llama_index_ralmspec.stores.base import Found, Narrowing, narrowing, nodes_of
from ralmspec_plugins.adapters.batch_search import Metric, Scored, Vector
from ralmspec_plugins.adapters.stores.base import decided
from ralmspec_plugins.adapters.stores.rows import Floats, RowCache, RowTable

_SIMILARITY: Final = "default_similarity_fn"  # its name in the host's module

_cache = RowCache()


def simple_search(retriever: VectorIndexRetriever) -> "SimpleSearch | None":
    """Return the batch search of a SimpleVectorStore; `None` for unsupported settings."""
    settings = narrowing(retriever)
    if settings is None or not hasattr(host, _SIMILARITY):
        return None
    return SimpleSearch(retriever, retriever._vector_store, settings)  # noqa: SLF001


@dataclass(frozen=True, slots=True)
class SimpleSearch:
    """Selects candidate rows by one matrix product, and scores them by the host's function.

    The host itself scores every row in Python, keeps the best in a heap, and sorts that.
    """

    retriever: VectorIndexRetriever
    store: Any
    settings: Narrowing
    name: str = "SimpleVectorStore"
    exact: bool = True  # each query's candidates are scored separately
    wide: bool = True
    metric: Metric = "cosine"

    @property
    def k(self) -> int:
        """The number of nodes in the settings."""
        return self.settings.k

    def score_of(self, value: float) -> float:
        """Return a cosine unchanged."""
        return value

    def search(self, vectors: Sequence[Vector], k: int) -> list[list[Scored]]:
        """Return the best k nodes of each query; those beyond the own k are for pools."""
        return nodes_of(self.retriever, self._found(vectors, k))

    def _found(self, vectors: Sequence[Vector], k: int) -> list[Found]:
        data = self.store.data
        if self.settings.filters is not None and data.embedding_dict and not data.metadata_dict:
            return [self._single(vector) for vector in vectors]  # the store's own error
        known = dict(data.embedding_dict)
        rows = _cache.rows(data, list(known.values()))
        kept = self._kept(list(known))
        cosines = rows.cosines(vectors)
        return [
            self._single(vector)
            if cosine is None
            else self._best(_Scores(vector, list(known), rows, kept, cosine[kept]), k)
            for vector, cosine in zip(vectors, cosines, strict=True)
        ]

    def _kept(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Return the indices of the rows that match the settings, as in the store."""
        wanted = None if self.settings.node_ids is None else set(self.settings.node_ids)
        if self.settings.filters is None and (wanted is None or wanted.issuperset(ids)):
            return np.arange(len(ids))
        passes = build_metadata_filter_fn(
            lambda identity: self.store.data.metadata_dict[identity], self.settings.filters
        )
        places = [
            at
            for at, identity in enumerate(ids)
            if (wanted is None or identity in wanted) and passes(identity)
        ]
        return np.array(places, dtype=np.int64)

    def _best(self, scores: "_Scores", k: int) -> Found:
        own = min(k, self.k)
        best = scores.best(k)
        if decided([score for score, _ in best], own):
            first = scores.in_the_hosts_heap(own)
            taken = {place for _, place in first}
            best = [*first, *(pair for pair in best if pair[1] not in taken)]
        best = best[:k]
        result = VectorStoreQueryResult(
            similarities=[score for score, _ in best],
            ids=[scores.ids[scores.kept[at]] for _, at in best],
        )
        return Found(result, [scores.rows.lists[scores.kept[at]] for _, at in best])

    def _single(self, vector: Vector) -> Found:
        """Return the host's own result for one query."""
        return Found(self.store.query(self.settings.query(vector)))


class _Scores:
    """One query's scores: approximate ones of all matching rows, exact ones of candidates."""

    def __init__(
        self,
        vector: Vector,
        ids: Sequence[str],
        rows: RowTable,
        kept: NDArray[np.int64],
        rough: Floats,
    ) -> None:
        self.ids = ids
        self.rows = rows
        self.kept = kept
        self._rough = rough
        self._query = np.array(vector)
        self._exact: dict[int, float] = {}

    def exact(self, at: int) -> float:
        """Return the score of one row by the host's function."""
        if at not in self._exact:
            similarity: Callable[..., float] = getattr(host, _SIMILARITY)
            self._exact[at] = similarity(self._query, self.rows.table[self.kept[at]])
        return self._exact[at]

    def best(self, k: int) -> list[tuple[float, int]]:
        """Return the scores and indices of the best rows: at least k, and all ties."""
        count = len(self._rough)
        if count > k:
            last = np.partition(self._rough, count - k)[count - k]
            places = np.flatnonzero(self._rough >= last - 2 * self.rows.error)
        else:
            places = np.arange(count)
        scored = [(self.exact(at), at) for at in places.tolist()]
        return sorted(scored, key=lambda pair: pair[0], reverse=True)

    def in_the_hosts_heap(self, k: int) -> list[tuple[float, int]]:
        """Return the best k rows, with ties in the host's order, that of a heap of all rows.

        A heap only compares. For rows further apart than the error, approximate scores compare
        like exact ones; the other rows are scored exactly.
        """
        order = np.argsort(self._rough)
        near = np.diff(self._rough[order]) <= 2 * self.rows.error
        doubtful = order[np.r_[near, False] | np.r_[False, near]]
        values = self._rough.tolist()
        for at in doubtful.tolist():
            values[at] = self.exact(at)
        heap: list[tuple[float, str, int]] = []
        for at, value in enumerate(values):
            heapq.heappush(heap, (value, self.ids[self.kept[at]], at))
            if len(heap) > k:
                heapq.heappop(heap)
        best = sorted(heap, key=lambda entry: entry[0], reverse=True)
        return [(self.exact(at), at) for _, _, at in best]
