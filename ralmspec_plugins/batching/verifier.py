"""A retriever for many concurrent requests, which merges their searches into batches."""

import asyncio
from collections.abc import Callable, Hashable, Sequence
from types import TracebackType
from typing import Any, Self

from ralmspec_plugins.batching.dispatcher import Dispatcher
from ralmspec_plugins.batching.queue import SearchCall, SearchFn
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.parts import complete
from ralmspec_plugins.protocols import PoolableRetriever, Retriever, WideRetriever
from ralmspec_plugins.scheduling.load import StoreTime
from ralmspec_plugins.types import Hits, Query, VerifierStats


class Verifier:
    """Wraps a retriever, for any number of threads and event loops.

    Queries that arrive during a search are merged into the next one.
    There is no timer: as soon as one of the `lanes` is free, a search starts with
    the waiting queries. Callers are served round-robin, whatever the size of their calls. The
    hits of a query do not depend on the other queries of its batch (every retriever
    guarantees that), so each caller receives the hits of a separate search:

    - Errors are separate: a shared search that fails is repeated in two
      halves, recursively, until the failing search belongs to one caller.
    - A cancelled caller (a cancelled task, Ctrl-C) leaves the queue without
      effect on others. A search without callers is cancelled, if
      possible.
    - Deadlocks are avoided: a search that calls its own verifier, a call that blocks
      the event loop that it waits for, and a call without any thread or loop left
      are searched separately.
    - Only searches of one signature (and width) are merged. Retrievers put
      `beside` each other share only the lanes.

    A search runs in a copy of the context (`contextvars`) of its first caller.

    >>> from ralmspec_plugins.testing import WordRetriever
    >>> with Verifier(WordRetriever(["red fox", "blue whale"])) as verifier:
    ...     [hits] = verifier.search([verifier.encode("whale")])
    >>> hits[0].passage.text, verifier.stats.searches
    ('blue whale', 1)
    """

    def __init__(
        self,
        retriever: Retriever,
        *,
        lanes: int = 1,
        max_batch: int = 64,
        max_waiting: int = 4096,
        patience_s: float | None = None,
    ) -> None:
        """Wrap a retriever.

        Args:
            retriever: any retriever; its other methods and attributes (`search_wide`, `table`,
                `asearch`, `aencode`, its size) are available here, too.
            lanes: the maximum number of searches in parallel: 1 for a local scan, which uses the
                whole machine; more for a server.
            max_batch: the maximum number of queries in one search.
            max_waiting: the maximum number of queries of one signature (and width) in the queue;
                further callers wait for admission.
            patience_s: their timeout, after which they receive `Overloaded`; `None` for none.

        Raises:
            ConfigError: a number is out of range, or the retriever's signature
                is not hashable.
        """
        for name, value in (
            ("lanes", lanes),
            ("max_batch", max_batch),
            ("max_waiting", max_waiting),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} must be a whole number of at least 1, got {value!r}")
        if patience_s is not None and not (isinstance(patience_s, int | float) and patience_s >= 0):
            raise ConfigError(f"patience_s must be at least 0, or None, got {patience_s!r}")
        self._take_over(retriever, Dispatcher(lanes, max_batch, max_waiting, patience_s))

    def _take_over(self, retriever: Retriever, lanes: Dispatcher) -> None:
        retriever = complete(retriever)
        self.retriever: Retriever = retriever
        self.store_time = StoreTime()  # of the searches in threads
        try:
            hash(self.signature)
        except TypeError as error:
            raise ConfigError(
                f"a retriever's signature must be hashable, got {self.signature!r}; "
                "make it of texts, numbers and tuples"
            ) from error
        self._lanes = lanes
        # As attributes, and only existing ones: runtime protocols check for attributes.
        own: Any = retriever
        if isinstance(retriever, WideRetriever):
            self.search_wide = self._search_wide
        if isinstance(retriever, PoolableRetriever):
            self.table = own.table
        if hasattr(own, "asearch_wide" if hasattr(own, "asearch") else "search_wide"):
            self.asearch_wide = self._asearch_wide

    @property
    def signature(self) -> Hashable:
        """The current value of the retriever."""
        return self.retriever.signature

    @property
    def k(self) -> int:
        """The current value of the retriever."""
        own: Any = self.retriever
        k: int = own.k
        return k

    def beside(self, retriever: Retriever) -> "Verifier":
        """Return a verifier of another retriever with the same lanes, such as another tenant's."""
        other = object.__new__(Verifier)
        other._take_over(retriever, self._lanes)
        return other

    @property
    def stats(self) -> VerifierStats:
        """The statistics so far, of all retrievers that share the lanes."""
        return self._lanes.stats()

    def encode(self, text: str) -> Query:
        """Encode one query, in a batch of one: encodings are never merged."""
        return self.retriever.encode(text)

    def search(self, queries: Sequence[Query]) -> list[Hits]:
        """Return the best passages of each query, merged with the searches of other callers.

        Raises:
            Overloaded: the queue was full for `patience_s`.
        """
        return self._merged(None, self.retriever.search, queries)

    def _search_wide(self, queries: Sequence[Query], width: int) -> list[Hits]:
        """Return the best `width` passages of each query."""
        own: Any = self.retriever
        return self._merged(width, _with_width(own.search_wide, width), queries)

    def _merged(
        self, width: int | None, search: Callable[..., Any], queries: Sequence[Query]
    ) -> list[Hits]:
        if not queries:
            return []
        group = self.signature, width
        search = self._timed(search)
        found = self._lanes.search(group, SearchFn(search), queries)
        return list(search(queries)) if found is None else found

    async def asearch(self, queries: Sequence[Query]) -> list[Hits]:
        """Return what `search` does, without blocking the event loop."""
        own: Any = self.retriever
        asearch = getattr(own, "asearch", None)
        return await self._amerged(None, None if asearch else own.search, asearch, queries)

    async def _asearch_wide(self, queries: Sequence[Query], width: int) -> list[Hits]:
        own: Any = self.retriever
        if hasattr(own, "asearch"):
            asearch = _with_width(own.asearch_wide, width)
            return await self._amerged(width, None, asearch, queries)
        return await self._amerged(width, _with_width(own.search_wide, width), None, queries)

    async def _amerged(
        self,
        width: int | None,
        search: Callable[..., Any] | None,
        asearch: Callable[..., Any] | None,
        queries: Sequence[Query],
    ) -> list[Hits]:
        if not queries:
            return []
        group = self.signature, width
        if asearch is None:
            assert search is not None
            search = self._timed(search)
            found = await self._lanes.asearch(group, SearchFn(search), queries)
            return list(await asyncio.to_thread(search, queries)) if found is None else found
        loop = asyncio.get_running_loop()
        search_fn = SearchFn(None, asearch, loop)
        found = await self._lanes.asearch((*group, id(loop)), search_fn, queries)
        return list(await asearch(queries)) if found is None else found

    def _timed(self, search: Callable[..., Any]) -> SearchCall:
        """Return a search function that is timed in the thread that calls it."""

        def timed(queries: Sequence[Query]) -> list[Hits]:
            with self.store_time.search():
                found: list[Hits] = search(queries)
            return found

        return timed

    def close(self) -> None:
        """Make waiting calls search separately, wait for running searches, and release the threads.

        This closes the verifiers with the same lanes, too. Without this call the threads end with
        the last reference to the verifier.
        """
        self._lanes.close()

    def __enter__(self) -> Self:
        """Use as a context manager."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()

    def __getattr__(self, name: str) -> Any:
        """Return any other attribute of the retriever, such as its size or `aencode`."""
        if name.startswith("_") or name in _OWN or "retriever" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.retriever, name)


_OWN = ("retriever", "search_wide", "asearch_wide", "table")  # defined above, or absent


def _with_width(search: Callable[..., Any], width: int) -> Callable[..., Any]:
    return lambda queries: search(queries, width)
