"""Qdrant, over the client that a host holds: a list of queries in one request.

A server searches each segment for every query of the list by itself, with the
scoring of a single query; the local mode is a loop over single queries. So a
query's points do not depend on the batch.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

_REST_MODELS = "qdrant_client.http.models"
_LOCAL = {"QdrantLocal", "AsyncQdrantLocal"}


def rest_model(value: Any) -> bool:
    """Say whether a filter or search parameter can stand in a list of requests."""
    return value is None or type(value).__module__.startswith(_REST_MODELS)


def search_params(values: Mapping[str, Any]) -> Any:
    """Make search parameters of plain values, as a host does."""
    return import_module(_REST_MODELS).SearchParams(**values)


def brute_force(client: Any, params: Any) -> bool:
    """Say whether every vector is compared, so that a wider search starts alike."""
    if type(getattr(client, "_client", None)).__name__ in _LOCAL:
        return True
    return getattr(params, "exact", None) is True


def batch_points(
    client: Any,
    collection: str,
    vectors: Sequence[Any],
    limit: int,
    using: str,
    options: Mapping[str, Any],
) -> list[list[Any]]:
    """Search all vectors in one request; give the points of each, best first, with vectors.

    Args:
        client: a `QdrantClient`.
        collection: its name.
        vectors: what is searched for.
        limit: how many points each gets.
        using: the name of the vector field; "" where it has none.
        options: `query_filter`, `search_params`, `offset`, `score_threshold` and `consistency`,
            as `query_points` takes them.
    """
    answers = client.query_batch_points(
        collection_name=collection,
        requests=_requests(vectors, limit, using, options),
        consistency=options.get("consistency"),
    )
    return [list(answer.points) for answer in answers]


async def abatch_points(
    client: Any,
    collection: str,
    vectors: Sequence[Any],
    limit: int,
    using: str,
    options: Mapping[str, Any],
) -> list[list[Any]]:
    """Do the same with an `AsyncQdrantClient`."""
    answers = await client.query_batch_points(
        collection_name=collection,
        requests=_requests(vectors, limit, using, options),
        consistency=options.get("consistency"),
    )
    return [list(answer.points) for answer in answers]


def _requests(
    vectors: Sequence[Any], limit: int, using: str, options: Mapping[str, Any]
) -> list[Any]:
    request: Callable[..., Any] = import_module(_REST_MODELS).QueryRequest
    return [
        request(
            query=_plain(vector),
            using=using,
            filter=options.get("query_filter"),
            params=options.get("search_params"),
            score_threshold=options.get("score_threshold"),
            limit=limit,
            offset=options.get("offset", 0),
            with_payload=True,
            with_vector=[using] if using else True,
        )
        for vector in vectors
    ]


def vector_of(point: Any, using: str) -> Any:
    """Give a point's own vector, or `None`."""
    vector = point.vector
    return vector.get(using) if isinstance(vector, dict) else vector


def _plain(vector: Any) -> list[float]:
    return list(vector.tolist() if hasattr(vector, "tolist") else vector)
