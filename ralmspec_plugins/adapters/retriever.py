"""A host's retriever as a retriever of the core: the same documents, in batches."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from contextvars import copy_context
from dataclasses import replace
from typing import Any, Generic, Protocol, Self, TypeVar

from ralmspec_plugins.adapters.batch_search import HostTable, Scored, counting_repeats
from ralmspec_plugins.adapters.retriever_state import (
    HostStats,
    Native,
    QueryPayload,
    RetrieverSnapshot,
    RetrieverState,
    filled,
    hit_vector,
    query_vector,
    unrecorded,
)
from ralmspec_plugins.errors import InputError
from ralmspec_plugins.types import Hits, Query

# Parallel calls, for hosts whose stores take one query per call.


ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def each(
    call: Callable[[ItemT], ResultT], items: Sequence[ItemT], at_once: int
) -> list[ResultT | Exception]:
    """Call a function for each item, in parallel, each in a copy of the caller's context.

    The error of a call is returned in place of its result. No thread outlives the call.
    """
    workers = min(at_once, len(items))
    if workers <= 1:
        return [_tried(call, item) for item in items]
    with ThreadPoolExecutor(workers, thread_name_prefix="ralmspec-host") as threads:
        futures = [threads.submit(copy_context().run, _tried, call, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:  # Ctrl-C: calls that have not started are dropped
            threads.shutdown(wait=False, cancel_futures=True)
            raise


def _tried(call: Callable[[ItemT], ResultT], item: ItemT) -> ResultT | Exception:
    try:
        return call(item)
    except Exception as error:  # noqa: BLE001 returned in place of the result
        return error


async def aeach(
    call: Callable[[ItemT], Coroutine[Any, Any, ResultT]], items: Sequence[ItemT], at_once: int
) -> list[ResultT | Exception]:
    """Call a coroutine function for each item, in tasks, which end with the caller."""
    if len(items) == 1:
        return [await _atried(call(items[0]))]
    gate = asyncio.Semaphore(at_once)

    async def gated(item: ItemT) -> ResultT | Exception:
        async with gate:
            return await _atried(call(item))

    tasks = [asyncio.create_task(gated(item)) for item in items]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _atried(call: Awaitable[ResultT]) -> ResultT | Exception:
    try:
        return await call
    except Exception as error:  # noqa: BLE001 returned in place of the result
        return error


def all_or_first_error(results: Sequence[ResultT | Exception]) -> list[ResultT]:
    """Return the results, or raise the first error among them."""
    good: list[ResultT] = []
    for result in results:
        if isinstance(result, Exception):
            raise result
        good.append(result)
    return good


class Host(Protocol):
    """A host's retriever with the settings of one caller, as the host itself calls it.

    `retriever`: the host's own object.
    `calls`: the call settings in a query's payload, so that the host is called with those of
    its caller, also in a batch with queries of others.
    """

    @property
    def retriever(self) -> Any:
        """The host's own object."""
        ...

    @property
    def calls(self) -> Any:
        """The call settings in a query's payload."""
        ...

    def look_at(self) -> tuple[Hashable, Any]:
        """Return the current signature, and the retriever as `RetrieverState` prepares it.

        The settings of that retriever are copies, if possible.
        """
        ...

    def single(self, look: RetrieverSnapshot, query: Query) -> Hits:
        """Search one query exactly as the host does, with the settings of the snapshot."""
        ...

    async def asingle(self, look: RetrieverSnapshot, query: Query) -> Hits:
        """Search one query with the host's asynchronous method, without blocking the event loop."""
        ...

    def hits_of(self, found: Sequence[Scored]) -> Hits:
        """Return the hits of a batch search's documents: the same as those of a single call."""
        ...

    def nobodys(self) -> Self:
        """Return the same settings without those of the caller, for use by other callers."""
        ...

    def unheard(self, query: Query) -> Query:
        """Return the same query without the caller's handlers."""
        ...


HostT = TypeVar("HostT", bound=Host)


class HostSearch(Generic[HostT]):
    """Searches a host's retriever, with the settings of one caller.

    For supported classes the query is embedded once, by
    the store's own embedder, and searched in batches if all settings are known.
    Any other retriever is opaque, and called query by query. In both cases the documents are
    those of the host's own single calls.

    A change of the retriever's settings takes effect at the next call: one with a
    `look` uses that snapshot, if the host's retriever can be copied with its settings.
    """

    def __init__(
        self,
        host: HostT,
        known: RetrieverState,
        side_by_side: int,
        look: RetrieverSnapshot | None = None,
    ) -> None:
        """Create a retriever of a host's retriever.

        Args:
            host: the host's retriever with its caller's settings.
            known: the state shared by all callers.
            side_by_side: the maximum number of single calls in parallel.
            look: the snapshot from the start of a call that continues here.
        """
        self._host = host
        self._known = known
        self._side_by_side = side_by_side
        self._fixed = look
        native = self.look().native
        if native is not None and native.wide:  # the attribute exists only if it is supported
            self.search_wide = self._search_wide
            self.asearch_wide = self._asearch_wide

    def __repr__(self) -> str:
        """Return the class of the host's retriever."""
        return f"{type(self).__name__}({type(self._host.retriever).__name__})"

    def beside(self, host: HostT, look: RetrieverSnapshot | None = None) -> Self:
        """Return the same retriever for another call, with shared state.

        `look` has the settings, if they are those of a call that continues.
        """
        other = object.__new__(type(self))
        fixed = self._known.look(*host.look_at()) if look is None else look
        HostSearch.__init__(other, host, self._known, self._side_by_side, fixed)
        return other

    def one_by_one(self) -> Self:
        """Return the same retriever with one single call at a time."""
        other = self.beside(self._host, self._fixed)
        other._side_by_side = 1  # noqa: SLF001 the same class
        return other

    def nobodys(self, look: RetrieverSnapshot) -> Self:
        """Return the same retriever without its caller, for a snapshot."""
        return self.beside(self._host.nobodys(), look)

    def look(self) -> RetrieverSnapshot:
        """Return the current snapshot of the retriever, or that from the start of the call."""
        if self._fixed is not None:
            return self._known.trusted(self._fixed)
        return self._known.look(*self._host.look_at())

    @property
    def signature(self) -> Hashable:
        """Return the current key of all that answers depend on.

        An opaque retriever may change during a call: results under
        another signature than the requested one must not be cached.
        """
        if self._fixed is not None and self._fixed.fixed is not None:
            return self._fixed.signature
        return self._host.look_at()[0]

    @property
    def pure(self) -> bool:
        """Whether the same query finds the same documents, without side effects."""
        return self.look().pure

    @property
    def k(self) -> int | None:
        """The number of documents of a search; `None` while it is unknown."""
        look = self.look()
        return look.k if look.k is not None else self._known.latest_size(look)

    @property
    def looked_into(self) -> bool:
        """Whether the store's own batch search is used."""
        return self.look().native is not None

    @property
    def inline_encode(self) -> bool:
        """Whether encoding is free: the query of an opaque retriever is its text."""
        return self.look().native is None

    @property
    def encode_lanes(self) -> int:
        """The number of queries that may be embedded at a time.

        More than one as soon as it is known that embeddings are waited for: a model in this
        process may not be callable by several threads at once.
        """
        return self._side_by_side if self._known.embedding_time.waits else 1

    @property
    def stats(self) -> HostStats:
        """The counts of calls of the host, for all callers together."""
        return self._known.stats

    def note_call(self, found: int) -> None:
        """Count a call of the host's retriever by its caller, and the number of its documents."""
        self._known.note_single(self.look(), found)

    def unencoded(self, text: str) -> Query:
        """Return the query of a text without its vector, for single calls or caches."""
        return Query(text, QueryPayload(calls=self._host.calls))

    def encode(self, text: str, calls: Any = None) -> Query:
        """Return the query of a text, embedded as the store does.

        Args:
            text: the query's text.
            calls: the settings of calls for this query; the caller's by default.
        """
        native = self.look().native
        if native is None:
            asked = QueryPayload()
        else:
            with self._known.embedding_time.in_thread():
                asked = native.embedder.embed(text)
        return Query(text, replace(asked, calls=calls or self._host.calls))

    async def aencode(self, text: str, calls: Any = None) -> Query:
        """Return the query of a text, embedded as the store's asynchronous search does."""
        native = self.look().native
        if native is None:
            asked = QueryPayload()
        else:
            with self._known.embedding_time.awaited():
                asked = await native.embedder.aembed(text)
        return Query(text, replace(asked, calls=calls or self._host.calls))

    def table(self, capacity: int) -> HostTable:
        """Return an empty passage table, which ranks by the store's metric, or by words."""
        native = self.look().native
        metric = None if native is None else native.search.metric
        score_of = None if native is None else getattr(native.search, "score_of", None)
        return HostTable(metric, hit_vector, query_vector, score_of, unrecorded)

    def search(self, queries: Sequence[Query]) -> list[Hits]:
        """Return the hits of the host's retriever for each query.

        Raises:
            Exception: the host's error; for several queries, the first one.
        """
        return self._search(queries, None)

    def _search_wide(self, queries: Sequence[Query], width: int) -> list[Hits]:
        """Return the hits of `search` and the next ones, up to `width`."""
        return self._search(queries, width)

    def _search(self, queries: Sequence[Query], width: int | None) -> list[Hits]:
        look = self.look()
        native = look.fitting([query_vector(query) for query in queries])
        if native is None:
            return self._singly(look, queries, width)
        vectors = [query_vector(query) for query in queries]
        try:
            with counting_repeats() as repeats:
                found = native.find(vectors, width)
            hits = self._cut(native, queries, found, repeats)
        except Exception:
            if len(queries) > 1:  # the caller repeats them one by one
                raise
            return self._singly(look, queries, width)  # so that errors are the host's own
        if native.search.exact or self._agrees(look, queries, hits):
            rest = [query for query, own in zip(queries, hits, strict=True) if own is None]
            return filled(hits, self._singly(look, rest, width))
        return self._singly(look, queries, width)

    def _cut(
        self,
        native: Native,
        queries: Sequence[Query],
        found: Sequence[list[Scored]],
        repeats: Sequence[int],
    ) -> list[Hits | None]:
        for size in (len(queries), *repeats):
            self._known.note_batch(size)
        if len(found) != len(queries):
            raise InputError(
                f"the batch search of {native.search.name} gave {len(found)} results for "
                f"{len(queries)} queries; it must give one for each, in order"
            )
        return [None if own is None else self._host.hits_of(own) for own in native.cut(found)]

    def _agrees(
        self, look: RetrieverSnapshot, queries: Sequence[Query], hits: list[Hits | None]
    ) -> bool:
        """Compare one query of a batch with the host's own search."""
        at = self._known.probe(len(queries))
        return self._same(look, hits[at], self._single(look, self._host.unheard(queries[at])))

    def _same(self, look: RetrieverSnapshot, hits: Hits | None, truth: Hits) -> bool:
        if hits is None or hits == truth:
            return True
        self._known.distrust(look)
        return False

    def _singly(
        self, look: RetrieverSnapshot, queries: Sequence[Query], width: int | None
    ) -> list[Hits]:
        found = each(lambda one: self._single(look, one), queries, self._side_by_side)
        return look.beginning(all_or_first_error(found), width)

    def _single(self, look: RetrieverSnapshot, query: Query) -> Hits:
        with self._watched(look):
            hits = self._host.single(look, query)
        self._known.note_single(look, len(hits))
        return hits

    async def asearch(self, queries: Sequence[Query]) -> list[Hits]:
        """Return the hits of `search`, by the host's asynchronous methods."""
        return await self._asearch(queries, None)

    async def _asearch_wide(self, queries: Sequence[Query], width: int) -> list[Hits]:
        return await self._asearch(queries, width)

    async def _asearch(self, queries: Sequence[Query], width: int | None) -> list[Hits]:
        look = self.look()
        native = look.fitting([query_vector(query) for query in queries])
        if native is None:
            return await self._asingly(look, queries, width)
        vectors = [query_vector(query) for query in queries]
        try:
            with counting_repeats() as repeats:
                found = await native.afind(vectors, width)
            hits = self._cut(native, queries, found, repeats)
        except Exception:
            if len(queries) > 1:
                raise
            return await self._asingly(look, queries, width)
        if native.search.exact or await self._aagrees(look, queries, hits):
            rest = [query for query, own in zip(queries, hits, strict=True) if own is None]
            return filled(hits, await self._asingly(look, rest, width))
        return await self._asingly(look, queries, width)

    async def _aagrees(
        self, look: RetrieverSnapshot, queries: Sequence[Query], hits: list[Hits | None]
    ) -> bool:
        at = self._known.probe(len(queries))
        truth = await self._asingle(look, self._host.unheard(queries[at]))
        return self._same(look, hits[at], truth)

    async def _asingly(
        self, look: RetrieverSnapshot, queries: Sequence[Query], width: int | None
    ) -> list[Hits]:
        found = await aeach(lambda query: self._asingle(look, query), queries, self._side_by_side)
        return look.beginning(all_or_first_error(found), width)

    async def _asingle(self, look: RetrieverSnapshot, query: Query) -> Hits:
        with self._watched(look):
            hits = await self._host.asingle(look, query)
        self._known.note_single(look, len(hits))
        return hits

    def _watched(self, look: RetrieverSnapshot) -> AbstractContextManager[None]:
        """Return a context that watches a call of an opaque retriever for changes."""
        if look.fixed is not None or not look.pure:
            return nullcontext()
        host = self._host
        return self._known.steadiness.watched(lambda: host.look_at()[0], host.retriever)
