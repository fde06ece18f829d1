"""Any retriever of a host's as a retriever of the core's: the same documents, in batches."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from contextvars import copy_context
from dataclasses import replace
from typing import Any, Generic, Protocol, Self, TypeVar

from ralmspec_plugins.adapters.batch_search import HostTable, Scored
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

# Calls of one kind at the same time, for hosts whose stores take one query a call.


ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def each(
    call: Callable[[ItemT], ResultT], items: Sequence[ItemT], at_once: int
) -> list[ResultT | Exception]:
    """Call once for each item, so many at a time, each in a copy of the caller's context.

    What a call raises stands in the place of its result. No thread is left behind.
    """
    workers = min(at_once, len(items))
    if workers <= 1:
        return [_tried(call, item) for item in items]
    with ThreadPoolExecutor(workers, thread_name_prefix="ralmspec-host") as threads:
        futures = [threads.submit(copy_context().run, _tried, call, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:  # Ctrl-C: what has not begun does not begin
            threads.shutdown(wait=False, cancel_futures=True)
            raise


def _tried(call: Callable[[ItemT], ResultT], item: ItemT) -> ResultT | Exception:
    try:
        return call(item)
    except Exception as error:  # noqa: BLE001 given back in the place of the result
        return error


async def aeach(
    call: Callable[[ItemT], Coroutine[Any, Any, ResultT]], items: Sequence[ItemT], at_once: int
) -> list[ResultT | Exception]:
    """Do the same with tasks; none is left behind, also where the caller is cancelled."""
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
    except Exception as error:  # noqa: BLE001 given back in the place of the result
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
    `calls`: what a query of this caller carries, so that the host is called in his name
    also where his query is searched together with those of others.
    """

    @property
    def retriever(self) -> Any:
        """The host's own object."""
        ...

    @property
    def calls(self) -> Any:
        """What a query of this caller carries."""
        ...

    def look_at(self) -> tuple[Hashable, Any]:
        """Name all that answers depend on, as it is now.

        What goes with it is what `RetrieverState` prepares: the retriever, with settings that
        nobody changes meanwhile where that is possible.
        """
        ...

    def single(self, look: RetrieverSnapshot, query: Query) -> Hits:
        """Ask one query exactly as the host does, with the settings of the look."""
        ...

    async def asingle(self, look: RetrieverSnapshot, query: Query) -> Hits:
        """Do the same by the host's asynchronous method, without blocking the event loop."""
        ...

    def hits_of(self, found: Sequence[Scored]) -> Hits:
        """Make the hits of what a batch search found: the same as a single call would give."""
        ...

    def nobodys(self) -> Self:
        """Return the same settings without their caller, to be kept and used for others too."""
        ...

    def unheard(self, query: Query) -> Query:
        """Return the same query, but such that nobody is told of the calls made for it."""
        ...


HostT = TypeVar("HostT", bound=Host)


class HostSearch(Generic[HostT]):
    """Searches a host's retriever, with the settings of one caller.

    What is known to the host's adapters is looked into: its query is embedded once, by
    the store's own embedder, and searched in batches where all settings are known.
    Everything else is a black box, called query by query. Either way the documents are
    those of the host's own single calls.

    A change of the retriever's settings counts from the next call on: one that was made
    with a `look` keeps to that, where the host's retriever can be kept to its settings.
    """

    def __init__(
        self,
        host: HostT,
        known: RetrieverState,
        side_by_side: int,
        look: RetrieverSnapshot | None = None,
    ) -> None:
        """Search this host's retriever.

        Args:
            host: how it is looked at and called.
            known: what is known of it, by all callers.
            side_by_side: how many single calls run at a time when several are due.
            look: the retriever as it was when a call began that goes on here.
        """
        self._host = host
        self._known = known
        self._side_by_side = side_by_side
        self._fixed = look
        native = self.look().native
        if native is not None and native.wide:  # an attribute of those that can
            self.search_wide = self._search_wide
            self.asearch_wide = self._asearch_wide

    def beside(self, host: HostT, look: RetrieverSnapshot | None = None) -> Self:
        """Return the same retriever for a call of its own; what is known is shared.

        `look` has the settings, where they are those of a call that goes on.
        """
        other = object.__new__(type(self))
        fixed = self._known.look(*host.look_at()) if look is None else look
        HostSearch.__init__(other, host, self._known, self._side_by_side, fixed)
        return other

    def one_by_one(self) -> Self:
        """Return the same retriever with one single call at a time."""
        other = self.beside(self._host, self._fixed)
        other._side_by_side = 1  # noqa: SLF001 its own class
        return other

    def nobodys(self, look: RetrieverSnapshot) -> Self:
        """Return the same retriever in nobody's name, kept to a look."""
        return self.beside(self._host.nobodys(), look)

    def look(self) -> RetrieverSnapshot:
        """Look at the retriever as it is now, or was when its call began."""
        if self._fixed is not None:
            return self._known.trusted(self._fixed)
        return self._known.look(*self._host.look_at())

    @property
    def signature(self) -> Hashable:
        """Name all that answers depend on, as it is now.

        A black box cannot be kept from changing in the middle of a call: what was found
        under another signature than the one asked for is not to be remembered.
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
        """What has reached the host, for all callers together."""
        return self._known.stats

    def note_call(self, found: int) -> None:
        """Count a call of the host's retriever that its caller made, and how much it found."""
        self._known.note_single(self.look(), found)

    def unencoded(self, text: str) -> Query:
        """Form the query of a text without its vector, to be asked alone or remembered."""
        return Query(text, QueryPayload(calls=self._host.calls))

    def encode(self, text: str, calls: Any = None) -> Query:
        """Form the query of a text, embedded as the store would.

        Args:
            text: what is asked.
            calls: how this query's calls of the host are made; the caller's unless given.
        """
        native = self.look().native
        asked = QueryPayload() if native is None else native.embedder.embed(text)
        return Query(text, replace(asked, calls=calls or self._host.calls))

    async def aencode(self, text: str, calls: Any = None) -> Query:
        """Do the same as the store's own asynchronous search does it."""
        native = self.look().native
        asked = QueryPayload() if native is None else await native.embedder.aembed(text)
        return Query(text, replace(asked, calls=calls or self._host.calls))

    def table(self, capacity: int) -> HostTable:
        """Make a table that ranks a pool by the store's vectors and metric, or by words."""
        native = self.look().native
        metric = None if native is None else native.search.metric
        score_of = None if native is None else getattr(native.search, "score_of", None)
        return HostTable(metric, hit_vector, query_vector, score_of, unrecorded)

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
            return self._singly(look, queries, width)
        vectors = [query_vector(query) for query in queries]
        try:
            found = native.find(vectors, width)
            hits = self._cut(native, queries, found)
        except Exception:
            if len(queries) > 1:  # the caller repeats them one by one
                raise
            return self._singly(look, queries, width)  # so that errors are the host's own
        if native.search.exact or self._agrees(look, queries, hits):
            rest = [query for query, own in zip(queries, hits, strict=True) if own is None]
            return filled(hits, self._singly(look, rest, width))
        return self._singly(look, queries, width)

    def _cut(
        self, native: Native, queries: Sequence[Query], found: Sequence[list[Scored]]
    ) -> list[Hits | None]:
        self._known.note_batch(len(queries))
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
        """Do what `search` does, by the host's asynchronous methods."""
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
            found = await native.afind(vectors, width)
            hits = self._cut(native, queries, found)
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
        """See to a call of a black box that could be remembered."""
        if look.fixed is not None or not look.pure:
            return nullcontext()
        host = self._host
        return self._known.steadiness.watched(lambda: host.look_at()[0], host.retriever)
