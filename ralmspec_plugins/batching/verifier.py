"""One retriever for many requests at once: their searches are merged into batches."""

import asyncio
from collections.abc import Callable, Hashable, Sequence
from types import TracebackType
from typing import Any, Self

from ralmspec_plugins.batching.dispatcher import Dispatcher
from ralmspec_plugins.batching.queue import SearchFn
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.parts import complete
from ralmspec_plugins.protocols import PoolableRetriever, Retriever, WideRetriever
from ralmspec_plugins.types import Hits, Query, VerifierStats


class Verifier:
    """A retriever in front of another one, for any number of threads and event loops.

    What is asked while a search is running goes into the next one, whoever asks.
    There is no timer: as soon as one of the `lanes` is free, a search starts with
    what is waiting. Callers take turns, however much one of them brings. A
    query's hits do not depend on what else is in its batch (every retriever
    promises that), so each caller gets what a search alone would have given him:

    - Errors are each one's own: a shared search that fails is repeated in two
      halves, and these again, until what fails is exactly one caller's search.
    - A caller that goes away (a cancelled task, Ctrl-C) leaves the line; others
      do not notice. A search that nobody waits for any more is cancelled, where
      it can be.
    - Nobody waits for himself or for what cannot go on: what a search asks of its
      own verifier, what blocks the event loop that it waits for, and what no thread
      or loop is left for, is searched alone.
    - Only searches of one signature (and width) are merged. Retrievers put
      `beside` each other share the lanes and nothing else.

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
        """Put a verifier in front of a retriever.

        Args:
            retriever: any; what it offers beyond `search` (`search_wide`, `table`, `asearch`,
                `aencode`, its size) is offered here too.
            lanes: searches that may be out at a time: 1 for a local scan, which uses the whole
                machine; more for a server.
            max_batch: the most queries in one search.
            max_waiting: the most queries of one signature (and width) in the line; callers beyond
                wait at its door for room.
            patience_s: how long they do, before they get `Overloaded`; `None`: for ever.

        Raises:
            ConfigError: a number that would let nothing through, or a retriever whose signature
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
        try:
            hash(self.signature)
        except TypeError as error:
            raise ConfigError(
                f"a retriever's signature must be hashable, got {self.signature!r}; "
                "make it of texts, numbers and tuples"
            ) from error
        self._lanes = lanes
        # As plain attributes, and only what is there: protocols ask for no more than that.
        own: Any = retriever
        if isinstance(retriever, WideRetriever):
            self.search_wide = self._search_wide
        if isinstance(retriever, PoolableRetriever):
            self.table = own.table
        if hasattr(own, "asearch_wide" if hasattr(own, "asearch") else "search_wide"):
            self.asearch_wide = self._asearch_wide

    @property
    def signature(self) -> Hashable:
        """The retriever's own, as it is now."""
        return self.retriever.signature

    @property
    def k(self) -> int:
        """The retriever's own, as it is now."""
        own: Any = self.retriever
        k: int = own.k
        return k

    def beside(self, retriever: Retriever) -> "Verifier":
        """Put another retriever in front of the same lanes, such as another tenant's."""
        other = object.__new__(Verifier)
        other._take_over(retriever, self._lanes)
        return other

    @property
    def stats(self) -> VerifierStats:
        """What has happened so far, to all retrievers beside each other together."""
        return self._lanes.stats()

    def encode(self, text: str) -> Query:
        """Encode one query, alone in its pass: encodings are never merged."""
        return self.retriever.encode(text)

    def search(self, queries: Sequence[Query]) -> list[Hits]:
        """Find the best passages of each query, together with whatever others ask for.

        Raises:
            Overloaded: there was no room in the line within `patience_s`.
        """
        return self._merged(None, self.retriever.search, queries)

    def _search_wide(self, queries: Sequence[Query], width: int) -> list[Hits]:
        """Find the best `width` passages of each query."""
        own: Any = self.retriever
        return self._merged(width, _with_width(own.search_wide, width), queries)

    def _merged(
        self, width: int | None, search: Callable[..., Any], queries: Sequence[Query]
    ) -> list[Hits]:
        if not queries:
            return []
        group = self.signature, width
        found = self._lanes.search(group, SearchFn(search), queries)
        return list(search(queries)) if found is None else found

    async def asearch(self, queries: Sequence[Query]) -> list[Hits]:
        """Do what `search` does without blocking the event loop."""
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
            found = await self._lanes.asearch(group, SearchFn(search), queries)
            return list(await asyncio.to_thread(search, queries)) if found is None else found
        loop = asyncio.get_running_loop()
        way = SearchFn(None, asearch, loop)
        found = await self._lanes.asearch((*group, id(loop)), way, queries)
        return list(await asearch(queries)) if found is None else found

    def close(self) -> None:
        """Let whoever waits search alone, wait for searches in threads, and let the threads go.

        Closes those beside it too. Without it the threads end when nobody holds
        the verifier any more.
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
        """Offer whatever else the retriever has: its size, whether it is exact, `aencode`."""
        if name.startswith("_") or name in _OWN or "retriever" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.retriever, name)


_OWN = ("retriever", "search_wide", "asearch_wide", "table")  # offered above, or not at all


def _with_width(search: Callable[..., Any], width: int) -> Callable[..., Any]:
    return lambda queries: search(queries, width)
