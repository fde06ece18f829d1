"""A LangChain retriever as the core's `Retriever`: the same documents, in batches."""

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

# The configs of calls of LangChain's retrievers, and the hits of their results.


# Returns the config of one call of the host, and whether handlers are notified of it.
Calls: TypeAlias = Callable[[], tuple[RunnableConfig, bool]]


@contextmanager
def calling(query: Query, calls: Calls) -> Iterator[RunnableConfig]:
    """Return the config of one call of the host: of the query's own caller, or by `calls`.

    A call without a run does not notify handlers of the context either.
    """
    config, heard = (payload_of(query).calls or calls)()
    with nullcontext() if heard else unheard(config):
        yield config


def hits_of(found: Sequence[Scored]) -> Hits:
    """Return the hits of a batch search's result."""
    return tuple(Hit(passage_of(one.document), None, HitPayload(one.vector)) for one in found)


def single_hits(documents: Any) -> Hits:
    """Return the hits of the result of one call of the host.

    Raises:
        InputError: the result is not a list or tuple of documents.
    """
    if not isinstance(documents, list | tuple):
        raise InputError(
            f"a retriever must return a list of documents, got {type(documents).__name__}"
        )
    return tuple(Hit(passage_of(document), None, HitPayload()) for document in documents)


_NO_KWARGS: Final[Mapping[str, Any]] = MappingProxyType({})


class HostRetriever(HostSearch["_Called"]):
    """A LangChain retriever, with one config and one set of arguments.

    A `VectorStoreRetriever` is inspected: its query is embedded once, by the store's own
    embedder, and searched in batches if an adapter supports the store and all settings.
    Any other retriever is opaque and called query by query.
    In both cases the documents are those of `retriever.invoke(query, config, **kwargs)`.

    A change of the retriever's settings (`search_kwargs`, `k`) takes effect with the next call: a
    retriever returned by `for_call` keeps a copy of a vector store retriever's settings.
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
            config: the caller's config; its `configurable` values select and configure the
                retriever.
            kwargs: further arguments of each call.
            batch: "exact": only batch searches whose results do not depend on the batch by
                construction; "probed": all, with one query of each batch compared with the
                host's own single search; "off": none.
            side_by_side: the maximum number of concurrent single calls, and of embeddings that
                are waited for.
            pure: whether the same query finds the same documents, without side effects; `None`:
                determined by the classes inside.
            calls: returns the config of each call of the host; without handlers by default.

        Raises:
            ConfigError: `batch` is unknown, or `side_by_side` is below 1.
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
        """Return the same retriever for a call with another config; measurements are shared.

        `look` has the settings, if they are those of a call that continues.
        """
        return self.beside(_Called(self._host.retriever, config, kwargs, calls), look)


class _Called:
    """A runnable with one caller's config, called as LangChain calls it."""

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
        self._own = object()  # identifies this call only
        self.calls: Calls = calls or self._quietly

    def _quietly(self) -> tuple[RunnableConfig, bool]:
        """Return the config of a call without handlers."""
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
