"""In whose name LangChain's retrievers are called, and the hits of what they give."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, TypeAlias

from langchain_core.callbacks import BaseCallbackManager
from langchain_core.runnables import RunnableConfig

from langchain_ralmspec.call_configs import unheard
from langchain_ralmspec.passages import passage_of
from langchain_ralmspec.recording import Recording
from ralmspec_plugins.adapters.batch_search import Scored
from ralmspec_plugins.adapters.retriever_state import Asked, Origin, asked_of
from ralmspec_plugins.errors import InputError
from ralmspec_plugins.types import Hit, Hits, Query

__all__ = ("Asked", "Calls", "Origin", "asked_of", "calling", "hits_of", "single_hits")

# Gives the config of one call of the host, and whatever records that call's events.
Calls: TypeAlias = Callable[[], tuple[RunnableConfig, Any]]


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
