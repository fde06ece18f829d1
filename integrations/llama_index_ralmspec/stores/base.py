"""What the factories of LlamaIndex' batch searches share: a retriever's settings, nodes of rows."""

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


@dataclass(frozen=True, slots=True)
class Found:
    """What a store gives for one query: to the bit what its own `query` gives.

    `vectors`: those of the nodes, in order, where the store gives them cheaply.
    """

    result: VectorStoreQueryResult
    vectors: Sequence[Vector] | None = None


@dataclass(frozen=True, slots=True)
class NodeMaker(Generic[RowT]):
    """Makes scored nodes of a store's rows, as the retriever of an index does.

    Nodes that the store does not hold come from the index's document store, all that a
    batch needs in one call.

    Args:
        retriever: whose way with results it is.
        read: makes of one query's rows what the store's own `query` gives.
    """

    retriever: VectorIndexRetriever
    read: Callable[[list[RowT]], Found]

    def __call__(self, rows: Sequence[list[RowT]]) -> list[list[Scored]]:
        """Make the nodes of each query's rows."""
        return nodes_of(self.retriever, [self.read(own) for own in rows])


def nodes_of(retriever: VectorIndexRetriever, found: Sequence[Found]) -> list[list[Scored]]:
    """Give the nodes of each result, with the host's scores."""
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
