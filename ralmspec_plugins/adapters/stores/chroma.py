"""Chroma, over the collection that a host holds: a list of queries in one call.

The embedded client walks through the queries one by one, each in its own HNSW
search of the same graph, and reads texts and metadata of all hits at once. So a
query's rows do not depend on the batch. A server may be of another kind.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ralmspec_plugins.adapters.stores.common import own_first

_EMBEDDED = "chromadb.api.rust.RustBindingsAPI"
_INCLUDE = ["documents", "metadatas", "distances", "embeddings"]
_DEFAULT_EF = 100  # of chromadb; how far an HNSW search looks at least


@dataclass(frozen=True, slots=True)
class ChromaRow:
    """One row as the client gives it."""

    id: str
    text: str | None
    metadata: Mapping[str, Any] | None
    distance: float
    vector: Any


def embedded(client: Any) -> bool:
    """Say whether a client, or the one that a collection holds, searches in this process."""
    kind = type(getattr(client, "_server", client))
    return f"{kind.__module__}.{kind.__qualname__}" == _EMBEDDED


def space_of(collection: Any) -> str | None:
    """Give the distance that a collection ranks by: l2, cosine or ip."""
    for index in ("hnsw", "spann"):
        settings = _settings(collection).get(index)
        if settings and settings.get("space"):
            return str(settings["space"])
    return None


def reach_of(collection: Any) -> int:
    """Say up to which number of rows every search walks the same part of the graph."""
    settings = _settings(collection).get("hnsw")
    return int(settings.get("ef_search") or _DEFAULT_EF) if settings else 0


def _settings(collection: Any) -> Mapping[str, Any]:
    """Read the settings as they are: `configuration` warns of some embedding functions."""
    return collection.configuration_json or {}


def batch_rows(
    collection: Any,
    vectors: Sequence[Any],
    limit: int,
    where: Any,
    where_document: Any,
) -> list[list[ChromaRow]]:
    """Search all vectors in one call; give the rows of each query, best first."""
    found = collection.query(
        query_embeddings=list(vectors),
        n_results=limit,
        where=where,
        where_document=where_document,
        include=_INCLUDE,
    )
    columns = ("ids", "documents", "metadatas", "distances", "embeddings")
    return [
        [ChromaRow(*row) for row in zip(*(found[name][at] for name in columns), strict=True)]
        for at in range(len(vectors))
    ]


def own_rows(
    collection: Any,
    rows: Callable[[Sequence[Any], int], list[list[ChromaRow]]],
    vectors: Sequence[Any],
    k: int,
    own_k: int,
    again: Callable[[], None],
) -> list[list[ChromaRow]]:
    """Search wider than the store's own k as far as the first rows stay the store's own.

    Args:
        collection: what is searched.
        rows: searches vectors for so many rows.
        vectors: of the queries.
        k: how many rows are wanted.
        own_k: how many the store itself would give.
        again: called when a second search is made.
    """
    own = min(k, own_k)
    width = max(own, min(k, reach_of(collection))) if k > own else own
    return own_first(rows, vectors, own, width, lambda row: row.distance, lambda row: row.id, again)
