"""The ways in which a text is continued with its neighbours: schedules, and their caches."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np

from ralmspec_plugins.bench.cases import PLAIN_NAME, Arm, ScheduleKind
from ralmspec_plugins.config import Settings
from ralmspec_plugins.knn.cache import CAPACITY, FOLLOWING, NeighbourCache
from ralmspec_plugins.knn.datastore import Datastore
from ralmspec_plugins.knn.neighbours import Neighbours
from ralmspec_plugins.protocols import Speculator
from ralmspec_plugins.records import Hits, Query
from ralmspec_plugins.stride import GAMMA_LIMIT


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
        following: entries behind each neighbour that the cache takes in: n of PAPERS 1.8.
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
        """Give it as JSON takes it, and as `bench.summary` reads it."""
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
OS3: Final = Way(name="OS3", kind="os3")  # as in the paper's KNN-LM: without overlap (PAPERS 1.7)
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
