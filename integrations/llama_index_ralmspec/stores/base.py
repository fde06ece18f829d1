"""What a vector store's results become: the nodes that the index's own retriever makes of them."""

import asyncio
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from llama_index.core.indices.vector_store.retrievers import VectorIndexRetriever
from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.types import (
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)

from ralmspec_plugins.adapters.batch_search import Metric, Scored, ScoreOf, Vector
from ralmspec_plugins.adapters.fingerprint import value_fingerprint


@dataclass(frozen=True, slots=True)
class Found:
    """What a store gives for one query: to the bit what its own `query` gives.

    `vectors`: those of the nodes, in order, where the store gives them cheaply.
    """

    result: VectorStoreQueryResult
    vectors: Sequence[Vector] | None = None


class StoreSearch(Protocol):
    """Searches one vector store for many query vectors, with the settings of one retriever.

    A store whose client has an asynchronous batch call also has `aquery_many`. One whose
    scores follow from its metric has `score_of` (`ralmspec_plugins.adapters.batch_search.ScoreOf`):
    pools show such scores with their guesses.
    """

    @property
    def name(self) -> str:
        """Name the store."""
        ...

    @property
    def exact(self) -> bool:
        """Whether a query's result is independent of its batch by construction."""
        ...

    @property
    def wide(self) -> bool:
        """Whether the first k of a wider search are exactly the search for k."""
        ...

    @property
    def metric(self) -> Metric | None:
        """How a pool ranks by vectors."""
        ...

    @property
    def k(self) -> int:
        """How many nodes the settings ask for."""
        ...

    @property
    def signature(self) -> Hashable:
        """All that the results depend on, besides k."""
        ...

    def query_many(self, vectors: Sequence[Vector], k: int) -> list[Found]:
        """Find the best k nodes of each query vector, best first."""
        ...


@dataclass(frozen=True, slots=True)
class IndexSearch:
    """The batch search of a `VectorIndexRetriever`: its store's, and its own way with results.

    Nodes that the store does not hold come from the index's document store, all that a
    batch needs in one call.
    """

    retriever: VectorIndexRetriever
    store: StoreSearch

    @property
    def name(self) -> str:
        """Name the store."""
        return self.store.name

    @property
    def exact(self) -> bool:
        """Whether a query's result is independent of its batch by construction."""
        return self.store.exact

    @property
    def wide(self) -> bool:
        """Whether the first k of a wider search are exactly the search for k."""
        return self.store.wide

    @property
    def metric(self) -> Metric | None:
        """How a pool ranks by vectors."""
        return self.store.metric

    @property
    def k(self) -> int:
        """How many nodes the settings ask for."""
        return self.store.k

    @property
    def signature(self) -> Hashable:
        """All that the answers depend on, besides k and the embedder."""
        return self.store.signature

    @property
    def score_of(self) -> ScoreOf | None:
        """Give what makes scores of the metric's values, if the store says so."""
        return getattr(self.store, "score_of", None)

    def search(self, vectors: Sequence[Vector], k: int) -> list[list[Scored]]:
        """Find the best k nodes of each query vector, with the host's scores."""
        return self._scored(self.store.query_many(vectors, k))

    async def asearch(self, vectors: Sequence[Vector], k: int) -> list[list[Scored]]:
        """Find the same without holding up the event loop, by the store's own client if it can."""
        many = getattr(self.store, "aquery_many", None)
        if many is None:
            return await asyncio.to_thread(self.search, vectors, k)
        found: list[Found] = await many(vectors, k)
        return await asyncio.to_thread(self._scored, found)

    def _scored(self, found: Sequence[Found]) -> list[list[Scored]]:
        wanted = [self.retriever._determine_nodes_to_fetch(one.result) for one in found]  # noqa: SLF001
        known = self._fetched({identity for ids in wanted for identity in ids})
        return [self._nodes(one, ids, known) for one, ids in zip(found, wanted, strict=True)]

    def _fetched(self, ids: Iterable[str]) -> dict[str, BaseNode]:
        listed = list(ids)
        if not listed:
            return {}
        docstore = self.retriever._docstore  # noqa: SLF001 as the retriever itself reads it
        nodes: list[BaseNode] = docstore.get_nodes(node_ids=listed, raise_error=False)
        return {node.node_id: node for node in nodes}

    def _nodes(self, found: Found, ids: Sequence[str], known: dict[str, BaseNode]) -> list[Scored]:
        result = found.result
        if ids:
            fetched = [known[identity] for identity in ids if identity in known]
            result.nodes = self.retriever._insert_fetched_nodes_into_query_result(  # noqa: SLF001
                result, fetched
            )
        scored = self.retriever._convert_nodes_to_scored_nodes(result)  # noqa: SLF001
        vectors: Sequence[Any] = found.vectors or [None] * len(scored)
        return [
            Scored(one.node, vector, one.score) for one, vector in zip(scored, vectors, strict=True)
        ]


# What a retriever's settings say to its vector store besides the query itself.


@dataclass(frozen=True, slots=True)
class Narrowing:
    """The settings of a dense search by similarity, and nothing else."""

    k: int
    filters: MetadataFilters | None
    node_ids: list[str] | None
    doc_ids: list[str] | None
    kwargs: Mapping[str, Any]

    def query(self, vector: Vector | None, k: int | None = None) -> VectorStoreQuery:
        """Make the store's own query of a vector, as the retriever makes it."""
        return VectorStoreQuery(
            query_embedding=vector,
            similarity_top_k=self.k if k is None else k,
            node_ids=self.node_ids,
            doc_ids=self.doc_ids,
            mode=VectorStoreQueryMode.DEFAULT,
            filters=self.filters,
        )

    @property
    def key(self) -> bytes:
        """Name what narrows the search, by value."""
        return value_fingerprint([self.filters, self.node_ids, self.doc_ids, dict(self.kwargs)])


def narrowing(
    retriever: VectorIndexRetriever, known: frozenset[str] = frozenset()
) -> Narrowing | None:
    """Read a retriever's settings; `None` where they ask for more than a dense search.

    Args:
        retriever: the host's.
        known: the `vector_store_kwargs` that the caller knows how to heed.
    """
    own: Any = vars(retriever)
    k, kwargs = own["_similarity_top_k"], own["_kwargs"]
    if type(k) is not int or k < 1 or own["_vector_store_query_mode"] != "default":
        return None
    if not isinstance(kwargs, dict) or not kwargs.keys() <= known:
        return None
    return Narrowing(k, own["_filters"], own["_node_ids"], own["_doc_ids"], kwargs)
