"""Keeps the key-value caches of a model: one owner, one byte budget, oldest out first."""

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol, TypeAlias, TypeVar

from ralmspec_plugins.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Prefix:
    """Names the cache of some passages alone, which any request may share."""

    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Lineage:
    """Names the cache of one text behind one prefix, from its prefill on.

    All that its content depends on is in the name, so a cache found under it
    differs from the one wanted only in how far it has come.
    """

    owner: int
    prefix: Prefix
    prompt: tuple[int, ...]
    prefilled: tuple[int, ...]  # the generated tokens that went into the prefill pass


Name: TypeAlias = Prefix | Lineage


class Sized(Protocol):
    """What can be kept: it knows how much memory it holds."""

    @property
    def nbytes(self) -> int:
        """The bytes held."""
        ...


EntryT = TypeVar("EntryT", bound=Sized)


class CacheStore:
    """Caches that are not in use at the moment, at most `budget_bytes` of them.

    A prefix is only ever looked at (`find`); a lineage is taken out while it is
    extended (`take`) and put back when that is over, so no two extensions ever
    share one. Whatever is not here is rebuilt by the compute schedule: the
    budget changes the time, never the result. Thread-safe.
    """

    def __init__(self, budget_bytes: int) -> None:
        """Keep at most this many bytes."""
        if budget_bytes < 0:
            raise ConfigError(f"cache_bytes must be at least 0, got {budget_bytes}")
        self.budget_bytes = budget_bytes
        self._entries: OrderedDict[Name, tuple[Sized, int]] = OrderedDict()  # oldest first
        self._nbytes = 0
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """The bytes kept."""
        return self._nbytes

    def __len__(self) -> int:
        """Count the caches kept."""
        return len(self._entries)

    def __contains__(self, name: Name) -> bool:
        """Say whether a cache is kept under this name."""
        return name in self._entries

    def find(self, name: Name, kind: type[EntryT]) -> EntryT | None:
        """Give a cache to look at, and count it as just used."""
        with self._lock:
            if name not in self._entries:
                return None
            self._entries.move_to_end(name)
            entry, _ = self._entries[name]
        assert isinstance(entry, kind)
        return entry

    def take(self, name: Name, kind: type[EntryT]) -> EntryT | None:
        """Hand a cache over to the caller, who may change it."""
        with self._lock:
            entry = self._remove(name)
        assert entry is None or isinstance(entry, kind)
        return entry

    def put(self, name: Name, entry: Sized) -> None:
        """Keep a cache, in place of the oldest ones where the budget is short."""
        nbytes = entry.nbytes
        with self._lock:
            self._remove(name)
            self._entries[name] = (entry, nbytes)
            self._nbytes += nbytes
            while self._nbytes > self.budget_bytes:
                self._remove(next(iter(self._entries)))

    def release(self, owner: int) -> None:
        """Drop every lineage of a request."""
        with self._lock:
            for name in list(self._entries):
                if isinstance(name, Lineage) and name.owner == owner:
                    self._remove(name)

    def check(self) -> None:
        """Raise `AssertionError` if the books are wrong (for tests)."""
        with self._lock:
            assert self._nbytes == sum(nbytes for _, nbytes in self._entries.values())
            assert self._nbytes <= self.budget_bytes

    def _remove(self, name: Name) -> Sized | None:
        entry, nbytes = self._entries.pop(name, (None, 0))
        self._nbytes -= nbytes
        return entry
