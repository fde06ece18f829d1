"""What the queries and hits of a host's retriever carry: vectors, and whose call it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ralmspec_plugins.errors import InputError
from ralmspec_plugins.hosts.batch_search import Vector
from ralmspec_plugins.types import Hit, Hits, Query


@dataclass(frozen=True, slots=True)
class Asked:
    """What a query carries: its vector, and how calls of the host are made for it.

    So a batch may hold the queries of many callers, and each caller's handlers
    hear of his own calls only.

    Args:
        vector: the query's, as the host's own embedder made it.
        calls: whatever the host needs to make a call in its caller's name.
        recording: what the host told of the embedding, where that is kept.
    """

    vector: Vector | None = None
    calls: Any = None
    recording: Any = None


@dataclass(frozen=True, slots=True)
class Origin:
    """What a hit carries: the document's vector, and what recorded the call that found it."""

    vector: Vector | None = None
    recording: Any = None


def asked_of(query: Query) -> Asked:
    """Give what a query carries; nothing, for one that a workload has made of a text.

    Raises:
        InputError: it was not made for a host's retriever.
    """
    if query.encoding is None:
        return Asked()
    if not isinstance(query.encoding, Asked):
        raise InputError(
            f"a host's retriever searches texts, but the query {query.text!r} has an "
            "encoding of its own; make it with the retriever's encode(text)"
        )
    return query.encoding


def query_vector(query: Query) -> Vector | None:
    """Give a query's vector, if it has one."""
    return asked_of(query).vector


def hit_vector(hit: Hit) -> Vector | None:
    """Give the vector of a hit's document, if it is known."""
    return hit.features.vector if isinstance(hit.features, Origin) else None


def unrecorded(hit: Hit) -> Hit:
    """Give a hit without what recorded its search: that may be long, and a guess is never told."""
    origin = hit.features
    if not isinstance(origin, Origin) or origin.recording is None:
        return hit
    return Hit(hit.passage, hit.score, Origin(origin.vector))


def filled(hits: Sequence[Hits | None], rest: Sequence[Hits]) -> list[Hits]:
    """Put the hits that were asked for one by one into their places."""
    singles = iter(rest)
    return [next(singles) if own is None else own for own in hits]
