"""Query cache: the results of real searches, reused without verification."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Final

from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.types import Hits, Query

_FORGOTTEN: Final = 1024  # maximum number of signatures whose last invalidation is recorded


class QueryCache:
    """Maps queries to real hits, with least-recently-used eviction. Thread-safe.

    Entries are partitioned by the retriever's signature, so that results for one
    user, filter or k are never returned to another. Share it between requests only
    if the index does not change, changes may be seen `ttl_s` late, or `invalidate`
    is called after each change.

    >>> memo = QueryCache(capacity=1)
    >>> memo.learn("index", Query("a"), ())
    >>> memo.known("index", Query("a")), memo.known("other", Query("a"))
    ((), None)
    """

    def __init__(
        self,
        capacity: int = 10_000,
        ttl_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create an empty cache.

        Args:
            capacity: the maximum number of queries.
            ttl_s: seconds after the end of a search until its result expires; `None` for
                never.
            clock: returns the time in seconds.

        Raises:
            ConfigError: the capacity is below 1, or `ttl_s` is not positive.
        """
        if capacity < 1:
            raise ConfigError(f"capacity must be at least 1, got {capacity}")
        if ttl_s is not None and (isinstance(ttl_s, bool) or not ttl_s > 0):
            raise ConfigError(f"ttl_s must be above 0, got {ttl_s}")
        self.capacity = capacity
        self.ttl_s = ttl_s
        self._clock = clock
        self._lock = threading.Lock()
        # (signature, query key) -> hits, time of the search, and whether the key is a text that was
        # encoded; the last used at the end
        self._entries: OrderedDict[tuple[Hashable, Hashable], tuple[Hits, float, bool]]
        self._entries = OrderedDict()
        self._generation = 0  # number of invalidations
        self._cleared = 0  # the last generation that cleared all entries
        self._forgotten: OrderedDict[Hashable, int] = (
            OrderedDict()
        )  # the last generation that cleared a signature

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle as an empty cache: hosts copy the parts of a chain."""
        return QueryCache, (self.capacity, self.ttl_s, self._clock)

    @property
    def size(self) -> int:
        """The number of queries, including expired ones."""
        return len(self._entries)

    @property
    def generation(self) -> int:
        """The number of invalidations, to be read before a search whose hits are learned."""
        return self._generation

    def known(self, signature: Hashable, query: Query) -> Hits | None:
        """Return the real hits of a query, or `None` if they are not known."""
        return self._known(signature, query, by_text=False)

    def known_by_text(self, signature: Hashable, query: Query) -> Hits | None:
        """Return the real hits of an unencoded query, if its text was encoded to its key."""
        return self._known(signature, query, by_text=True)

    def _known(self, signature: Hashable, query: Query, *, by_text: bool) -> Hits | None:
        key = (signature, query.key)
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            hits, found_s, was_text = entry
            if by_text and not was_text:
                return None  # a query of another text may have this key
            if self.ttl_s is not None and self._clock() - found_s >= self.ttl_s:
                del self._entries[key]
                return None
            self._entries.move_to_end(key)
            return hits

    def learn(
        self, signature: Hashable, query: Query, hits: Hits, generation: int | None = None
    ) -> None:
        """Store the result of `search`: k hits, without the prefetched ones.

        Args:
            signature: the retriever's.
            query: the query.
            hits: the hits of the search.
            generation: the cache's, from before the search. If the signature was invalidated
                since, nothing is stored. `None`: the hits are current.
        """
        key = (signature, query.key)
        with self._lock:
            since = max(self._cleared, self._forgotten.get(signature, 0))
            if generation is not None and generation < since:
                return
            was_text = query.encoding is not None and query.key == query.text
            self._entries[key] = (hits, self._clock(), was_text)
            self._entries.move_to_end(key)
            if len(self._entries) > self.capacity:
                self._entries.popitem(last=False)

    def invalidate(self, *signatures: Hashable) -> None:
        """Remove the entries of these signatures after a change of the index; by default all.

        The hits of a search that started before are not stored either, given its generation.
        """
        with self._lock:
            self._generation += 1
            if not signatures:
                self._cleared = self._generation
                self._forgotten.clear()
                self._entries.clear()
                return
            for key in [key for key in self._entries if key[0] in signatures]:
                del self._entries[key]
            for signature in signatures:
                self._forgotten[signature] = self._generation
                self._forgotten.move_to_end(signature)
            while len(self._forgotten) > _FORGOTTEN:
                self._cleared = self._forgotten.popitem(last=False)[1]

    def check(self) -> None:
        """Assert the invariants."""
        with self._lock:
            assert len(self._entries) <= self.capacity
            assert len(self._forgotten) <= _FORGOTTEN
            assert all(
                self._cleared <= since <= self._generation for since in self._forgotten.values()
            )
            now_s = self._clock()
            assert all(found_s <= now_s for _, found_s, _ in self._entries.values())
