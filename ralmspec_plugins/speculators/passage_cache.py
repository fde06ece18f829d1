"""The paper's local cache: passages seen so far, ranked as the retriever ranks."""

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Protocol

from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.parts import complete
from ralmspec_plugins.protocols import PassageTable, PoolableRetriever, Retriever
from ralmspec_plugins.speculators.proxy import FallbackTable, ProxyTable
from ralmspec_plugins.types import Hit, Hits, Passage, Query

# Which passage leaves a full pool: one small policy each, all with the same four methods.


class Eviction(Protocol):
    """Keeps the order in which slots are given up. A slot is added once, until it is given up."""

    def add(self, slot: int) -> None:
        """Take in a slot that has just been filled."""
        ...

    def use(self, slot: int) -> None:
        """Note that a slot's passage was guessed, or found again by a real search."""
        ...

    def give_up(self) -> int:
        """Choose a slot, and forget it."""
        ...

    def slots(self) -> set[int]:
        """Give all slots that are kept, for checks."""
        ...


class Fifo:
    """The oldest goes first, used or not."""

    def __init__(self) -> None:
        """Start without slots."""
        self._order: OrderedDict[int, None] = OrderedDict()

    def add(self, slot: int) -> None:
        """Put a slot behind all others."""
        assert slot not in self._order
        self._order[slot] = None

    def use(self, slot: int) -> None:
        """Change nothing."""

    def give_up(self) -> int:
        """Choose the slot in front."""
        return self._order.popitem(last=False)[0]

    def slots(self) -> set[int]:
        """Give all slots that are kept."""
        return set(self._order)


class Lru(Fifo):
    """The least recently used goes first."""

    def use(self, slot: int) -> None:
        """Move a slot behind all others."""
        self._order.move_to_end(slot)


class Lfu:
    """The least often used goes first; among equals, the one that was used longest ago."""

    def __init__(self) -> None:
        """Start without slots."""
        self._uses: dict[int, int] = {}
        self._with: dict[int, OrderedDict[int, None]] = {}  # slots by their number of uses
        self._fewest = 0

    def add(self, slot: int) -> None:
        """Take in a slot with no use yet."""
        assert slot not in self._uses
        self._file(slot, 0)
        self._fewest = 0

    def use(self, slot: int) -> None:
        """Count one more use."""
        uses = self._uses[slot]
        self._drop(slot)
        self._file(slot, uses + 1)

    def give_up(self) -> int:
        """Choose the first of those with the fewest uses."""
        while self._fewest not in self._with:
            self._fewest += 1
        slot = next(iter(self._with[self._fewest]))
        self._drop(slot)
        return slot

    def slots(self) -> set[int]:
        """Give all slots that are kept."""
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
    """Make a policy by name.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in POLICIES:
        raise ConfigError(f"unknown eviction {name!r}; known are {', '.join(sorted(POLICIES))}")
    return POLICIES[name]()


class PassageCache:
    """Guesses the best k of at most `capacity` passages that searches have returned.

    With an exact retriever the guess is right whenever the true k passages are in
    the pool, since they beat every other passage of the knowledge base, and its
    scores are the search's own to the bit. A pool belongs to one retriever: it is
    filled with its hits and asked with its queries. Thread-safe, so it may be
    shared between requests.

    Slots 0 to n - 1 are filled, always: a passage that leaves makes room for the
    one that comes. So the table ranks one block of rows.
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
        """Start empty.

        Args:
            retriever: whose hits are pooled.
            capacity: the most passages kept; below k nothing is ever guessed.
            eviction: which passage leaves a full pool: "lru", "lfu" or "fifo".
            table: ranks for a retriever whose metric is unknown; its guesses carry no scores.
                By default the retriever's own, or else `FallbackTable`.
            k: how many hits a guess has; the retriever's own k where it has one, else as many as
                the last search found.
            corpus_size: how many passages there are at all, where the retriever has no `size`:
                a smaller pool than k is enough if it holds them all.

        Raises:
            ConfigError: no capacity, or an unknown eviction.
        """
        if capacity < 1:
            raise ConfigError(f"capacity must be at least 1, got {capacity}")
        retriever = complete(retriever)
        self.signature: Hashable = retriever.signature
        self.capacity = capacity
        self._given_table = table
        self._retriever = retriever
        self._given_k = k
        self._found_k: int | None = None  # hits of the last search that found any
        if self.k is not None and (not isinstance(self.k, int) or self.k < 1):
            raise ConfigError(f"k must be at least 1, got {self.k!r}; give k=... to the pool")
        size: Any = corpus_size if corpus_size is not None else getattr(retriever, "size", None)
        self._corpus_size: int | None = size if isinstance(size, int) else None
        self._eviction_name = eviction
        self._lock = threading.Lock()
        self._generation = 0
        self._empty()

    def _empty(self) -> None:
        given = self._given_table  # whose slots are written over
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
        """How many hits a guess has; `None` while the retriever cannot say it yet."""
        if self._given_k is not None:
            return self._given_k
        k: int | None = getattr(self._retriever, "k", self._found_k)
        return k

    @property
    def size(self) -> int:
        """How many passages are in the pool."""
        return len(self._hits)

    @property
    def generation(self) -> int:
        """How often it was invalidated: to be read before a search that is learned."""
        return self._generation

    def guess(self, query: Query) -> Hits | None:
        """Give the pool's best k; `None` while it holds fewer than a search would return."""
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
        """Take in the hits of a real search; what does not fit are the last of them.

        Args:
            query: what was asked.
            hits: what was found.
            generation: the cache's, from before the search. If it was invalidated since, nothing
                is taken in. `None`: found just now.
        """
        if self._learn is not None and getattr(hits, "immutable", False):
            return  # arrays that stand for thousands of hits: only a table of their own ranks them
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
            self._table.put(slot, hit)  # first, since it may refuse
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
        """Give the passages that are held, for who copies text from them."""
        with self._lock:
            return [hit.passage for hit in reversed(self._hits)]

    def invalidate(self) -> None:
        """Forget everything, for when the index has changed.

        What a search finds that began before is not taken in either, given its generation.
        """
        with self._lock:
            self._generation += 1
            self._empty()

    def check(self) -> None:
        """Assert what must hold between any two calls."""
        with self._lock:
            assert len(self._hits) <= self.capacity
            ids = [hit.passage.id for hit in self._hits]
            assert self._slots == {identity: slot for slot, identity in enumerate(ids)}
            assert self._eviction.slots() == set(range(len(ids)))


def _whole(hit: Hit) -> Hit:
    return hit


def _rank_otherwise(old: Passage, new: Passage) -> bool:
    """Say whether a passage is ranked by something else now: that is all a table must know.

    Whole passages are not compared: each search brings many, and their metadata may be
    costly to compare.
    """
    return old is not new and (old.text != new.text or old.title != new.title)


def _own_table(retriever: Retriever, capacity: int) -> PassageTable:
    return (
        retriever.table(capacity) if isinstance(retriever, PoolableRetriever) else FallbackTable()
    )


# A passage pool for many requests, in parts: one for each retriever, knowing no other.


class SharedPassageCache:
    """One pool for each signature: what one tenant's searches found is never another's guess.

    Requests over retrievers of the same signature share what they find, so a
    later one guesses from the first step on. Thread-safe.

    >>> from ralmspec_plugins.testing import WordRetriever
    >>> ours, theirs = WordRetriever(["red fox"]), WordRetriever(["red flag"])
    >>> pool = SharedPassageCache()
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
        self._parts: OrderedDict[Hashable, PassageCache] = OrderedDict()  # the last used at the end
        self._held: weakref.WeakSet[PassageCache] = weakref.WeakSet()  # also by others than this
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Be copied and pickled empty: hosts copy the parts of a chain."""
        return _made, (self.capacity, self._eviction, self._most)

    def of(self, retriever: Retriever) -> PassageCache:
        """Give the part that belongs to a retriever's signature."""
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
        """Empty the parts of these signatures, for when an index has changed; by default all."""
        with self._lock:
            parts = list(self._held)
        for part in parts:
            if not signatures or part.signature in signatures:
                part.invalidate()

    def check(self) -> None:
        """Assert what must hold between any two calls."""
        with self._lock:
            assert len(self._parts) <= self._most
            for signature, part in self._parts.items():
                assert part.signature == signature
                part.check()


def _made(capacity: int, eviction: str, parts: int) -> SharedPassageCache:
    return SharedPassageCache(capacity=capacity, eviction=eviction, parts=parts)
