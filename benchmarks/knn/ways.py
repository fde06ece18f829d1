"""The ways in which a text is continued with its neighbours: schedules, and their caches."""

import argparse
import struct
import time
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.harness.cases import PLAIN_NAME, Arm, ScheduleKind
from benchmarks.harness.process import Line, answer, core_for_another, keep_to, running
from ralmspec_plugins.config import Settings
from ralmspec_plugins.knn.cache import CAPACITY, FOLLOWING, NeighbourCache
from ralmspec_plugins.knn.datastore import Datastore
from ralmspec_plugins.knn.search import (
    ExactSearch,
    Neighbours,
    NeighbourSearch,
    encode_no_text,
    hidden_states,
)
from ralmspec_plugins.protocols import Speculator
from ralmspec_plugins.scheduling.os3 import GAMMA_LIMIT
from ralmspec_plugins.types import Hits, Query


class NoNeighbours:
    """Guesses that nobody votes: right where neighbours do not change the model's choice."""

    inline = True

    def guess(self, query: Query) -> Neighbours:
        """Give no neighbours."""
        nobody = np.empty(0, dtype=np.int64)
        return Neighbours(nobody, nobody.astype(np.int32), nobody.astype(np.float64))

    def learn(self, query: Query, hits: Hits) -> None:
        """Learn nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to run a request.

    Args:
        name: as it stands in tables.
        kind: the schedule's.
        stride: of "fixed".
        overlap: whether "fixed" and "os3" write on while a batch is out.
        gamma_limit: of "os3": the highest guess rate that it believes in.
        width: neighbours that a search brings to the cache; k if not given.
        following: entries behind each neighbour that the cache takes in: n of the paper.
        followed: of how many of the nearest neighbours; of all if not given.
        capacity: entries in the cache.
        replica: guess with an approximate search of the same datastore, and without a cache.
        alone: guess with no neighbours at all, that is, what the model alone would choose.
        lanes: of "continuous": searches at a time.
    """

    name: str
    kind: ScheduleKind = "continuous"
    stride: int = 1
    overlap: bool = False
    gamma_limit: float = GAMMA_LIMIT
    width: int | None = None
    following: int = FOLLOWING
    followed: int | None = None
    capacity: int = CAPACITY
    replica: bool = False
    alone: bool = False
    lanes: int = 1

    def settings(self, datastore: Datastore, k: int, replica: Speculator | None = None) -> Settings:
        """Give the engine's settings; each request guesses from a cache of its own.

        Args:
            datastore: what is searched.
            k: how many neighbours vote.
            replica: what guesses for ways with a replica.
        """
        if self.kind == "plain":
            return Settings(speculate=False)
        arm = Arm(
            name=self.name,
            kind=self.kind,
            stride=self.stride,
            overlap=self.overlap,
            gamma_limit=self.gamma_limit,
            lanes=self.lanes,
        )
        return Settings(
            schedule=arm.schedule,
            prefetch=max(k, self.width or k),
            speculators=lambda: (self._guesser(datastore, k, replica),),
        )

    def record(self) -> dict[str, Any]:
        """Give it as JSON takes it, and as `harness.report` reads it."""
        return asdict(self)

    def _guesser(self, datastore: Datastore, k: int, replica: Speculator | None) -> Speculator:
        if self.alone:
            return NoNeighbours()
        if self.replica:
            assert replica is not None, f"{self.name} guesses with a replica, and there is none"
            return replica
        return NeighbourCache(
            datastore,
            k=k,
            following=self.following,
            followed=self.followed,
            capacity=self.capacity,
        )


PLAIN: Final = Way(name=PLAIN_NAME, kind="plain")
FIXED: Final = tuple(Way(name=f"fixed {s}", kind="fixed", stride=s) for s in (1, 2, 4, 8))
OS3: Final = Way(name="OS3", kind="os3")  # as in the paper's KNN-LM: without overlap
OS3_ASIDE: Final = Way(name="OS3, overlap", kind="os3", overlap=True)
CONTINUOUS: Final = Way(name="continuous")
REPLICA: Final = replace(CONTINUOUS, name="continuous, replica", replica=True)
TRUSTING: Final = replace(OS3, name="OS3, replica", gamma_limit=0.98, replica=True)
LONG: Final = Way(name="fixed 32, replica", kind="fixed", stride=32, replica=True)
PAPER: Final = (*FIXED, OS3)
"""The schedules of the paper's KNN-LM figures."""


REPLICAS: Final = (REPLICA, TRUSTING, LONG)
LANES: Final = replace(REPLICA, name="continuous, replica, 4 lanes", lanes=4)
BASELINES: Final = (
    Way(name="the model alone", kind="fixed", stride=8, alone=True),
    Way(name="cache", kind="fixed", stride=8),
    Way(name="replica", kind="fixed", stride=8, replica=True),
)
"""What guesses are held against: how often a guess is right that takes nothing to make."""


def caches(k: int) -> tuple[Way, ...]:
    """Give caches of ours beside the default, for so many neighbours; the first is measured, too.

    Where few are looked for, more may be brought along; where many are, taking in and
    looking through less saves time.
    """
    if k <= 64:
        longer = replace(CONTINUOUS, name="continuous, n = 20", following=20)
        wide = replace(CONTINUOUS, name="continuous, P(256)", width=256)
        return longer, wide
    nearest = replace(CONTINUOUS, name="continuous, of the nearest 64", followed=64)
    small = replace(nearest, name="continuous, of the nearest 64, 4,096 entries", capacity=4096)
    return nearest, small


def exact_ways(k: int) -> tuple[Way, ...]:
    """Give all ways that are measured over an exact search."""
    return (*PAPER, OS3_ASIDE, CONTINUOUS, caches(k)[0], *REPLICAS)


def approximate_ways(k: int) -> tuple[Way, ...]:
    """Give the ways that are measured over an approximate search."""
    return (OS3, OS3_ASIDE, CONTINUOUS, caches(k)[0], *REPLICAS)


def simulated_ways(k: int) -> tuple[Way, ...]:
    """Give all ways that are run in virtual time."""
    return (*PAPER, OS3_ASIDE, CONTINUOUS, *caches(k), *REPLICAS, LANES)


# An exact search in a process of its own, and the search that asks it.
#
# What travels are hidden states, ids and distances; the datastore lies on the disk, mapped by
# both processes, and its values are looked up here.


_HEAD: Final = struct.Struct("<II")  # queries, width


class BesideSearch:
    """Asks the process beside; the first k of what it finds are those of any search for k."""

    exact = True
    pure = True
    inline_encode = True

    def __init__(self, address: str, datastore: Datastore, k: int) -> None:
        """Ask the process at this address.

        Args:
            address: the process's.
            datastore: the one that it searches.
            k: how many neighbours a query gets.
        """
        self.k = k
        self.datastore = datastore
        self.size = len(datastore)
        self.signature: Hashable = ("beside", k, datastore.signature)
        self._line = Line(address)

    def encode(self, text: str) -> Query:
        """Refuse a text.

        Raises:
            InputError: always.
        """
        return encode_no_text(text)

    def search(self, queries: Sequence[Query]) -> list[Neighbours]:
        """Find the k nearest entries of each query in one round trip."""
        return self.search_wide(queries, self.k)

    def search_wide(self, queries: Sequence[Query], width: int) -> list[Neighbours]:
        """Find the `width` nearest entries of each query in one round trip; none for no query."""
        if not queries:
            return []
        hidden = hidden_states(queries, self.datastore.about.dimension)
        found = self._line.ask(_HEAD.pack(len(hidden), width) + hidden.tobytes())
        half = len(found) // 2
        ids = np.frombuffer(found[:half], dtype=np.int64).reshape(len(hidden), -1)
        distances = np.frombuffer(found[half:], dtype=np.float64).reshape(len(hidden), -1)
        return [
            Neighbours(near, self.datastore.values[near], far)
            for near, far in zip(ids, distances, strict=True)
        ]


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Search a datastore's folder in another process, on a core of its own; give its address.

    Raises:
        RalmSpecError: it did not come up.
    """
    with core_for_another() as core:
        only = () if core is None else (f"--core={core}",)
        with running(__name__, str(folder), str(folder), *only) as address:
            yield address


def serve(address: str, folder: Path) -> None:
    """Answer until whoever started this closes our stdin."""
    search = ExactSearch(Datastore.open(folder), threads=1)

    def reply(asked: bytes) -> bytes:
        count, width = _HEAD.unpack_from(asked)
        hidden = np.frombuffer(asked, dtype=np.float32, offset=_HEAD.size).reshape(count, -1)
        found = search.search_wide([Query("", one) for one in hidden], width)
        ids = b"".join(near.ids.tobytes() for near in found)
        return ids + b"".join(near.distances.tobytes() for near in found)

    answer(address, reply)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("address")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--core", type=int)
    options = parser.parse_args()
    keep_to(options.core)
    serve(options.address, options.folder)


# A search of a datastore as if it were on another machine: a given delay, and said to be one.


AWAY_S: Final = 0.005  # of one round trip: a server in the same region
AWAY: Final = f"{1000 * AWAY_S:g} ms away"


class AwaySearch:
    """Adds a delay to each round trip; the neighbours are the inner search's."""

    def __init__(self, inner: NeighbourSearch, delay_s: float = AWAY_S) -> None:
        """Put a search this far away."""
        self.inner = inner
        self.k = inner.k
        self.exact = inner.exact
        self.pure = inner.pure
        self.inline_encode = inner.inline_encode
        self.size = inner.size
        self.datastore = inner.datastore
        self.signature: Hashable = inner.signature
        self._delay_s = delay_s

    def encode(self, text: str) -> Query:
        """Do as the inner search does."""
        return self.inner.encode(text)

    def search(self, queries: Sequence[Query]) -> list[Neighbours]:
        """Wait, and search."""
        time.sleep(self._delay_s)
        return self.inner.search(queries)
