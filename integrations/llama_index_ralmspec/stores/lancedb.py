"""Batch search of `llama_index.vector_stores.lancedb.LanceDBVectorStore`."""

import math
from importlib import import_module
from typing import Any, Final

from llama_index.core.indices.vector_store.retrievers import VectorIndexRetriever
from llama_index.core.vector_stores.types import VectorStoreQueryResult
from llama_index.core.vector_stores.utils import metadata_dict_to_node

from llama_index_ralmspec.stores.base import Found, NodeMaker, narrowing, nodes_of
from ralmspec_plugins.adapters.batch_search import Scored, Vector
from ralmspec_plugins.adapters.fingerprint import qualified_name
from ralmspec_plugins.adapters.stores.lancedb import LanceSearch, vectors_of

_KNOWN: Final = frozenset({"where"})
_LOCAL: Final = "lancedb.table.LanceTable"


def lancedb_search(retriever: VectorIndexRetriever) -> LanceSearch | None:
    """Return the batch search of a local LanceDB table; `None` for unsupported settings."""
    settings = narrowing(retriever, _KNOWN)
    store: Any = retriever._vector_store  # noqa: SLF001
    if settings is None or (settings.filters is not None and "where" in settings.kwargs):
        return None
    module, factor = import_module(type(store).__module__), store.overfetch_factor

    def table() -> Any:
        """Return the table if it is local and the store's settings are those inspected."""
        kind = qualified_name(type(store._table))  # noqa: SLF001
        plain = store.query_type == "vector" and store.refine_factor is None
        known = kind == _LOCAL and plain and store.overfetch_factor == factor
        return store._table if known else None  # noqa: SLF001

    def where() -> Any:
        if settings.filters is None:
            return settings.kwargs.get("where")
        return module._to_lance_filter(settings.filters, store._metadata_keys)  # noqa: SLF001

    def found(rows: Any) -> Found:
        """Return nodes and similarities as the store does; older rows raise an error."""
        column, listed, nodes = store.vector_column_name, rows.to_pandas(), []
        for _, item in listed.iterrows():
            node = metadata_dict_to_node(item.metadata)
            node.embedding = list(item[column])
            nodes.append(node)
        similarities = module._to_llama_similarities(listed)  # noqa: SLF001
        result = VectorStoreQueryResult(nodes, similarities, listed["id"].tolist())
        return Found(result, list(vectors_of(rows, column)))

    def single(vector: Vector, _: int) -> list[Scored]:
        """Search as the host does, which raises an error if nothing is found."""
        result = store.query(settings.query(vector), **settings.kwargs)
        return nodes_of(retriever, [Found(result, [node.embedding for node in result.nodes])])[0]

    if table() is None:
        return None
    return LanceSearch(
        k=settings.k * int(factor),  # the number of rows that the store fetches
        table=table,
        column=lambda: store.vector_column_name,
        single=single,
        options=lambda: {"where": where(), "prefilter": True},
        documents=NodeMaker(retriever, found),
        shown=lambda distance: math.exp(-distance),
    )
