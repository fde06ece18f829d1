"""Serves the calls of a wrapping retriever by the query cache and merged searches."""

import logging
from collections.abc import Callable, Coroutine, Hashable, Sequence
from contextvars import Context
from dataclasses import dataclass, replace
from typing import Any, Generic, Self, TypeVar

from ralmspec_plugins.adapters.engines import Runtime, shared_pool
from ralmspec_plugins.adapters.fingerprint import object_id
from ralmspec_plugins.adapters.retriever import HostSearch, aeach, each
from ralmspec_plugins.adapters.retriever_state import BatchMode, RetrieverSnapshot
from ralmspec_plugins.batching.verifier import Verifier
from ralmspec_plugins.config import Settings
from ralmspec_plugins.effects import SearchResult
from ralmspec_plugins.errors import ConfigError, InputError
from ralmspec_plugins.speculators.cascade import SpeculatorCascade
from ralmspec_plugins.speculators.passage_cache import SharedPassageCache
from ralmspec_plugins.speculators.query_cache import QueryCache
from ralmspec_plugins.types import Hits, Query

_log = logging.getLogger(__name__)

ValueT = TypeVar("ValueT")
SearchT = TypeVar("SearchT", bound=HostSearch[Any])

# Synchronous and asynchronous calls share one coroutine with a flag. With synchronous calls it
# never suspends, and needs no event loop.


def completed(coroutine: Coroutine[Any, Any, ValueT]) -> ValueT:
    """Return the result of a coroutine with synchronous calls only, without an event loop.

    >>> async def doubled(number: int) -> int:
    ...     return 2 * number
    >>> completed(doubled(3))
    6
    """
    try:
        coroutine.send(None)
    except StopIteration as done:
        value: ValueT = done.value
        return value
    coroutine.close()
    raise RuntimeError("a coroutine of synchronous calls suspended")


async def outcomes(
    method: str, calls: Sequence[tuple[Any, ...]], at_once: int, *, asynchronous: bool
) -> list[Any]:
    """Call a method of many objects; return results, or errors in their place.

    Args:
        method: its name; that of the asynchronous one has the prefix "a".
        calls: each an object and the arguments.
        at_once: the maximum number of calls in parallel.
        asynchronous: whether the asynchronous method is called.
    """
    if asynchronous:
        return await aeach(lambda one: getattr(one[0], f"a{method}")(*one[1:]), calls, at_once)
    return each(lambda one: getattr(one[0], method)(*one[1:]), calls, at_once)


def check_caches(memo: object, pool: object, pure: object) -> None:
    """Check the types of the caches.

    Raises:
        ConfigError: one is not a cache; the message names it.
    """
    if not isinstance(memo, QueryCache | None):
        raise ConfigError(f"memo must be a QueryCache or None, got {memo!r}")
    if not isinstance(pool, SharedPassageCache | None):
        raise ConfigError(f"pool must be a SharedPassageCache or None, got {pool!r}")
    if not isinstance(pure, bool | None):
        raise ConfigError(f"pure must be True, False or None, got {pure!r}")


@dataclass(frozen=True, slots=True)
class RetrieverStats:
    """The counts of a retriever's queries, and of the host's calls."""

    asked: int = 0
    remembered: int = 0  # answered by the query cache
    round_trips: int = 0  # calls of the store or the wrapped retriever
    queries: int = 0  # in these calls


class RetrieverRuntime(Runtime):
    """The shared state of a `SpeculativeRetriever` and its copies. Thread-safe.

    It is not part of the retriever's value: all instances are equal.
    """

    def __init__(self) -> None:
        """Create an empty runtime."""
        super().__init__()
        self._asked = RetrieverStats()
        self._warned = False

    def __eq__(self, other: object) -> bool:
        """Return true for any runtime."""
        return isinstance(other, RetrieverRuntime)

    def __hash__(self) -> int:
        """Return the same hash for all runtimes."""
        return hash(RetrieverRuntime)

    def note(self, asked: int, remembered: int) -> None:
        """Count queries, and those answered by the query cache."""
        with self._lock:
            old = self._asked
            self._asked = RetrieverStats(old.asked + asked, old.remembered + remembered)

    def warn_once(self, retriever: object) -> None:
        """Log once that a retriever's calls are not cached or merged."""
        with self._lock:
            warned, self._warned = self._warned, True
        if not warned:
            _log.warning(
                "%s is not pure: its calls are neither merged nor cached",
                type(retriever).__name__,
            )

    @property
    def stats(self) -> RetrieverStats:
        """The statistics so far."""
        with self._lock:
            hosts, asked = [host.stats for host in self._hosts.values()], self._asked
        return replace(
            asked,
            round_trips=sum(one.round_trips for one in hosts),
            queries=sum(one.queries for one in hosts),
        )


@dataclass(frozen=True, slots=True)
class RetrieverCall(Generic[SearchT]):
    """One query with its caller's settings, and a snapshot of the retriever.

    Args:
        text: the query's text.
        host: the wrapped retriever with the caller's settings.
        look: the snapshot.
        remembered: the hits of the query cache.
        guesses: the speculator.
    """

    text: str
    host: SearchT
    look: RetrieverSnapshot
    remembered: Hits | None
    guesses: SpeculatorCascade

    @property
    def unencoded(self) -> Query:
        """The query without its encoding, for the query cache and for opaque retrievers."""
        return self.host.unencoded(self.text)


@dataclass(frozen=True, slots=True)
class RetrieverService(Generic[SearchT]):
    """Serves the calls of one wrapping retriever.

    A supported retriever is searched through a `Verifier`, which merges concurrent
    calls. An opaque retriever is called as the host does: merging would gain
    nothing.

    `search` converts the host's `retriever` to one of the core, given the settings
    `batch`, `side_by_side` and `pure`.
    """

    runtime: RetrieverRuntime
    search: Callable[..., SearchT]
    retriever: Any
    memo: QueryCache | None
    pool: SharedPassageCache | None
    batching: BatchMode
    max_batch: int
    lanes: int
    side_by_side: int
    pure: bool | None

    @property
    def host(self) -> SearchT:
        """The wrapped retriever as a retriever of the core."""
        settings = {"batch": self.batching, "side_by_side": self.side_by_side, "pure": self.pure}

        def made() -> SearchT:  # hosts take handlers from the context: here from an empty one
            return Context().run(self.search, self.retriever, **settings)

        return self.runtime.host((object_id(self.retriever), *settings.values()), made)

    def call(self, text: str, host: SearchT) -> RetrieverCall[SearchT]:
        """Return the call of a query, before any search.

        Args:
            text: the query's text.
            host: the wrapped retriever with the settings of this call.
        """
        look = host.look()
        if not look.pure:
            self.runtime.warn_once(self.retriever)
            return RetrieverCall(text, host, look, None, SpeculatorCascade())
        signature, pools = look.signature, []
        remembered = None
        if self.memo is not None:
            remembered = self.memo.known(signature, host.unencoded(text))
        pool = shared_pool(self.pool, look)
        if remembered is None and pool is not None:
            pools.append(pool.of(_nobodys(host, look)))
        guesses = SpeculatorCascade(
            pools, memo=self.memo, signature=signature, signature_now=lambda: host.signature
        )
        return RetrieverCall(text, host, look, remembered, guesses)

    async def answers(
        self, calls: Sequence[RetrieverCall[SearchT]], at_once: int, *, asynchronous: bool
    ) -> list[Hits | Exception]:
        """Return the hits, or the error, of each of many queries."""
        answers: dict[int, Hits | Exception] = {}
        searched: dict[Hashable, list[int]] = {}
        for at, call in enumerate(calls):
            if call.remembered is None:
                searched.setdefault(call.look.signature, []).append(at)
            else:
                answers[at] = call.remembered
        self.runtime.note(len(calls), len(answers))
        for group in searched.values():
            asked = [calls[at] for at in group]
            found = await self._found(asked, at_once, asynchronous=asynchronous)
            answers.update(zip(group, found, strict=True))
        return [answers[at] for at in range(len(calls))]

    async def _found(
        self, calls: Sequence[RetrieverCall[SearchT]], at_once: int, *, asynchronous: bool
    ) -> list[Hits | Exception]:
        """Search queries of one signature, and learn from their hits."""
        if calls[0].look.native is None:
            queries: list[Any] = [call.unencoded for call in calls]
            searches = [(call.host, [query]) for call, query in zip(calls, queries, strict=True)]
            found = await outcomes("search", searches, at_once, asynchronous=asynchronous)
            return self._learned(calls, queries, _firsts(found), None)
        asked = [(call.host, call.text) for call in calls]
        queries = await outcomes("encode", asked, at_once, asynchronous=asynchronous)
        good = [query for query in queries if isinstance(query, Query)]
        if not good:
            return queries
        line = self.runtime.verifier(self.host, self.lanes, self.max_batch)
        line = line.beside(_nobodys(calls[0].host, calls[0].look))
        width = self._width(calls[0], line)
        method, wide = ("search", ()) if width is None else ("search_wide", (width,))
        [found] = await outcomes(method, [(line, good, *wide)], 1, asynchronous=asynchronous)
        if isinstance(found, Exception):  # separate searches show to which query it belongs
            found = [found]
            if len(good) > 1:
                searches = [(line, [query], *wide) for query in good]
                found = await outcomes(method, searches, at_once, asynchronous=asynchronous)
                found = _firsts(found)
        rest = iter(found)
        found = [next(rest) if isinstance(query, Query) else query for query in queries]
        return self._learned(calls, queries, found, width)

    def _width(self, call: RetrieverCall[SearchT], line: Verifier) -> int | None:
        """Return the width of a search for the passage cache, if a wider search is exact."""
        if call.look.k is None or not call.guesses.speculates or not hasattr(line, "search_wide"):
            return None
        return Settings().width(call.look.k)

    def _learned(
        self,
        calls: Sequence[RetrieverCall[SearchT]],
        queries: Sequence[Query],
        found: Sequence[Hits | Exception],
        width: int | None,
    ) -> list[Hits | Exception]:
        """Add the hits to the caches, and return those of the requested k."""
        answers: list[Hits | Exception] = []
        for call, query, wide in zip(calls, queries, found, strict=True):
            if isinstance(wide, Exception):
                answers.append(wide)
                continue
            hits = wide if width is None else wide[: call.look.k]
            answers.append(hits)
            if self.memo is not None or self.pool is not None:
                call.guesses.learn(query, SearchResult(hits, wide))
                call.guesses.catch_up()
        return answers

    async def guess(self, call: RetrieverCall[SearchT], *, asynchronous: bool) -> Hits | None:
        """Return the guessed hits of a query, without a search."""
        if call.remembered is not None or not call.guesses.speculates:
            return call.remembered
        query = await call.host.aencode(call.text) if asynchronous else call.host.encode(call.text)
        guess = call.guesses.guess(call.guesses.turns()[0], query)
        return None if guess is None else guess.hits


class ServedRetriever:
    """The methods of a `SpeculativeRetriever` that do not depend on its host."""

    _service: Any  # a RetrieverService

    @property
    def stats(self) -> RetrieverStats:
        """The counts of queries so far, and of the store's calls."""
        stats: RetrieverStats = self._service.runtime.stats
        return stats

    def invalidate(self) -> None:
        """Clear the query cache and the passage cache, after a change of the index.

        The results of running searches are not cached.
        """
        for cache in (self._service.memo, self._service.pool):
            if cache is not None:
                cache.invalidate()

    def close(self) -> None:
        """Wait for searches in threads, and release the threads; later calls start new ones."""
        self._service.runtime.close()

    def __enter__(self) -> Self:
        """Use as a context manager."""
        return self

    def __exit__(self, *raised: object) -> None:
        """Close."""
        self.close()


def _nobodys(host: SearchT, look: RetrieverSnapshot) -> SearchT:
    """Return a retriever without its caller's handlers, for use by other callers."""
    return Context().run(host.nobodys, look)


def _firsts(found: Sequence[Any]) -> list[Any]:
    """Return the hits of searches for one query each, or their errors."""
    return [one if isinstance(one, Exception) else one[0] for one in found]


# Compares guesses with real hits, for users with their own loops.


FoundT = TypeVar("FoundT")


def check_pairs(queries: Sequence[Any], guesses: Sequence[Any]) -> None:
    """Check that there is a guess, or `None`, for each query.

    Raises:
        InputError: the numbers differ.
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
    """Return for each guess whether it equals the hits, in the same order.

    >>> agreeing([["a"], None, ["b"]], [["A"], [], ["c"]], str.lower)
    [True, False, False]
    """
    return [
        guess is not None and list(map(value_of, guess)) == list(map(value_of, truth))
        for guess, truth in zip(guesses, truths, strict=True)
    ]
