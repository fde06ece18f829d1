"""The local cache of KNN-LM: former neighbours, and the entries that follow them.

A neighbour of one token is seldom a neighbour of the next. But if the
text continues as a text of the datastore, the next entries of that text are
(RaLMSpec): so they are cached as well, for guesses.
"""

import threading
from collections import deque

import numpy as np
from numpy.typing import NDArray

from ralmspec_plugins.errors import ConfigError, InputError
from ralmspec_plugins.knn.datastore import Datastore, Ids
from ralmspec_plugins.knn.search import Neighbours, check_hidden, nearest_of, widen
from ralmspec_plugins.retrieval.dense import norm_of
from ralmspec_plugins.retrieval.ranking import (
    Metric,
    Vectors,
    exact_scores,
    kernel_error,
    nominees,
)
from ralmspec_plugins.retrieval.storage.corpus import check_k
from ralmspec_plugins.types import Hits, Query

CAPACITY = 16_384
FOLLOWING = 10  # as in the paper
_WAITING = 256  # maximum number of results that are not added yet


class NeighbourCache:
    """Guesses the neighbours of a query: the nearest cached entries.

    They are ranked as an exact search ranks all entries, to the last bit. So a guess
    equals the search if all true neighbours are cached.

    Results are queued until the next guess, or until 256 are queued: without
    guesses they cost little, and results that newer ones displace are never read.

    By default each request has its own; it may be shared, since it is thread-safe. Its
    memory grows up to `4 * capacity * dimension` bytes, with temporarily half as much
    again while entries are added.
    """

    def __init__(
        self,
        datastore: Datastore,
        *,
        k: int = 1024,
        following: int = FOLLOWING,
        followed: int | None = None,
        capacity: int = CAPACITY,
        inline: bool = True,
    ) -> None:
        """Create an empty cache.

        Args:
            datastore: the datastore whose entries are guessed.
            k: the number of neighbours of a guess, or fewer while there are not so many.
            following: the number of entries after each neighbour that are added, too.
            followed: the number of nearest neighbours whose successors are added; by default all,
                as in the paper, if the entries of one search then fit. At k = 1024 a smaller
                number leaves room for earlier searches (benchmarks/results/knn_lm.md).
            capacity: the maximum number of entries; the oldest are evicted. Below k, the
                farthest neighbours are omitted.
            inline: guess inside the loop, not in a worker. It takes milliseconds, mostly to
                add queued results: too long for a shared event loop.

        Raises:
            ConfigError: a number is out of range.
        """
        check_cache(following, followed, capacity)
        self.inline = inline
        self.k = check_k(k)
        self.following = following
        self.followed = followed
        self.capacity = capacity
        self._datastore = datastore
        self._waiting: deque[Ids] = deque()  # neighbours, the newest search last
        self._lock = threading.Lock()
        self._make_room()

    def _make_room(self) -> None:
        dimension = self._datastore.about.dimension
        self._ids: Ids = np.empty(self.capacity, dtype=np.int64)
        self._keys: Vectors = np.empty((self.capacity, dimension), dtype=np.float32)
        self._squares: Vectors = np.empty(self.capacity, dtype=np.float32)
        self._brought: NDArray[np.int64] = np.empty(
            self.capacity, dtype=np.int64
        )  # the time of the last addition
        self._now = 0
        self._sorted: Ids = np.empty(0, dtype=np.int64)  # the cached ids, ascending
        self._slots: NDArray[np.int64] = np.empty(0, dtype=np.int64)  # of the sorted ids
        self._longest = 0.0  # the greatest squared norm so far
        self._size = 0
        self._waiting.clear()

    @property
    def size(self) -> int:
        """The number of cached entries."""
        with self._lock:
            self._take_in()
            return self._size

    def guess(self, query: Query) -> Neighbours | None:
        """Return the nearest k cached entries; `None` while there are none."""
        check_hidden(query, self._datastore.about.dimension)
        hidden: Vectors = np.asarray(query.encoding, dtype=np.float32)
        with self._lock:
            self._take_in()
            if not self._size:
                return None
            keys = self._keys[: self._size]
            fast = keys @ hidden
            fast *= 2
            fast -= self._squares[: self._size]
            longest = float(np.sqrt(self._longest))
            error = kernel_error(Metric.L2, len(hidden), longest, norm_of(hidden))
            near = nominees(fast, self.k, error)
            scores = exact_scores(keys[near], hidden, Metric.L2)
            ids = self._ids[near]
        return nearest_of(ids, self._datastore.values[ids], scores, self.k)

    def learn(self, query: Query, hits: Hits) -> None:
        """Queue the neighbours of a search, and their successors, for the next guess.

        Raises:
            InputError: the datastore has no such entry.
        """
        ids = _ids_of(hits)
        if len(ids) and not 0 <= ids.min() <= ids.max() < len(self._datastore):
            raise InputError(
                f"neighbours {ids.min()} to {ids.max()} were found, and this cache's datastore has "
                f"{len(self._datastore)} entries; guess for a search of the same datastore"
            )
        with self._lock:
            if len(self._waiting) == _WAITING:
                self._take_in()
            self._waiting.append(ids)

    def _take_in(self) -> None:
        """Add the queued results, with the same effect as adding each immediately."""
        if not self._waiting:
            return
        parts, known = [], np.empty(0, dtype=np.int64)
        while self._waiting and len(known) < self.capacity:
            entries = self._entries(self._waiting.pop())
            parts.append(entries[~_among(known, entries)])
            known = np.sort(np.concatenate([known, parts[-1]]), kind="stable")
        self._waiting.clear()  # newer ones fill the capacity
        self._bring(np.concatenate(parts)[: self.capacity])

    def _entries(self, neighbours: Ids) -> Ids:
        """Return neighbours, the nearest first, and then their successors."""
        ids = neighbours[: self.capacity]
        fitting = (self.capacity - len(ids)) // max(1, self.following)
        followed = fitting if self.followed is None else min(fitting, self.followed)
        behind = self._datastore.following(ids[:followed], self.following)
        return np.concatenate([ids, behind[~_among(np.sort(ids), behind)]])

    def _bring(self, ids: Ids) -> None:
        """Add these entries, the first as the newest, in place of the oldest."""
        self._now += len(ids)
        when = self._now - np.arange(len(ids))
        there = _among(self._sorted, ids)
        self._brought[self._slots[self._sorted.searchsorted(ids[there])]] = when[there]
        missing = ids[~there]
        if not len(missing):
            return
        room = min(self._size + len(missing), self.capacity)
        slots = np.arange(self._size, room)
        displaced = len(missing) - len(slots)
        if displaced:
            oldest = np.argpartition(self._brought[: self._size], displaced - 1)[:displaced]
            slots = np.concatenate([slots, oldest])
        self._write(slots, missing)
        self._brought[slots] = when[~there]
        self._size = room
        self._slots = np.argsort(self._ids[: self._size])
        self._sorted = self._ids[self._slots]

    def _write(self, slots: NDArray[np.int64], ids: Ids) -> None:
        """Write these entries to these slots."""
        halves = self._datastore.keys[ids]
        keys = np.empty(halves.shape, dtype=np.float32)
        widen(halves, keys)
        squares = np.einsum("ij,ij->i", keys, keys)
        self._ids[slots], self._keys[slots], self._squares[slots] = ids, keys, squares
        self._longest = max(self._longest, float(squares.max()))

    def clear(self) -> None:
        """Remove all entries."""
        with self._lock:
            self._make_room()

    def check(self) -> None:
        """Assert the invariants."""
        with self._lock:
            ids, store = self._ids[: self._size], self._datastore
            assert self._size <= self.capacity
            assert len(np.unique(ids)) == len(np.unique(self._brought[: self._size])) == self._size
            assert np.array_equal(self._sorted, np.sort(ids))
            assert np.array_equal(self._sorted, ids[self._slots])
            assert np.array_equal(self._keys[: self._size], store.keys[ids].astype(np.float32))
            assert bool((self._squares[: self._size] <= self._longest).all())


def check_cache(following: int, followed: int | None, capacity: int) -> None:
    """Check the settings of a cache.

    Raises:
        ConfigError: a number is out of range.
    """
    for name, number, least in (
        ("following", following, 0),
        ("followed", followed, 0),
        ("capacity", capacity, 1),
    ):
        if number is None and name == "followed":
            continue
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise ConfigError(f"{name} must be at least {least}, got {number!r}")


def _among(ascending: Ids, ids: Ids) -> NDArray[np.bool_]:
    """Return for each id whether it is one of these."""
    if not len(ascending):
        return np.zeros(len(ids), dtype=np.bool_)
    places = np.minimum(ascending.searchsorted(ids), len(ascending) - 1)
    among: NDArray[np.bool_] = ascending[places] == ids
    return among


def _ids_of(hits: Hits) -> Ids:
    if isinstance(hits, Neighbours):
        return hits.ids
    return np.array([int(hit.passage.id) for hit in hits], dtype=np.int64)
