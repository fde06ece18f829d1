"""A passage pool for many requests, in parts: one for each retriever, knowing no other."""

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.protocols import Retriever
from ralmspec_plugins.speculation.eviction import eviction_of
from ralmspec_plugins.speculation.pool import PassagePool


class SharedPool:
    """One pool for each signature: what one tenant's searches found is never another's guess.

    Requests over retrievers of the same signature share what they find, so a
    later one guesses from the first step on. Thread-safe.

    >>> from ralmspec_plugins.testing import WordRetriever
    >>> ours, theirs = WordRetriever(["red fox"]), WordRetriever(["red flag"])
    >>> pool = SharedPool()
    >>> query = ours.encode("red")
    >>> pool.of(ours).learn(query, ours.search([query])[0])
    >>> pool.of(ours).size, pool.of(theirs).size
    (1, 0)
    """

    def __init__(self, *, capacity: int = 1000, eviction: str = "lru", parts: int = 64) -> None:
        """Start empty.

        Args:
            capacity: the most passages in each part.
            eviction: which passage leaves a full part: "lru", "lfu" or "fifo".
            parts: the most signatures that are kept; the least recently used is forgotten.

        Raises:
            ConfigError: no capacity, no parts, or an unknown eviction.
        """
        if capacity < 1 or parts < 1:
            raise ConfigError(f"capacity and parts must be at least 1, got {capacity} and {parts}")
        eviction_of(eviction)
        self.capacity = capacity
        self._eviction = eviction
        self._most = parts
        self._parts: OrderedDict[Hashable, PassagePool] = OrderedDict()  # the last used at the end
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Be copied and pickled empty: hosts copy the parts of a chain."""
        return _made, (self.capacity, self._eviction, self._most)

    def of(self, retriever: Retriever) -> PassagePool:
        """Give the part that belongs to a retriever's signature."""
        with self._lock:
            part = self._parts.get(retriever.signature)
            if part is None:
                part = PassagePool(retriever, capacity=self.capacity, eviction=self._eviction)
                self._parts[retriever.signature] = part
            self._parts.move_to_end(retriever.signature)
            if len(self._parts) > self._most:
                self._parts.popitem(last=False)
            return part

    def clear(self) -> None:
        """Forget everything, for when an index has changed."""
        with self._lock:
            self._parts.clear()

    def check(self) -> None:
        """Assert what must hold between any two calls."""
        with self._lock:
            assert len(self._parts) <= self._most
            for signature, part in self._parts.items():
                assert part.signature == signature
                part.check()


def _made(capacity: int, eviction: str, parts: int) -> SharedPool:
    return SharedPool(capacity=capacity, eviction=eviction, parts=parts)
