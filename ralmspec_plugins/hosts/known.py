"""What all calls of one host's retriever share: prepared settings, what failed a probe, counts."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from ralmspec_plugins.hosts.native import Look
from ralmspec_plugins.hosts.steadiness import Steadiness

_log = logging.getLogger(__name__)

_KEPT: Final = 64  # settings (users, filters) that are kept prepared
_STEP: Final = 7919  # a prime, so that the probes come to every place in a batch
ValueT = TypeVar("ValueT")


@dataclass(frozen=True, slots=True)
class HostStats:
    """What reached the host: batches of the store, the queries in them, and single calls."""

    batches: int = 0
    batched_queries: int = 0
    single_calls: int = 0

    @property
    def round_trips(self) -> int:
        """How often the store or the retriever was called."""
        return self.batches + self.single_calls

    @property
    def queries(self) -> int:
        """How many queries it was asked."""
        return self.batched_queries + self.single_calls


class HostKnown:
    """The memory of a host retriever, for all its users and settings. Thread-safe."""

    def __init__(self, prepare: Callable[[Hashable, Any], Look]) -> None:
        """Know nothing yet.

        Args:
            prepare: looks closely at the host's retriever, given its signature and what
                goes with it; what it makes is kept for as long as the signature is in use, unless
                it says that it is one call's alone.
        """
        self._prepare = prepare
        self._lock = threading.Lock()
        self._looks: OrderedDict[Hashable, Look] = OrderedDict()  # the last used at the end
        self._sizes: OrderedDict[Hashable, int] = OrderedDict()  # of the latest results
        self._probes = 0
        self._stats = HostStats()
        self.steadiness = Steadiness()

    def look(self, signature: Hashable, at: Any) -> Look:
        """Give what is known of a retriever as it is now."""
        with self._lock:
            known = self._looks.get(signature)
            if known is not None:
                self._looks.move_to_end(signature)
                return known
        look = self._prepare(signature, at)
        self._keep(self._looks, look, look)
        return look

    def trusted(self, look: Look) -> Look:
        """Give what is known now of these settings: a batch may have differed meanwhile."""
        with self._lock:
            return self._looks.get(look.signature, look)

    def distrust(self, look: Look) -> None:
        """Search these settings one by one from now on: a batch gave something else."""
        _log.warning(
            "batches of %s differ from single searches; it is searched query by query from now on",
            "a store" if look.native is None else look.native.search.name,
        )
        self._keep(self._looks, look, replace(look, native=None))

    def probe(self, size: int) -> int:
        """Choose the query of a batch that is compared with a single search."""
        with self._lock:
            self._probes += 1
            return self._probes * _STEP % size

    def latest_size(self, look: Look) -> int | None:
        """Say how many documents the latest result had that had any."""
        with self._lock:
            return self._sizes.get(look.signature)

    def note_single(self, look: Look, found: int) -> None:
        """Count a single call."""
        with self._lock:
            old = self._stats
            self._stats = HostStats(old.batches, old.batched_queries, old.single_calls + 1)
        if found and look.k is None:
            self._keep(self._sizes, look, found)

    def note_batch(self, queries: int) -> None:
        """Count a batch."""
        with self._lock:
            old = self._stats
            self._stats = HostStats(
                old.batches + 1, old.batched_queries + queries, old.single_calls
            )

    @property
    def stats(self) -> HostStats:
        """What has reached the host so far."""
        with self._lock:
            return self._stats

    def _keep(self, where: OrderedDict[Hashable, ValueT], look: Look, value: ValueT) -> None:
        if look.passing:
            return
        with self._lock:
            where[look.signature] = value
            where.move_to_end(look.signature)
            if len(where) > _KEPT:
                where.popitem(last=False)
