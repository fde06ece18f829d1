"""How a host's requests run ahead: the settings that all integrations have, and what follows."""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeAlias, get_args

from ralmspec_plugins.config import Settings
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.hosts.native import Look
from ralmspec_plugins.hosts.retriever import HostSearch
from ralmspec_plugins.hosts.runtime import Engines, Parts, Runtime
from ralmspec_plugins.protocols import LanguageModel, Retriever, Workload
from ralmspec_plugins.scheduling.cost_model import HOPELESS
from ralmspec_plugins.scheduling.schedules import Continuous, Schedule
from ralmspec_plugins.speculators.passage_cache import SharedPool
from ralmspec_plugins.speculators.query_cache import Memo
from ralmspec_plugins.speculators.replica import Replica
from ralmspec_plugins.workloads import Interval, OneShot, Sentences

WorkloadName: TypeAlias = Literal["one_shot", "sentences", "interval"]
WorkloadMaker: TypeAlias = Callable[[LanguageModel[Any]], Workload[Any]]

_WORKLOADS: Final[Mapping[str, WorkloadMaker]] = {
    "one_shot": OneShot,
    "sentences": Sentences,  # type: ignore[dict-item]  # models say themselves whether they can
    "interval": Interval,
}
_MOST_TOKENS: Final = 256
_MOST_PREFETCHED: Final = 80  # 20 k for a k of 4
_WORTH_A_CALL: Final = 0.3  # share of right guesses below which no call is made on one


class OwnPool(SharedPool):
    """The pool of an integration's object, where its user gave none.

    Requests share it only where the host's own code alone says what is found. Other code may
    read whose turn it is in places that no signature names: then each request has a pool of
    its own, lest one tenant's passages be shown to the model of another.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        """Be copied and pickled empty."""
        return OwnPool, ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Speculation:
    """How far requests run ahead, and with what they guess.

    Args:
        speculate: False: the plain loop.
        schedule: `Continuous` by default, with lanes if single calls go side by side.
        prefetch: passages that a wider search brings to the pool, where that is possible.
        pool: passages seen so far; `None`: each request has its own.
        memo: answers of former searches, trusted.
        side_by_side: single calls of the retriever at a time.
        calls_cost: whether a wrong guess costs a call that may be paid for.
        guesses: False: nothing is written before its search is known. The memo may know it.
    """

    speculate: bool = True
    schedule: Schedule | None = None
    prefetch: int | None = None
    pool: SharedPool | None = None
    memo: Memo | None = None
    side_by_side: int = 8
    calls_cost: bool = True
    guesses: bool = True

    def engines(
        self,
        runtime: Runtime,
        key: Hashable,
        host: HostSearch[Any],
        workload: Workload[Any],
        replica: Retriever | None = None,
    ) -> Engines:
        """Give the engines of a host's object for one call.

        Args:
            runtime: what the object's calls share.
            key: names everything that the engines depend on, besides the retriever.
            host: the retriever, with the settings of this call.
            workload: what is computed.
            replica: a near copy of the retriever, that guesses.

        Raises:
            ConfigError: the settings do not fit each other or the retriever.
        """
        look = host.look()
        looked_into = look.native is not None
        schedule = self.schedule_for(looked_into=looked_into)
        merged = self.merged_lanes(schedule, looked_into=looked_into, pure=look.pure)
        own = replace(self, pool=self._pool(look))

        def parts(retriever: Retriever) -> Parts:
            return workload, own.settings(retriever, schedule, replica)

        name = key, host.signature
        return runtime.engines(name, host, parts, merged, kept=not look.passing)

    def _pool(self, look: Look) -> SharedPool | None:
        """Give the pool that a call shares with others: one of settings that come again."""
        if look.passing or (isinstance(self.pool, OwnPool) and not look.hosts_own):
            return None
        return self.pool

    def schedule_for(self, *, looked_into: bool) -> Schedule:
        """Give the schedule over a store that is searched in batches, or over a black box."""
        if self.schedule is not None:
            return self.schedule
        lanes = 1 if looked_into else self.side_by_side
        return Continuous(lanes=lanes, least_right=_WORTH_A_CALL if self.calls_cost else HOPELESS)

    def merged_lanes(self, schedule: Schedule, *, looked_into: bool, pure: bool) -> int | None:
        """Say how many merged searches may be out at a time; `None` to merge none.

        Merging single calls would only make them wait for each other.
        """
        if not looked_into or not pure:
            return None
        return schedule.lanes if isinstance(schedule, Continuous) else 1

    def settings(
        self, retriever: Retriever, schedule: Schedule, replica: Retriever | None = None
    ) -> Settings:
        """Give the engine's settings over a retriever.

        Raises:
            ConfigError: they do not fit each other or the retriever.
        """
        if not self.guesses:  # and nothing is fetched that only guesses would need
            return Settings(
                schedule=schedule,
                prefetch=1,
                memo=self.memo,
                speculate=self.speculate,
                speculators=(),
            )
        prefetch = _prefetch(retriever) if self.prefetch is None else self.prefetch
        if replica is None:
            return Settings(
                schedule=schedule,
                prefetch=prefetch,
                memo=self.memo,
                speculate=self.speculate,
                pool=self.pool,
            )
        pools = () if self.pool is None else (self.pool.of(retriever),)
        return Settings(
            schedule=schedule,
            prefetch=prefetch,
            memo=self.memo,
            speculate=self.speculate,
            speculators=(*pools, Replica(replica, of=retriever, reencode=True)),
        )


def workload_of(chosen: WorkloadName | WorkloadMaker, lm: LanguageModel[Any]) -> Workload[Any]:
    """Make a workload, given its name or what makes it.

    Raises:
        ConfigError: there is none of this name.
    """
    if not isinstance(chosen, str):
        return chosen(lm)
    if chosen not in _WORKLOADS:
        raise ConfigError(
            f"unknown workload {chosen!r}; known are {', '.join(get_args(WorkloadName))}"
        )
    return _WORKLOADS[chosen](lm)


def is_one_shot(chosen: object) -> bool:
    """Say whether a workload, by its name or what makes it, is one retrieval and one call."""
    return chosen == "one_shot" or getattr(chosen, "func", chosen) is OneShot


def most_tokens(workload: Workload[Any]) -> int:
    """Give an answer's length: of sentences, as much as the workload's own bounds allow."""
    if isinstance(workload, Sentences):
        return workload.tokens * workload.max_sentences
    return _MOST_TOKENS


def _prefetch(retriever: Retriever) -> int | None:
    """Bound how many documents a search brings: each is a Python object, made and copied."""
    k = getattr(retriever, "k", None)
    return None if k is None or 20 * k <= _MOST_PREFETCHED else max(_MOST_PREFETCHED, 2 * k)
