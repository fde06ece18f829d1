"""Remember what real searches returned: not a guess, but the answer itself."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Final

from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.types import Hits, Query

_FORGOTTEN: Final = 1024  # signatures whose last invalidation is known


class QueryCache:
    """Query to real hits, the least recently used forgotten first. Thread-safe.

    Entries are kept apart by the retriever's signature, so nothing found for one
    user, filter or k is ever given to another. To be shared between requests only
    where the index does not change, changes may be seen `ttl_s` late, or whoever
    changes it calls `invalidate`.

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
        """Start empty.

        Args:
            capacity: how many queries are remembered.
            ttl_s: seconds from a search's return after which its result is forgotten; `None` for
                never.
            clock: where the time comes from.

        Raises:
            ConfigError: a capacity or a time to live that lets nothing stay.
        """
        if capacity < 1:
            raise ConfigError(f"capacity must be at least 1, got {capacity}")
        if ttl_s is not None and (isinstance(ttl_s, bool) or not ttl_s > 0):
            raise ConfigError(f"ttl_s must be above 0, got {ttl_s}")
        self.capacity = capacity
        self.ttl_s = ttl_s
        self._clock = clock
        self._lock = threading.Lock()
        # (signature, query key) -> hits, when they were found, and whether the key is a text that
        # was encoded; the last used at the end
        self._entries: OrderedDict[tuple[Hashable, Hashable], tuple[Hits, float, bool]]
        self._entries = OrderedDict()
        self._generation = 0  # invalidations so far
        self._cleared = 0  # the last generation that forgot everything
        self._forgotten: OrderedDict[Hashable, int] = OrderedDict()  # and that of one signature

    def __reduce__(self) -> tuple[Any, ...]:
        """Be copied and pickled without what is remembered: hosts copy the parts of a chain."""
        return QueryCache, (self.capacity, self.ttl_s, self._clock)

    @property
    def size(self) -> int:
        """How many queries are remembered, those past their time included."""
        return len(self._entries)

    @property
    def generation(self) -> int:
        """How often something was invalidated: to be read before a search that is learned."""
        return self._generation

    def known(self, signature: Hashable, query: Query) -> Hits | None:
        """Give the real hits of a query, or `None` if they are not known."""
        return self._known(signature, query, by_text=False)

    def known_by_text(self, signature: Hashable, query: Query) -> Hits | None:
        """Give the real hits of a query that is not encoded, if its text was encoded to its key."""
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
        """Remember exactly what `search` returned: k hits, not the prefetched ones.

        Args:
            signature: the retriever's.
            query: what was asked.
            hits: what was found.
            generation: the cache's, from before the search. If the signature was invalidated
                since, nothing is remembered. `None`: found just now.
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
        """Forget what was found, for when the index has changed; without signatures, everything.

        What a search finds that began before is not remembered either, given its generation.
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
        """Assert what must hold between any two calls."""
        with self._lock:
            assert len(self._entries) <= self.capacity
            assert len(self._forgotten) <= _FORGOTTEN
            assert all(
                self._cleared <= since <= self._generation for since in self._forgotten.values()
            )
            now_s = self._clock()
            assert all(found_s <= now_s for _, found_s, _ in self._entries.values())
