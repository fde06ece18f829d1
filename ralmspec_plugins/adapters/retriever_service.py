"""Answers the calls of a retriever in front of a host's: by the memo, or one search for many."""

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from contextvars import Context
from dataclasses import dataclass, replace
from typing import Any, Final, Generic, TypeVar

from ralmspec_plugins.adapters.fingerprint import object_id
from ralmspec_plugins.adapters.retriever import HostSearch, aeach, each
from ralmspec_plugins.adapters.retriever_state import BatchMode, RetrieverSnapshot
from ralmspec_plugins.batching.verifier import Verifier
from ralmspec_plugins.config import Settings
from ralmspec_plugins.errors import InputError
from ralmspec_plugins.speculators.passage_cache import SharedPassageCache
from ralmspec_plugins.speculators.query_cache import QueryCache
from ralmspec_plugins.types import Hits, Query

# What all calls of one retriever in front of a host's share: a line to the store, and counts.


_log = logging.getLogger(__name__)

_PLACES: Final = 64  # settings (users, filters) whose calls are merged
_WAYS: Final = 8  # sets of fields; more than one only where they are configurable
ValueT = TypeVar("ValueT")
SearchT = TypeVar("SearchT", bound=HostSearch[Any])


@dataclass(frozen=True, slots=True)
class RetrieverConfig(Generic[SearchT]):
    """How a retriever is wrapped: the fields of a `SpeculativeRetriever` that matter here.

    `search` makes of the host's retriever one that the core searches, given the settings
    `batch`, `side_by_side` and `pure`.
    """

    search: Callable[..., SearchT]
    retriever: Any
    batching: BatchMode
    max_batch: int
    lanes: int
    side_by_side: int
    pure: bool | None

    @property
    def key(self) -> Hashable:
        """Name the way; a retriever is only itself."""
        numbers = self.max_batch, self.lanes, self.side_by_side
        return object_id(self.retriever), self.batching, numbers, self.pure


@dataclass(frozen=True, slots=True)
class BatchGroup:
    """Where the calls of one set of settings meet."""

    host: HostSearch[Any]  # nobody's in particular, and so with nobody's handlers
    line: Verifier


@dataclass(frozen=True, slots=True)
class RetrieverStats:
    """What a retriever was asked, and what of it reached the host."""

    asked: int = 0
    remembered: int = 0  # answered by the memo
    round_trips: int = 0  # calls of the store or the wrapped retriever
    queries: int = 0  # in all of these calls


class ServiceState:
    """The running side of a `SpeculativeRetriever`. Thread-safe.

    No part of the retriever's value: all are equal, and a copy (pickled, deep)
    starts afresh.
    """

    def __init__(self) -> None:
        """Start with nothing running."""
        self._lock = threading.RLock()
        self._asked = RetrieverStats()
        self._warned = False
        self._reset()

    def _reset(self) -> None:
        self._process = os.getpid()
        self._hosts: OrderedDict[Hashable, Any] = OrderedDict()  # the last used at the end
        self._lines: OrderedDict[Hashable, Verifier] = OrderedDict()
        self._places: OrderedDict[Hashable, BatchGroup] = OrderedDict()

    def __reduce__(self) -> tuple[type["ServiceState"], tuple[()]]:
        """Travel as a new one."""
        return ServiceState, ()

    def __eq__(self, other: object) -> bool:
        """Be no part of a retriever's value."""
        return isinstance(other, ServiceState)

    def __hash__(self) -> int:
        """Agree with that."""
        return hash(ServiceState)

    def host(self, way: RetrieverConfig[SearchT]) -> SearchT:
        """Give the wrapped retriever as the core searches it."""
        if self._process != os.getpid():  # forked: the threads are not here
            self._reset()

        def make() -> SearchT:
            return Context().run(  # hosts take handlers from the context: here from nobody's
                way.search,
                way.retriever,
                batch=way.batching,
                side_by_side=way.side_by_side,
                pure=way.pure,
            )

        host: SearchT = self._kept(self._hosts, way.key, make, _WAYS)
        return host

    def place(
        self, way: RetrieverConfig[Any], asked: HostSearch[Any], look: RetrieverSnapshot
    ) -> BatchGroup:
        """Give the place for all calls of one signature; `asked` is the first's own retriever."""

        def make() -> BatchGroup:
            host = Context().run(asked.nobodys, look)
            return BatchGroup(host, self._line(way).beside(host))

        if look.passing:
            return make()
        return self._kept(self._places, (way.key, look.signature), make, _PLACES)

    def _line(self, way: RetrieverConfig[Any]) -> Verifier:
        def make() -> Verifier:
            return Verifier(self.host(way), lanes=way.lanes, max_batch=way.max_batch)

        return self._kept(self._lines, way.key, make, _WAYS)

    def _kept(
        self,
        where: "OrderedDict[Hashable, ValueT]",
        key: Hashable,
        make: Callable[[], ValueT],
        most: int,
    ) -> ValueT:
        """Give what is kept under a key, or make it; the least recently used is forgotten."""
        with self._lock:
            if key not in where:
                where[key] = make()
            where.move_to_end(key)
            if len(where) > most:
                where.popitem(last=False)
            return where[key]

    def note(self, *, remembered: bool) -> None:
        """Count a question."""
        with self._lock:
            old = self._asked
            self._asked = replace(
                old, asked=old.asked + 1, remembered=old.remembered + int(remembered)
            )

    def warn_once(self, retriever: object) -> None:
        """Say that a retriever is passed straight through."""
        with self._lock:
            warned, self._warned = self._warned, True
        if not warned:
            _log.warning(
                "%s is not pure: its calls are passed on as they come, nothing is remembered",
                type(retriever).__name__,
            )

    @property
    def stats(self) -> RetrieverStats:
        """What has happened so far."""
        with self._lock:
            hosts = [host.stats for host in self._hosts.values()]
            return replace(
                self._asked,
                round_trips=sum(one.round_trips for one in hosts),
                queries=sum(one.queries for one in hosts),
            )

    def close(self) -> None:
        """Wait for searches in threads, and let the threads go."""
        with self._lock:
            lines = list(self._lines.values())
            self._lines.clear()
            self._places.clear()
        for line in lines:
            line.close()


@dataclass(frozen=True, slots=True)
class RetrieverCall:
    """One question with its caller's settings; its retriever as it is at this moment."""

    text: str
    host: HostSearch[Any]
    look: RetrieverSnapshot
    place: BatchGroup

    @property
    def unencoded(self) -> Query:
        """The question as it stands, for the memo and for what is only passed on."""
        return self.host.unencoded(self.text)


@dataclass(frozen=True, slots=True)
class RetrieverService:
    """Finds what the wrapped retriever finds. Thread-safe.

    What is looked into goes through one line in front of the store, where calls
    that come together are searched together. A black box is called as the host
    would call it: nothing is gained by waiting for others.
    """

    serving: ServiceState
    way: RetrieverConfig[Any]
    memo: QueryCache | None
    pool: SharedPassageCache | None

    def call(self, text: str, host: HostSearch[Any]) -> RetrieverCall:
        """Take a question; nothing is searched yet.

        Args:
            text: what is asked.
            host: the wrapped retriever with the settings of this call.
        """
        look = host.look()
        if not look.pure:
            self.serving.warn_once(self.way.retriever)
        return RetrieverCall(text, host, look, self.serving.place(self.way, host, look))

    def answer(self, call: RetrieverCall) -> Hits:
        """Answer one question."""
        hits = self._asked(call)
        return self._fresh(call) if hits is None else hits

    def _fresh(self, call: RetrieverCall) -> Hits:
        query = call.unencoded if call.look.native is None else call.host.encode(call.text)
        return self._search(call, [query])[0]

    def answers(self, calls: Sequence[RetrieverCall], at_once: int) -> list[Hits | Exception]:
        """Answer many questions, each with its hits or its own error."""
        answers: dict[int, Hits | Exception] = {}
        for place in self._by_place(calls, answers):
            self._answer_place([(at, calls[at]) for at in place], answers, at_once)
        return [answers[at] for at in range(len(calls))]

    def _by_place(
        self, calls: Sequence[RetrieverCall], answers: dict[int, Hits | Exception]
    ) -> list[list[int]]:
        """Answer what is remembered, and list the rest by where it is searched."""
        places: dict[Hashable, list[int]] = {}
        for at, call in enumerate(calls):
            hits = self._asked(call)
            if hits is None:
                places.setdefault(call.look.signature, []).append(at)
            else:
                answers[at] = hits
        return list(places.values())

    def _answer_place(
        self,
        asked: Sequence[tuple[int, RetrieverCall]],
        answers: dict[int, Hits | Exception],
        at_once: int,
    ) -> None:
        numbers, calls = [at for at, _ in asked], [call for _, call in asked]
        if calls[0].look.native is None:
            answers.update(zip(numbers, each(self._fresh, calls, at_once), strict=True))
            return
        queries = each(lambda call: call.host.encode(call.text), calls, at_once)
        good = [query for query in queries if isinstance(query, Query)]
        try:
            found: Sequence[Hits | Exception] = self._search(calls[0], good) if good else []
        except Exception:  # noqa: BLE001 whose it is shows when each is asked alone
            found = each(lambda query: self._search(calls[0], [query])[0], good, at_once)
        answers.update(_in_place(numbers, queries, found))

    def _search(self, call: RetrieverCall, queries: Sequence[Query]) -> list[Hits]:
        """Search queries of one signature, and learn what was found."""
        searcher: Any = call.host if call.look.native is None else call.place.line
        width = self._width(call, searcher)
        if width is None:
            found = list(searcher.search(queries))
        else:
            found = searcher.search_wide(queries, width)
        return self._learned(call, queries, found, width)

    def _asked(self, call: RetrieverCall) -> Hits | None:
        """Count a question; answer it if the memo can."""
        hits = None
        if self.memo is not None and call.look.pure:
            hits = self.memo.known(call.look.signature, call.unencoded)
        self.serving.note(remembered=hits is not None)
        return hits

    def _width(self, call: RetrieverCall, searcher: Any) -> int | None:
        """Say how wide to search for the pool's sake, where a wider search is the same one."""
        if call.look.k is None or self._pool(call) is None or not hasattr(searcher, "search_wide"):
            return None
        return Settings().width(call.look.k)

    def _learned(
        self, call: RetrieverCall, queries: Sequence[Query], found: list[Hits], width: int | None
    ) -> list[Hits]:
        """Remember, and give back what was asked for."""
        exactly = [hits if width is None else hits[: call.look.k] for hits in found]
        pool = self._pool(call)
        if not call.look.pure or (self.memo is None and pool is None):
            return exactly
        if call.host.signature != call.look.signature:
            return exactly  # found under other settings, for all that is known
        for query, hits, wide in zip(queries, exactly, found, strict=True):
            if self.memo is not None:
                self.memo.learn(call.look.signature, query, hits)
            if pool is not None:
                pool.of(call.place.host).learn(query, wide)
        return exactly

    def _pool(self, call: RetrieverCall) -> SharedPassageCache | None:
        """Give the pool for a call, unless nobody else could use what it finds."""
        return self.pool if call.look.pure and not call.look.passing else None

    def guess(self, call: RetrieverCall) -> Hits | None:
        """Say what a search is expected to find, without one."""
        known, pool = self._known(call), self._pool(call)
        if known is not None or pool is None:
            return known
        return pool.of(call.place.host).guess(call.host.encode(call.text))

    def _known(self, call: RetrieverCall) -> Hits | None:
        if self.memo is None or not call.look.pure:
            return None
        return self.memo.known(call.look.signature, call.unencoded)

    async def aguess(self, call: RetrieverCall) -> Hits | None:
        """Do what `guess` does with the embedder's asynchronous method."""
        known, pool = self._known(call), self._pool(call)
        if known is not None or pool is None:
            return known
        return pool.of(call.place.host).guess(await call.host.aencode(call.text))

    async def aanswer(self, call: RetrieverCall) -> Hits:
        """Answer one question, by the host's asynchronous methods."""
        hits = self._asked(call)
        return await self._afresh(call) if hits is None else hits

    async def _afresh(self, call: RetrieverCall) -> Hits:
        native = call.look.native is not None
        query = await call.host.aencode(call.text) if native else call.unencoded
        return (await self._asearch(call, [query]))[0]

    async def aanswers(
        self, calls: Sequence[RetrieverCall], at_once: int
    ) -> list[Hits | Exception]:
        """Answer many questions, each with its hits or its own error."""
        answers: dict[int, Hits | Exception] = {}
        for place in self._by_place(calls, answers):
            await self._aanswer_place([(at, calls[at]) for at in place], answers, at_once)
        return [answers[at] for at in range(len(calls))]

    async def _aanswer_place(
        self,
        asked: Sequence[tuple[int, RetrieverCall]],
        answers: dict[int, Hits | Exception],
        at_once: int,
    ) -> None:
        numbers, calls = [at for at, _ in asked], [call for _, call in asked]
        if calls[0].look.native is None:
            answers.update(zip(numbers, await aeach(self._afresh, calls, at_once), strict=True))
            return
        queries = await aeach(lambda call: call.host.aencode(call.text), calls, at_once)
        good = [query for query in queries if isinstance(query, Query)]
        try:
            found: Sequence[Hits | Exception] = await self._asearch(calls[0], good) if good else []
        except Exception:  # noqa: BLE001 whose it is shows when each is asked alone

            async def alone(query: Query) -> Hits:
                return (await self._asearch(calls[0], [query]))[0]

            found = await aeach(alone, good, at_once)
        answers.update(_in_place(numbers, queries, found))

    async def _asearch(self, call: RetrieverCall, queries: Sequence[Query]) -> list[Hits]:
        searcher: Any = call.host if call.look.native is None else call.place.line
        width = self._width(call, searcher)
        if width is None:
            found = list(await searcher.asearch(queries))
        else:
            found = await searcher.asearch_wide(queries, width)
        return self._learned(call, queries, found, width)


def _in_place(
    numbers: Sequence[int],
    queries: Sequence[Query | Exception],
    found: Sequence[Hits | Exception],
) -> dict[int, Hits | Exception]:
    """Give each question what was found for it, or why it could not be encoded."""
    rest = iter(found)
    return {
        at: next(rest) if isinstance(query, Query) else query
        for at, query in zip(numbers, queries, strict=True)
    }


# Holds guesses against what was found, for those who build their own loops.


FoundT = TypeVar("FoundT")


def check_pairs(queries: Sequence[Any], guesses: Sequence[Any]) -> None:
    """Make sure that there is a guess, or `None`, for each query.

    Raises:
        InputError: there is not.
    """
    if len(queries) != len(guesses):
        raise InputError(
            f"{len(queries)} queries came with {len(guesses)} guesses; give one for each, or None"
        )


def agreeing(
    guesses: Sequence[Sequence[FoundT] | None],
    truths: Sequence[Sequence[FoundT]],
    value_of: Callable[[FoundT], object],
) -> list[bool]:
    """Say of each guess whether it is what was found, one by one and in the same order.

    >>> agreeing([["a"], None, ["b"]], [["A"], [], ["c"]], str.lower)
    [True, False, False]
    """
    return [
        guess is not None and list(map(value_of, guess)) == list(map(value_of, truth))
        for guess, truth in zip(guesses, truths, strict=True)
    ]
