"""Batch search of `langchain_community.vectorstores.FAISS`."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np
from langchain_core.documents import Document
from langchain_core.vectorstores import VectorStoreRetriever
from numpy.typing import NDArray

from langchain_ralmspec.stores.registry import DEFAULT_K, BatchSearch, Metric, Scored, Vector
from ralmspec_plugins.adapters.fingerprint import object_id, value_fingerprint
from ralmspec_plugins.adapters.stores.common import TieCounter
from ralmspec_plugins.adapters.stores.faiss import (
    FaissRows,
    flat_metric,
    flat_search,
    is_clear_of_ties,
    plain_search,
)
from ralmspec_plugins.retrieval.ranking import Metric as ScanMetric
from ralmspec_plugins.retrieval.ranking import Vectors, exact_scores

_KNOWN = {"k", "filter", "fetch_k", "score_threshold"}
_FETCH_K = 20  # the wrapper's default
_BIGGER_IS_BETTER = {"MAX_INNER_PRODUCT", "JACCARD"}  # as the wrapper's threshold sees it


def faiss_search(retriever: VectorStoreRetriever) -> BatchSearch | None:
    """Search a FAISS store in batches; `None` for settings that are not known."""
    store: Any = retriever.vectorstore
    settings = retriever.search_kwargs
    if not settings.keys() <= _KNOWN or store.embeddings is None:
        return None
    k = settings.get("k", DEFAULT_K)
    fetch_k = settings.get("fetch_k", _FETCH_K)
    if not all(type(number) is int and number > 0 for number in (k, fetch_k)):
        return None
    return FaissSearch(
        store=store,
        k=k,
        fetch_k=fetch_k,
        filter=settings.get("filter"),
        score_threshold=settings.get("score_threshold"),
    )


@dataclass(frozen=True, slots=True)
class FaissSearch:
    """A batch of queries in one scan; those whose ranking is not certain are asked singly."""

    store: Any
    k: int
    fetch_k: int
    filter: Any
    score_threshold: float | None
    name: str = "FAISS"
    again: TieCounter = field(
        default_factory=TieCounter, compare=False
    )  # calls besides the batches

    @property
    def exact(self) -> bool:
        """Whether the index is a flat one."""
        return flat_metric(self.store.index) is not None

    @property
    def wide(self) -> bool:
        """A filter sees the same rows in a wider search; a threshold need not cut a prefix."""
        return self.exact and self.score_threshold is None

    @property
    def metric(self) -> Metric | None:
        """How a pool ranks by the index's vectors."""
        scan = flat_metric(self.store.index)
        if scan is None:
            return None  # others may be unable to give their vectors back
        if self.store._normalize_L2:  # noqa: SLF001 the wrapper has no other name for it
            return "cosine"
        return "l2" if scan is ScanMetric.L2 else "ip"

    @property
    def signature(self) -> Hashable:
        """The store, its index, and what narrows the search."""
        rest = value_fingerprint([self.fetch_k, self.filter, self.score_threshold])
        return ("FAISS", object_id(self.store), object_id(self.store.index), rest)

    def relevance(self) -> Callable[[float], float] | None:
        """Scores depend on the kernel in the last bits, so thresholds go one by one."""
        return None

    def search(self, vectors: Sequence[Vector], k: int) -> list[list[Scored]]:
        """Find the best k documents of each query; what lies behind the own k is for pools."""
        store = self.store
        queries = self._prepared(vectors)
        width = k if self.filter is None else self.fetch_k
        metric = flat_metric(store.index)
        if metric is None and self.score_threshold is not None:  # no scores to hold against it
            return [self._single(vector, self.k, []) for vector in vectors]
        if metric is None:
            return [self._plain(row)[:k] for row in plain_search(store.index, queries, width)]
        rows = flat_search(store.index, queries, width, store.index_to_docstore_id)
        return [
            self._certified(vector, query, row, metric, width, k)
            for vector, query, row in zip(vectors, queries, rows, strict=True)
        ]

    def _prepared(self, vectors: Sequence[Vector]) -> Vectors:
        queries = np.array(list(vectors), dtype=np.float32)
        if self.store._normalize_L2:  # noqa: SLF001
            normalize = import_module("faiss").normalize_L2
            for at in range(len(queries)):  # each by itself, as the wrapper does it
                normalize(queries[at : at + 1])
        return queries

    def _certified(
        self,
        vector: Vector,
        query: Vectors,
        rows: FaissRows,
        metric: ScanMetric,
        width: int,
        k: int,
    ) -> list[Scored]:
        """Give one query's documents, those of the host's own k certain or asked singly."""
        embedded = rows.vectors[:width]
        found = [
            Scored(self._document(at), its_vector)
            for at, its_vector in zip(rows.positions[:width].tolist(), embedded, strict=True)
        ]
        passing = self._passing(found, embedded, query, metric)
        own = min(k, self.k)
        read = passing[own - 1] + 1 if len(passing) >= own else width
        kept = [found[at] for at in passing]
        cut = self._cut(metric)
        if is_clear_of_ties(
            query, rows.candidates(read if cut is None else width), read, metric, cut
        ):
            return kept[:k]
        return self._single(vector, own, kept)[:k]

    def _passing(
        self, found: Sequence[Scored], embedded: Vectors, query: Vectors, metric: ScanMetric
    ) -> list[int]:
        """Give the positions of what the host would keep, by filter and raw threshold."""
        passes = self._filter()
        cut = self._cut(metric)
        kept = [at for at, hit in enumerate(found) if passes(hit.document.metadata)]
        if cut is None:
            return kept
        strategy = getattr(self.store.distance_strategy, "name", "")
        upwards = strategy in _BIGGER_IS_BETTER
        if metric is ScanMetric.L2:  # here scores are distances, negated
            upwards = not upwards
        scores = exact_scores(embedded, query, metric)
        return [at for at in kept if (scores[at] >= cut) == upwards]

    def _filter(self) -> Callable[[dict[str, Any]], bool]:
        if self.filter is None:
            return lambda _: True
        make: Callable[[Any], Callable[[dict[str, Any]], bool]]
        make = self.store._create_filter_func  # noqa: SLF001 the wrapper's own reading of filters
        return make(self.filter)

    def _cut(self, metric: ScanMetric) -> float | None:
        if self.score_threshold is None:
            return None
        return -self.score_threshold if metric is ScanMetric.L2 else self.score_threshold

    def _document(self, position: int) -> Document:
        store = self.store
        identity = store.index_to_docstore_id[position]
        document = store.docstore.search(identity)
        if not isinstance(document, Document):  # as the wrapper has it
            raise ValueError(f"Could not find document for id {identity}, got {document}")  # noqa: TRY004
        return document

    def _plain(self, positions: NDArray[np.int64]) -> list[Scored]:
        passes = self._filter()
        documents = [self._document(at) for at in positions.tolist()]
        return [Scored(document) for document in documents if passes(document.metadata)]

    def _single(self, vector: Vector, own: int, wider: Sequence[Scored]) -> list[Scored]:
        """Ask one query as the host does, and put what a wider search found behind it."""
        self.again.add()
        extra = {} if self.score_threshold is None else {"score_threshold": self.score_threshold}
        pairs = self.store.similarity_search_with_score_by_vector(
            vector, own, filter=self.filter, fetch_k=self.fetch_k, **extra
        )
        seen = {id(hit.document): hit for hit in wider}  # the store hands out its own objects
        first = [seen.pop(id(document), Scored(document)) for document, _ in pairs]
        return [*first, *seen.values()] if self.wide else first
