"""Milvus, over the client that a host holds: a list of vectors in one search.

Milvus Lite multiplies matrices where there are several queries, so inner products
and cosines differ from a single search's in the last bits; what a server does
depends on its index and version. So nothing is promised here: a host uses this
only where it compares batches with single searches.
"""

from collections.abc import Mapping, Sequence
from typing import Any


def batch_hits(
    client: Any,
    collection: str,
    vectors: Sequence[Any],
    limit: int,
    field: str,
    fields: Sequence[str],
    options: Mapping[str, Any],
) -> list[list[dict[str, Any]]]:
    """Search all vectors in one call; give the hits of each, best first, with their vectors.

    Args:
        client: a `MilvusClient`.
        collection: its name.
        vectors: what is searched for.
        limit: how many hits each gets.
        field: the vector field.
        fields: the other fields that the host reads.
        options: `search_params`, `filter` and `timeout`, as `search` takes them.
    """
    found = client.search(collection, **_search(vectors, limit, field, fields, options))
    return [list(hits) for hits in found]


async def abatch_hits(
    client: Any,
    collection: str,
    vectors: Sequence[Any],
    limit: int,
    field: str,
    fields: Sequence[str],
    options: Mapping[str, Any],
) -> list[list[dict[str, Any]]]:
    """Do the same with an `AsyncMilvusClient`."""
    found = await client.search(collection, **_search(vectors, limit, field, fields, options))
    return [list(hits) for hits in found]


def _search(
    vectors: Sequence[Any],
    limit: int,
    field: str,
    fields: Sequence[str],
    options: Mapping[str, Any],
) -> dict[str, Any]:
    return {
        "data": list(vectors),
        "anns_field": field,
        "limit": limit,
        "output_fields": [*fields, field],
        **options,
    }
