"""What the queries and hits of a host's retriever carry: vectors, and whose call it is."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

from langchain_core.callbacks import BaseCallbackManager
from langchain_core.runnables import RunnableConfig

from langchain_ralmspec.batch_search import Scored, Vector
from langchain_ralmspec.call_configs import unheard
from langchain_ralmspec.passages import passage_of
from langchain_ralmspec.recording import Recording
from ralmspec_plugins.errors import InputError
from ralmspec_plugins.records import Hit, Hits, Query

# Gives the config of one call of the host, and whatever records that call's events.
Calls: TypeAlias = Callable[[], tuple[RunnableConfig, Any]]


@dataclass(frozen=True, slots=True)
class Asked:
    """What a query carries: its vector, and how calls of the host are made for it.

    So a batch may hold the queries of many callers, and each caller's handlers
    hear of his own calls only.
    """

    vector: Vector | None = None
    calls: Calls | None = None


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
            f"LangChain's retrievers search texts, but the query {query.text!r} has an "
            "encoding of its own; make it with the retriever's encode(text)"
        )
    return query.encoding


@contextmanager
def calling(query: Query, calls: Calls) -> Iterator[tuple[RunnableConfig, Any]]:
    """Make the config of one call of the host: that of the query's own caller, else by `calls`.

    A call that belongs to nobody's run is not heard by handlers from the context either.
    """
    config, recording = (asked_of(query).calls or calls)()
    manager = config.get("callbacks")
    alone = isinstance(manager, BaseCallbackManager) and manager.parent_run_id is None
    nobodys = isinstance(recording, Recording) or alone
    with unheard(config) if nobodys else nullcontext():
        yield config, recording


def query_vector(query: Query) -> Vector | None:
    """Give a query's vector, if it has one."""
    return asked_of(query).vector


def hit_vector(hit: Hit) -> Vector | None:
    """Give the vector of a hit's document, if it is known."""
    return hit.features.vector if isinstance(hit.features, Origin) else None


def hits_of(found: Sequence[Scored]) -> Hits:
    """Make the hits of what a batch search found."""
    return tuple(Hit(passage_of(one.document), None, Origin(one.vector)) for one in found)


def single_hits(documents: Any, recording: Any) -> Hits:
    """Make the hits of what one call of the host gave.

    Raises:
        InputError: it gave something else than documents.
    """
    if not isinstance(documents, list):
        raise InputError(
            f"a retriever must give a list of documents, got {type(documents).__name__}"
        )
    # Hits are remembered, and their recording with them: only where it tells more than
    # that these documents were found.
    inside = recording if isinstance(recording, Recording) and recording.tells_more else None
    origin = Origin(None, inside)
    return tuple(Hit(passage_of(document), None, origin) for document in documents)


def filled(hits: Sequence[Hits | None], rest: Sequence[Hits]) -> list[Hits]:
    """Put the hits that were asked for one by one into their places."""
    singles = iter(rest)
    return [next(singles) if own is None else own for own in hits]
