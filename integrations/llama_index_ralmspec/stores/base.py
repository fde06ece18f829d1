"""Shared parts of the factories of batch searches: a retriever's settings, nodes of rows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from llama_index.core.indices.vector_store.retrievers import VectorIndexRetriever
from llama_index.core.vector_stores.types import (
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)

from ralmspec_plugins.adapters.batch_search import Scored, Vector

RowT = TypeVar("RowT")


@dataclass(frozen=True, slots=True)
class Narrowing:
    """The settings of a dense search by similarity."""

    k: int
    filters: MetadataFilters | None
    node_ids: list[str] | None
    doc_ids: list[str] | None
    kwargs: Mapping[str, Any]

    def query(self, vector: Vector | None, k: int | None = None) -> VectorStoreQuery:
        """Return the store's own query of a vector, as the retriever creates it."""
        return VectorStoreQuery(
            query_embedding=vector,
            similarity_top_k=self.k if k is None else k,
            node_ids=self.node_ids,
            doc_ids=self.doc_ids,
            mode=VectorStoreQueryMode.DEFAULT,
            filters=self.filters,
        )


def narrowing(
    retriever: VectorIndexRetriever, known: frozenset[str] = frozenset()
) -> Narrowing | None:
    """Return a retriever's settings; `None` if they require more than a dense search.

    Args:
        retriever: the host's retriever.
        known: the `vector_store_kwargs` that the caller supports.
    """
    own: Any = vars(retriever)
    k, kwargs = own["_similarity_top_k"], own["_kwargs"]
    if type(k) is not int or k < 1 or own["_vector_store_query_mode"] != "default":
        return None
    if not isinstance(kwargs, dict) or not kwargs.keys() <= known:
        return None
    return Narrowing(k, own["_filters"], own["_node_ids"], own["_doc_ids"], kwargs)


@dataclass(frozen=True, slots=True)
class Found:
    """The result of a store for one query, equal to the bit to that of its own `query`.

    `vectors`: the vectors of the nodes, in order, if the store returns them cheaply.
    """

    result: VectorStoreQueryResult
    vectors: Sequence[Vector] | None = None


@dataclass(frozen=True, slots=True)
class NodeMaker(Generic[RowT]):
    """Converts a store's rows to scored nodes, as the retriever of an index does.

    Nodes that the store does not hold are read from the index's document store, with one call
    per batch.

    Args:
        retriever: the retriever whose conversion of results is used.
        read: converts one query's rows to the result of the store's own `query`.
    """

    retriever: VectorIndexRetriever
    read: Callable[[list[RowT]], Found]

    def __call__(self, rows: Sequence[list[RowT]]) -> list[list[Scored]]:
        """Return the nodes of each query's rows."""
        return nodes_of(self.retriever, [self.read(own) for own in rows])


def nodes_of(retriever: VectorIndexRetriever, found: Sequence[Found]) -> list[list[Scored]]:
    """Return the nodes of each result, with the host's scores."""
    wanted = [retriever._determine_nodes_to_fetch(one.result) for one in found]  # noqa: SLF001
    listed = list({identity for ids in wanted for identity in ids})
    docstore = retriever._docstore  # noqa: SLF001 as the retriever itself reads it
    nodes = docstore.get_nodes(node_ids=listed, raise_error=False) if listed else []
    known = {node.node_id: node for node in nodes}
    given = []
    for one, ids in zip(found, wanted, strict=True):
        if ids:
            fetched = [known[identity] for identity in ids if identity in known]
            one.result.nodes = retriever._insert_fetched_nodes_into_query_result(  # noqa: SLF001
                one.result, fetched
            )
        scored = retriever._convert_nodes_to_scored_nodes(one.result)  # noqa: SLF001
        vectors: Sequence[Any] = one.vectors or [None] * len(scored)
        pairs = zip(scored, vectors, strict=True)
        given.append([Scored(node.node, vector, node.score) for node, vector in pairs])
    return given
