"""Any retriever of LangChain's as a retriever of the core's: the same documents, in batches."""

from collections.abc import Hashable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from langchain_core.callbacks import CallbackManager
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import ensure_config

from langchain_ralmspec.asked import (
    Asked,
    Calls,
    calling,
    filled,
    hit_vector,
    hits_of,
    query_vector,
    single_hits,
)
from langchain_ralmspec.batch_search import Scored
from langchain_ralmspec.host_known import HostKnown, HostStats
from langchain_ralmspec.looking import BatchMode, Look, Native, check_way, reached
from ralmspec_plugins.errors import InputError
from ralmspec_plugins.hosts.side_by_side import aeach, all_or_first_error, each
from ralmspec_plugins.hosts.tables import HostTable
from ralmspec_plugins.records import Hits, Query

_NO_KWARGS: Final[Mapping[str, Any]] = MappingProxyType({})


class HostRetriever:
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
        check_way(retriever, batch, side_by_side)
        known = HostKnown(retriever, batch, pure)
        self._set_up(retriever, known, side_by_side, config, kwargs, calls)
        self._offer_wide(self.look().native)

    def _set_up(
        self,
        retriever: Runnable[Any, Any],
        known: HostKnown,
        side_by_side: int,
        config: RunnableConfig | None,
        kwargs: Mapping[str, Any],
        calls: Calls | None,
    ) -> None:
        self._retriever = retriever
        self._known = known
        self._side_by_side = side_by_side
        self._config = ensure_config(config)
        self._kwargs = dict(kwargs)
        self._calls = calls or self._quietly
        self._fixed: Look | None = None

    def _offer_wide(self, native: Native | None) -> None:
        if native is not None and native.wide:  # an attribute of those that can
            self.search_wide = self._search_wide
            self.asearch_wide = self._asearch_wide

    def for_call(
        self,
        config: RunnableConfig | None,
        kwargs: Mapping[str, Any] = _NO_KWARGS,
        calls: Calls | None = None,
        look: Look | None = None,
    ) -> "HostRetriever":
        """Give the same retriever for a call with another config; what is known is shared.

        `look` has the settings, where they are those of a call that goes on.
        """
        other = object.__new__(HostRetriever)
        other._set_up(self._retriever, self._known, self._side_by_side, config, kwargs, calls)
        other._fixed = other.look() if look is None else look
        other._offer_wide(other._fixed.native)
        return other

    def _quietly(self) -> tuple[RunnableConfig, Any]:
        """Make the config of a call that nobody is told of."""
        config = RunnableConfig(**self._config)
        for name in ("run_name", "run_id"):
            config.pop(name, None)  # type: ignore[misc]
        config["callbacks"] = CallbackManager(handlers=[])
        return config, None

    def look(self) -> Look:
        """Look at the retriever as it is now, or was when its call began."""
        if self._fixed is not None:
            return self._known.trusted(self._fixed)
        return self._known.look(self._config, self._kwargs)

    @property
    def signature(self) -> Hashable:
        """Name all that answers depend on, as it is now.

        A black box cannot be kept from changing in the middle of a call: what was found
        under another signature than the one asked for is not to be remembered.
        """
        if self._fixed is not None and self._fixed.fixed is not None:
            return self._fixed.signature
        return self._known.signature(self._config, self._kwargs)

    @property
    def pure(self) -> bool:
        """Whether the same query finds the same documents, without side effects."""
        return self.look().pure

    @property
    def k(self) -> int | None:
        """How many documents a search gives; `None` while that cannot be known."""
        look = self.look()
        return look.k if look.k is not None else self._known.latest_size(look)

    @property
    def looked_into(self) -> bool:
        """Whether the store's own batch search is used."""
        return self.look().native is not None

    @property
    def inline_encode(self) -> bool:
        """Whether encoding costs nothing: a black box's query is its text."""
        return self.look().native is None

    @property
    def stats(self) -> HostStats:
        """What has reached the host, for all configs together."""
        return self._known.stats

    def encode(self, text: str, calls: Calls | None = None) -> Query:
        """Form the query of a text, embedded as the store would.

        Args:
            text: what is asked.
            calls: how this query's calls of the host are made; the retriever's unless given.
        """
        native = self.look().native
        vector = None if native is None else native.embedder.embed_query(text)
        return Query(text, Asked(vector, calls or self._calls))

    async def aencode(self, text: str, calls: Calls | None = None) -> Query:
        """Do the same as the store's own asynchronous search does it."""
        native = self.look().native
        vector = None if native is None else await native.aembed(text)
        return Query(text, Asked(vector, calls or self._calls))

    def table(self, capacity: int) -> HostTable:
        """Make a table that ranks a pool by the store's vectors and metric, or by words."""
        native = self.look().native
        metric = None if native is None else native.search.metric
        return HostTable(metric, hit_vector, query_vector)

    def search(self, queries: Sequence[Query]) -> list[Hits]:
        """Find what the host's retriever finds for each query.

        Raises:
            Exception: what the host raises; for many queries, that of the first that fails.
        """
        return self._search(queries, None)

    def _search_wide(self, queries: Sequence[Query], width: int) -> list[Hits]:
        """Find at least what `search` finds, and what comes next, up to `width`."""
        return self._search(queries, width)

    def _search(self, queries: Sequence[Query], width: int | None) -> list[Hits]:
        look = self.look()
        native = look.fitting([query_vector(query) for query in queries])
        if native is None:
            return self._singly(look, queries)
        vectors = [query_vector(query) for query in queries]
        try:
            found = native.find(vectors, width)
            hits = self._cut(native, queries, found)
        except Exception:
            if len(queries) > 1:  # the caller repeats them one by one
                raise
            return self._singly(look, queries)  # so that errors are the host's own
        if native.search.exact or self._agrees(look, queries, hits):
            rest = [query for query, own in zip(queries, hits, strict=True) if own is None]
            return filled(hits, self._singly(look, rest))
        return self._singly(look, queries)

    def _cut(
        self, native: Native, queries: Sequence[Query], found: Sequence[list[Scored]]
    ) -> list[Hits | None]:
        self._known.note_batch(len(queries))
        if len(found) != len(queries):
            raise InputError(
                f"the batch search of {native.search.name} gave {len(found)} results for "
                f"{len(queries)} queries; it must give one for each, in order"
            )
        return [None if own is None else hits_of(own) for own in native.cut(found)]

    def _agrees(self, look: Look, queries: Sequence[Query], hits: list[Hits | None]) -> bool:
        """Compare one query of a batch with the host's own search."""
        at = self._known.probe(len(queries))
        return self._same(look, hits[at], self._single(look, self._unheard(queries[at])))

    def _same(self, look: Look, hits: Hits | None, truth: Hits) -> bool:
        if hits is None or hits == truth:
            return True
        self._known.distrust(look)
        return False

    def _singly(self, look: Look, queries: Sequence[Query]) -> list[Hits]:
        at_once = self._side_by_side
        return all_or_first_error(each(lambda one: self._single(look, one), queries, at_once))

    def _single(self, look: Look, query: Query) -> Hits:
        with calling(query, self._calls) as (config, recording):
            at = reached(look, self._retriever, config, self._kwargs)
            documents = at.runnable.invoke(query.text, at.config, **at.kwargs)
        return self._found(look, documents, recording)

    def _unheard(self, query: Query) -> Query:
        """Give a query whose call nobody is told of: it is asked for comparison only."""
        return Query(query.text, Asked(None, self._quietly))

    def _found(self, look: Look, documents: Any, recording: Any) -> Hits:
        hits = single_hits(documents, recording)
        self._known.note_single(look, len(hits))
        return hits

    async def asearch(self, queries: Sequence[Query]) -> list[Hits]:
        """Do what `search` does, by the host's asynchronous methods."""
        return await self._asearch(queries, None)

    async def _asearch_wide(self, queries: Sequence[Query], width: int) -> list[Hits]:
        return await self._asearch(queries, width)

    async def _asearch(self, queries: Sequence[Query], width: int | None) -> list[Hits]:
        look = self.look()
        native = look.fitting([query_vector(query) for query in queries])
        if native is None:
            return await self._asingly(look, queries)
        vectors = [query_vector(query) for query in queries]
        try:
            found = await native.afind(vectors, width)
            hits = self._cut(native, queries, found)
        except Exception:
            if len(queries) > 1:
                raise
            return await self._asingly(look, queries)
        if native.search.exact or await self._aagrees(look, queries, hits):
            rest = [query for query, own in zip(queries, hits, strict=True) if own is None]
            return filled(hits, await self._asingly(look, rest))
        return await self._asingly(look, queries)

    async def _aagrees(self, look: Look, queries: Sequence[Query], hits: list[Hits | None]) -> bool:
        at = self._known.probe(len(queries))
        return self._same(look, hits[at], await self._asingle(look, self._unheard(queries[at])))

    async def _asingly(self, look: Look, queries: Sequence[Query]) -> list[Hits]:
        results = await aeach(lambda query: self._asingle(look, query), queries, self._side_by_side)
        return all_or_first_error(results)

    async def _asingle(self, look: Look, query: Query) -> Hits:
        with calling(query, self._calls) as (config, recording):
            at = reached(look, self._retriever, config, self._kwargs)
            documents = await at.runnable.ainvoke(query.text, at.config, **at.kwargs)
        return self._found(look, documents, recording)
