"""Any retriever of LangChain's as a retriever of the core's: the same documents, in batches."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from types import MappingProxyType
from typing import Any, Final, TypeAlias

from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import ensure_config

from langchain_ralmspec.configs import quiet_config, unheard
from langchain_ralmspec.documents import passage_of
from langchain_ralmspec.inspection import (
    Concrete,
    check_retriever,
    look_at,
    prepared,
    reached,
    setup_of,
)
from ralmspec_plugins.adapters.batch_search import Scored
from ralmspec_plugins.adapters.retriever import HostSearch
from ralmspec_plugins.adapters.retriever_state import (
    BatchMode,
    HitPayload,
    QueryPayload,
    RetrieverSnapshot,
    RetrieverState,
    check_way,
    payload_of,
)
from ralmspec_plugins.errors import InputError
from ralmspec_plugins.types import Hit, Hits, Query

# In whose name LangChain's retrievers are called, and the hits of what they give.


# Gives the config of one call of the host, and whether a run hears of the call.
Calls: TypeAlias = Callable[[], tuple[RunnableConfig, bool]]


@contextmanager
def calling(query: Query, calls: Calls) -> Iterator[RunnableConfig]:
    """Make the config of one call of the host: that of the query's own caller, else by `calls`.

    A call that belongs to nobody's run is not heard by handlers from the context either.
    """
    config, heard = (payload_of(query).calls or calls)()
    with nullcontext() if heard else unheard(config):
        yield config


def hits_of(found: Sequence[Scored]) -> Hits:
    """Make the hits of what a batch search found."""
    return tuple(Hit(passage_of(one.document), None, HitPayload(one.vector)) for one in found)


def single_hits(documents: Any) -> Hits:
    """Make the hits of what one call of the host gave: a list, or a tuple for one.

    Raises:
        InputError: it gave something else than documents.
    """
    if not isinstance(documents, list | tuple):
        raise InputError(
            f"a retriever must give a list of documents, got {type(documents).__name__}"
        )
    return tuple(Hit(passage_of(document), None, HitPayload()) for document in documents)


_NO_KWARGS: Final[Mapping[str, Any]] = MappingProxyType({})


class HostRetriever(HostSearch["_Called"]):
    """A retriever of LangChain's, with one config and one set of arguments.

    A `VectorStoreRetriever` is looked into: its query is embedded once, by the
    store's own embedder, and searched in batches where an adapter knows the store
    and all settings. Everything else is a black box, called query by query.
    Either way the documents are those of `retriever.invoke(query, config, **kwargs)`.

    A change of the retriever (`search_kwargs`, `k`) counts from the next call on: one
    made by `for_call` keeps the settings of a vector store's retriever as they were.
    """

    def __init__(
        self,
        retriever: Runnable[Any, Any],
        *,
        config: RunnableConfig | None = None,
        kwargs: Mapping[str, Any] = _NO_KWARGS,
        batch: BatchMode = "exact",
        side_by_side: int = 8,
        pure: bool | None = None,
        calls: Calls | None = None,
    ) -> None:
        """Wrap a retriever; nothing is called yet.

        Args:
            retriever: any runnable from a text to documents.
            config: the caller's; its `configurable` values choose and set up the retriever.
            kwargs: what each call passes on besides.
            batch: "exact": only batch searches whose results do not depend on the batch by
                construction; "probed": all, with one query of each batch compared with the
                host's own single search; "off": none.
            side_by_side: how many single calls run at a time when several are due.
            pure: whether the same query finds the same documents, without side effects; found
                out by the classes inside where it is not said.
            calls: makes the config of each call of the host; quiet ones unless given.

        Raises:
            ConfigError: an unknown `batch`, or no call at a time.
        """
        check_way(batch, side_by_side)
        check_retriever(retriever)
        known = RetrieverState(partial(prepared, mode=batch, pure=pure))
        super().__init__(_Called(retriever, config, kwargs, calls), known, side_by_side)

    def for_call(
        self,
        config: RunnableConfig | None,
        kwargs: Mapping[str, Any] = _NO_KWARGS,
        calls: Calls | None = None,
        look: RetrieverSnapshot | None = None,
    ) -> "HostRetriever":
        """Give the same retriever for a call with another config; what is known is shared.

        `look` has the settings, where they are those of a call that goes on.
        """
        return self.beside(_Called(self._host.retriever, config, kwargs, calls), look)


class _Called:
    """A runnable with one caller's config, as LangChain calls it."""

    def __init__(
        self,
        retriever: Runnable[Any, Any],
        config: RunnableConfig | None,
        kwargs: Mapping[str, Any],
        calls: Calls | None,
    ) -> None:
        self.retriever = retriever
        self._config = ensure_config(config)
        self._kwargs = dict(kwargs)
        self._own = object()  # names this call alone
        self.calls: Calls = calls or self._quietly

    def _quietly(self) -> tuple[RunnableConfig, bool]:
        """Make the config of a call that nobody is told of."""
        return quiet_config(self._config), False

    def look_at(self) -> tuple[Hashable, Concrete]:
        return look_at(self.retriever, self._config, self._kwargs, self._own)

    def single(self, look: RetrieverSnapshot, query: Query) -> Hits:
        with calling(query, self.calls) as config:
            at = reached(look, self.retriever, config, self._kwargs)
            documents = at.runnable.invoke(query.text, at.config, **at.kwargs)
        return single_hits(documents)

    async def asingle(self, look: RetrieverSnapshot, query: Query) -> Hits:
        with calling(query, self.calls) as config:
            at = reached(look, self.retriever, config, self._kwargs)
            documents = await at.runnable.ainvoke(query.text, at.config, **at.kwargs)
        return single_hits(documents)

    def hits_of(self, found: Sequence[Scored]) -> Hits:
        return hits_of(found)

    def nobodys(self) -> "_Called":
        return _Called(self.retriever, setup_of(self._config), self._kwargs, None)

    def unheard(self, query: Query) -> Query:
        return Query(query.text, QueryPayload(None, self._quietly))
