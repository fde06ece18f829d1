"""Passage cache, the paper's local cache: retrieved passages, ranked by the retriever's metric."""

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from numbers import Integral
from typing import Any, Protocol

from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.parts import complete
from ralmspec_plugins.protocols import PassageTable, PoolableRetriever, Retriever
from ralmspec_plugins.speculators.proxy import FallbackTable, ProxyTable
from ralmspec_plugins.types import Hit, Hits, Passage, Query

# Eviction policies: they decide which passage leaves a full cache.


class Eviction(Protocol):
    """Keeps the order in which slots are evicted. A slot is added once, until it is evicted."""

    def add(self, slot: int) -> None:
        """Add a slot that has just been filled."""
        ...

    def use(self, slot: int) -> None:
        """Record that a slot's passage was guessed, or found again by a real search."""
        ...

    def give_up(self) -> int:
        """Choose the slot to evict, and remove it."""
        ...

    def slots(self) -> set[int]:
        """Return all slots that are kept, for checks."""
        ...


class Fifo:
    """Evicts the oldest slot."""

    def __init__(self) -> None:
        """Create a policy without slots."""
        self._order: OrderedDict[int, None] = OrderedDict()

    def add(self, slot: int) -> None:
        """Put a slot behind all others."""
        assert slot not in self._order
        self._order[slot] = None

    def use(self, slot: int) -> None:
        """Do nothing."""

    def give_up(self) -> int:
        """Remove and return the oldest slot."""
        return self._order.popitem(last=False)[0]

    def slots(self) -> set[int]:
        """Return all slots that are kept."""
        return set(self._order)


class Lru(Fifo):
    """Evicts the least recently used slot."""

    def use(self, slot: int) -> None:
        """Move a slot behind all others."""
        self._order.move_to_end(slot)


class Lfu:
    """Evicts the least frequently used slot; among equals, the least recently used."""

    def __init__(self) -> None:
        """Create a policy without slots."""
        self._uses: dict[int, int] = {}
        self._with: dict[int, OrderedDict[int, None]] = {}  # slots by their number of uses
        self._fewest = 0

    def add(self, slot: int) -> None:
        """Add a slot with no use yet."""
        assert slot not in self._uses
        self._file(slot, 0)
        self._fewest = 0

    def use(self, slot: int) -> None:
        """Count one more use."""
        uses = self._uses[slot]
        self._drop(slot)
        self._file(slot, uses + 1)

    def give_up(self) -> int:
        """Remove and return the first of the slots with the fewest uses."""
        while self._fewest not in self._with:
            self._fewest += 1
        slot = next(iter(self._with[self._fewest]))
        self._drop(slot)
        return slot

    def slots(self) -> set[int]:
        """Return all slots that are kept."""
        return set(self._uses)

    def _file(self, slot: int, uses: int) -> None:
        self._uses[slot] = uses
        self._with.setdefault(uses, OrderedDict())[slot] = None

    def _drop(self, slot: int) -> None:
        uses = self._uses.pop(slot)
        group = self._with[uses]
        del group[slot]
        if not group:
            del self._with[uses]


POLICIES: dict[str, type[Fifo] | type[Lru] | type[Lfu]] = {"lru": Lru, "lfu": Lfu, "fifo": Fifo}


def eviction_of(name: str) -> Eviction:
    """Return a new policy by its name.

    Raises:
        ConfigError: the name is unknown.
    """
    if name not in POLICIES:
        raise ConfigError(f"unknown eviction {name!r}; known are {', '.join(sorted(POLICIES))}")
    return POLICIES[name]()


class PassageCache:
    """Guesses the best k of at most `capacity` passages that searches have returned.

    With an exact retriever the guess is right whenever the true k passages are in
    the cache, since they rank before all other passages of the knowledge base, and the
    scores equal those of the search to the bit. A cache belongs to one retriever: it
    contains its hits and is ranked by its queries. Thread-safe, so it may be
    shared between requests.

    Slots 0 to n - 1 are always filled: a new passage replaces the evicted one.
    So the table ranks one block of rows.
    """

    inline = True

    def __init__(
        self,
        retriever: Retriever,
        *,
        capacity: int = 1000,
        eviction: str = "lru",
        table: ProxyTable | None = None,
        k: int | None = None,
        corpus_size: int | None = None,
    ) -> None:
        """Create an empty cache.

        Args:
            retriever: the retriever whose hits are cached.
            capacity: the maximum number of passages; below k no guess is made.
            eviction: which passage leaves a full cache: "lru", "lfu" or "fifo".
            table: ranks for a retriever whose metric is unknown; its guesses have no scores.
                By default the retriever's own, or else `FallbackTable`.
            k: the number of hits of a guess; by default the retriever's k, or else the number
                that the last search found.
            corpus_size: the number of passages in the knowledge base, if the retriever has no
                `size`: fewer than k passages are enough if the cache contains all.

        Raises:
            ConfigError: the capacity is below 1, or the eviction is unknown.
        """
        if capacity < 1:
            raise ConfigError(f"capacity must be at least 1, got {capacity}")
        retriever = complete(retriever)
        self.signature: Hashable = retriever.signature
        self.capacity = capacity
        self._given_table = table
        self._retriever = retriever
        self._given_k = k
        self._found_k: int | None = None  # number of hits of the last search with any
        check_k(self.k)
        size: Any = corpus_size if corpus_size is not None else getattr(retriever, "size", None)
        self._corpus_size: int | None = size if isinstance(size, int) else None
        self._eviction_name = eviction
        self._lock = threading.Lock()
        self._generation = 0
        self._empty()

    def _empty(self) -> None:
        given = self._given_table  # its slots are overwritten
        table: PassageTable = given or _own_table(self._retriever, self.capacity)
        self._table = table
        self._scored = getattr(table, "scored", given is None)
        self.by_text: bool = getattr(table, "by_text", False)
        self._learn: Callable[[Query, Hits], None] | None = getattr(table, "learn", None)
        self._kept: Callable[[Hit], Hit] = getattr(table, "kept", _whole)
        self._eviction = eviction_of(self._eviction_name)
        self._hits: list[Hit] = []  # by slot
        self._slots: dict[str, int] = {}  # by passage id

    @property
    def k(self) -> int | None:
        """The number of hits of a guess; `None` while it is unknown."""
        if self._given_k is not None:
            return self._given_k
        k: int | None = getattr(self._retriever, "k", self._found_k)
        return k

    @property
    def size(self) -> int:
        """The number of passages in the cache."""
        return len(self._hits)

    @property
    def generation(self) -> int:
        """The number of invalidations, to be read before a search whose hits are learned."""
        return self._generation

    def guess(self, query: Query) -> Hits | None:
        """Return the cache's best k; `None` while it has fewer than a search would return."""
        k = self.k
        if k is None:
            return None
        needed = k if self._corpus_size is None else min(k, self._corpus_size)
        with self._lock:
            if not self._hits or len(self._hits) < needed:
                return None
            best = self._table.rank(query, range(len(self._hits)), k)
            for slot, _ in reversed(best):  # the best becomes the most recently used
                self._eviction.use(slot)
            if not self._scored:
                return tuple(self._hits[slot].unscored() for slot, _ in best)
            return tuple(
                Hit(self._hits[slot].passage, score, self._hits[slot].features)
                for slot, score in best
            )

    def learn(self, query: Query, hits: Hits, generation: int | None = None) -> None:
        """Add the hits of a real search, the best ones if not all fit.

        Args:
            query: the query.
            hits: the hits of the search.
            generation: the cache's, from before the search. If it was invalidated since, nothing
                is added. `None`: the hits are current.
        """
        if self._learn is not None and getattr(hits, "immutable", False):
            return  # arrays of thousands of hits: only a specific table ranks them
        with self._lock:
            if generation not in (None, self._generation):
                return
            self._found_k = len(hits) or self._found_k
            if self._learn is not None:
                self._learn(query, hits)
            for hit in reversed(hits[: self.capacity]):  # the best becomes the most recent
                self._take_in(self._kept(hit))

    def _take_in(self, hit: Hit) -> None:
        slot = self._slots.get(hit.passage.id)
        if slot is not None:
            if _rank_otherwise(self._hits[slot].passage, hit.passage):  # changed under its id
                self._table.put(slot, hit)
            self._hits[slot] = hit
            self._eviction.use(slot)
        elif len(self._hits) < self.capacity:
            slot = len(self._hits)
            self._table.put(slot, hit)  # first, since it may raise
            self._hits.append(hit)
            self._eviction.add(slot)
            self._slots[hit.passage.id] = slot
        else:
            slot = self._eviction.give_up()
            self._eviction.add(slot)
            self._table.put(slot, hit)
            del self._slots[self._hits[slot].passage.id]
            self._hits[slot] = hit
            self._slots[hit.passage.id] = slot

    def passages(self) -> list[Passage]:
        """Return the cached passages, for drafters that copy text from them."""
        with self._lock:
            return [hit.passage for hit in reversed(self._hits)]

    def invalidate(self) -> None:
        """Discard all passages, after a change of the index.

        The hits of a search that started before are not added either, given its generation.
        """
        with self._lock:
            self._generation += 1
            self._empty()

    def check(self) -> None:
        """Assert the invariants."""
        with self._lock:
            assert len(self._hits) <= self.capacity
            ids = [hit.passage.id for hit in self._hits]
            assert self._slots == {identity: slot for slot, identity in enumerate(ids)}
            assert self._eviction.slots() == set(range(len(ids)))


def check_k(k: Any) -> None:
    """Check a retriever's number of hits; `None` is unknown.

    Raises:
        ConfigError: it is no whole number of at least 1.
    """
    if k is not None and (not isinstance(k, Integral) or k < 1):
        raise ConfigError(
            f"a retriever's k must be a whole number of at least 1, got {k!r}; mend it, or give "
            "k=... to the passage cache"
        )


def _whole(hit: Hit) -> Hit:
    return hit


def _rank_otherwise(old: Passage, new: Passage) -> bool:
    """Return whether the ranked content of a passage has changed.

    Whole passages are not compared: each search returns many, and metadata may be
    expensive to compare.
    """
    return old is not new and (old.text != new.text or old.title != new.title)


def _own_table(retriever: Retriever, capacity: int) -> PassageTable:
    return (
        retriever.table(capacity) if isinstance(retriever, PoolableRetriever) else FallbackTable()
    )


# A passage cache for many requests, partitioned by retriever.


class SharedPassageCache:
    """One passage cache for each signature: tenants never receive each other's passages.

    Requests over retrievers of the same signature share their hits, so that a
    later request guesses from its first step on. Thread-safe.

    >>> from ralmspec_plugins.testing import WordRetriever
    >>> ours, theirs = WordRetriever(["red fox"]), WordRetriever(["red flag"])
    >>> pool = SharedPassageCache()
    >>> query = ours.encode("red")
    >>> pool.of(ours).learn(query, ours.search([query])[0])
    >>> pool.of(ours).size, pool.of(theirs).size
    (1, 0)
    """

    def __init__(self, *, capacity: int = 1000, eviction: str = "lru", parts: int = 64) -> None:
        """Create an empty cache.

        Args:
            capacity: the maximum number of passages in each part.
            eviction: which passage leaves a full part: "lru", "lfu" or "fifo".
            parts: the maximum number of signatures; the least recently used is discarded.

        Raises:
            ConfigError: a number is below 1, or the eviction is unknown.
        """
        if capacity < 1 or parts < 1:
            raise ConfigError(f"capacity and parts must be at least 1, got {capacity} and {parts}")
        eviction_of(eviction)
        self.capacity = capacity
        self._eviction = eviction
        self._most = parts
        self._parts: OrderedDict[Hashable, PassageCache] = OrderedDict()  # the last used at the end
        self._held: weakref.WeakSet[PassageCache] = weakref.WeakSet()  # those in use elsewhere, too
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle as an empty cache: hosts copy the parts of a chain."""
        return _made, (self.capacity, self._eviction, self._most)

    def of(self, retriever: Retriever) -> PassageCache:
        """Return the part of a retriever's signature."""
        retriever = complete(retriever)
        with self._lock:
            part = self._parts.get(retriever.signature)
            if part is None:
                part = PassageCache(retriever, capacity=self.capacity, eviction=self._eviction)
                self._parts[retriever.signature] = part
                self._held.add(part)
            self._parts.move_to_end(retriever.signature)
            if len(self._parts) > self._most:
                self._parts.popitem(last=False)
            return part

    def invalidate(self, *signatures: Hashable) -> None:
        """Clear the parts of these signatures, after a change of the index; by default all."""
        with self._lock:
            parts = list(self._held)
        for part in parts:
            if not signatures or part.signature in signatures:
                part.invalidate()

    def check(self) -> None:
        """Assert the invariants."""
        with self._lock:
            assert len(self._parts) <= self._most
            for signature, part in self._parts.items():
                assert part.signature == signature
                part.check()


def _made(capacity: int, eviction: str, parts: int) -> SharedPassageCache:
    return SharedPassageCache(capacity=capacity, eviction=eviction, parts=parts)
