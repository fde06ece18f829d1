"""How a host's requests run ahead: the settings that all integrations have, and what follows."""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias, TypeVar

from ralmspec_plugins.adapters.retriever import HostSearch
from ralmspec_plugins.adapters.retriever_state import RetrieverSnapshot
from ralmspec_plugins.batching.verifier import Verifier
from ralmspec_plugins.config import Settings
from ralmspec_plugins.engine.aio import AsyncEngine
from ralmspec_plugins.engine.base import THREADS
from ralmspec_plugins.engine.threads import Engine
from ralmspec_plugins.protocols import Retriever, Workload
from ralmspec_plugins.scheduling.cost_model import MIN_ACCEPTANCE_RATE
from ralmspec_plugins.scheduling.schedules import Continuous, Schedule
from ralmspec_plugins.speculators.passage_cache import SharedPassageCache
from ralmspec_plugins.speculators.query_cache import QueryCache
from ralmspec_plugins.speculators.replica import Replica
from ralmspec_plugins.workloads import OneShot, Sentences
from ralmspec_plugins.workloads.registry import WorkloadMaker, WorkloadName, workload_of

__all__ = [
    "Engines",
    "OwnPool",
    "Runtime",
    "Speculation",
    "WorkloadMaker",
    "WorkloadName",
    "is_one_shot",
    "most_tokens",
    "workload_of",
]

# What the calls of one host's object share: verifiers in front of stores, engines, threads.


_MOST: Final = 64  # engines that are kept: one for each user's store and for each setting in use
_MAX_BATCH: Final = 64  # queries in a merged search

HostT = TypeVar("HostT")
Parts: TypeAlias = tuple[Workload[Any], Settings]


@dataclass(frozen=True, slots=True)
class Engines:
    """The two engines over one retriever with the same settings."""

    sync: Engine
    asynchronous: AsyncEngine
    threads: Executor  # in which they have work done


class Runtime:
    """Made when the first call comes, anew in a forked process, and shared by all copies.

    Hosts copy their objects (LangChain a runnable, for each call whose config sets a
    field). The copies have the same runtime, so verifiers, threads and what was learned stay.
    """

    def __init__(self) -> None:
        """Start with nothing."""
        self._lock = threading.Lock()
        self._reset()

    def __reduce__(self) -> tuple[type["Runtime"], tuple[()]]:
        """Be copied and pickled as a new one: threads belong to one process, and one owner."""
        return type(self), ()

    def _reset(self) -> None:
        self._process = os.getpid()
        self._hosts: OrderedDict[Hashable, Any] = OrderedDict()  # the last used at the end
        self._stop()

    def _stop(self) -> None:
        self._threads: ThreadPoolExecutor | None = None
        self._verifiers: dict[tuple[int, int], Verifier] = {}  # by their lanes and largest batch
        self._engines: OrderedDict[Hashable, Engines] = OrderedDict()

    def _check_process(self) -> None:
        if self._process != os.getpid():  # forked: the threads are not here
            self._reset()

    def host(self, key: Hashable, make: Callable[[], HostT]) -> HostT:
        """Return the host's retriever of this key: copies share what is known of it, and counts.

        Raises:
            ConfigError: it cannot be made.
        """
        with self._lock:
            self._check_process()
            if key not in self._hosts:
                self._hosts[key] = make()
                if len(self._hosts) > _MOST:
                    self._hosts.popitem(last=False)
            self._hosts.move_to_end(key)
            host: HostT = self._hosts[key]
            return host

    def engines(
        self,
        key: Hashable,
        retriever: Retriever,
        make: Callable[[Retriever], Parts],
        lanes: int | None,
        *,
        kept: bool = True,
    ) -> Engines:
        """Return the engines of this key, making them when it is new.

        Args:
            key: names everything that the engines depend on, the retriever's signature too.
            retriever: what is searched.
            make: makes workload and settings for it.
            lanes: merged searches that may be out at a time; `None` to merge none.
            kept: whether another call may want them. Those that are not kept take no other's
                place; their threads are everybody's, so nobody has to close them.
        """
        with self._lock:
            self._check_process()
            if not kept:
                return self._made(retriever, make, lanes)
            if key not in self._engines:
                self._engines[key] = self._made(retriever, make, lanes)
                if len(self._engines) > _MOST:
                    self._engines.popitem(last=False)
            self._engines.move_to_end(key)
            return self._engines[key]

    def _made(
        self, retriever: Retriever, make: Callable[[Retriever], Parts], lanes: int | None
    ) -> Engines:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="ralmspec")
        if lanes is not None:
            retriever = self._verifier(retriever, lanes, _MAX_BATCH).beside(retriever)
        workload, settings = make(retriever)
        return Engines(
            Engine(workload, retriever, settings, threads=self._threads),
            AsyncEngine(workload, retriever, settings, threads=self._threads),
            self._threads,
        )

    def verifier(self, retriever: Retriever, lanes: int, max_batch: int) -> Verifier:
        """Return the verifier with such lanes, which is put in front of this retriever if it is new.

        Raises:
            ConfigError: a number that would let nothing through.
        """
        with self._lock:
            self._check_process()
            return self._verifier(retriever, lanes, max_batch)

    def _verifier(self, retriever: Retriever, lanes: int, max_batch: int) -> Verifier:
        key = lanes, max_batch
        if key not in self._verifiers:
            self._verifiers[key] = Verifier(retriever, lanes=lanes, max_batch=max_batch)
        return self._verifiers[key]

    @property
    def verifiers(self) -> tuple[Verifier, ...]:
        """The verifiers in use, for their statistics."""
        with self._lock:
            return tuple(self._verifiers.values())

    def close(self) -> None:
        """Let all threads go; whoever calls again starts anew."""
        with self._lock:
            verifiers, threads = tuple(self._verifiers.values()), self._threads
            self._stop()
        for verifier in verifiers:
            verifier.close()
        if threads is not None:
            threads.shutdown(wait=True)


_MOST_TOKENS: Final = 256
_MOST_PREFETCHED: Final = 80  # 20 k for a k of 4
_WORTH_A_CALL: Final = 0.3  # share of right guesses below which no call is made on one


class OwnPool(SharedPassageCache):
    """The pool of an integration's object, where its user gave none.

    Requests share it only over exactly known classes with plain settings. Other code may
    read whose turn it is in places that no signature names: then each request has a pool of
    its own, so that no passage of one tenant is shown to the model of another.
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
        may_guess: says the same at any time, also within a request that runs.
    """

    speculate: bool = True
    schedule: Schedule | None = None
    prefetch: int | None = None
    pool: SharedPassageCache | None = None
    memo: QueryCache | None = None
    side_by_side: int = 8
    calls_cost: bool = True
    guesses: bool = True
    may_guess: Callable[[], bool] | None = None

    def one_by_one(self) -> "Speculation":
        """Return the same with one search out at a time."""
        schedule = self.schedule
        if isinstance(schedule, Continuous):
            schedule = replace(schedule, lanes=1)
        return replace(self, schedule=schedule, side_by_side=1)

    def engines(
        self,
        runtime: Runtime,
        key: Hashable,
        host: HostSearch[Any],
        workload: Workload[Any],
        replica: Retriever | None = None,
    ) -> Engines:
        """Return the engines of a host's object for one call.

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

    def can_guess(self, look: RetrieverSnapshot, replica: Retriever | None) -> bool:
        """Whether anything can be known of a request's first search before it returns.

        Args:
            look: the retriever as it is now.
            replica: a near copy of it, that guesses.
        """
        if not self.speculate or not look.pure:
            return False
        if self.memo is not None:
            return True
        return self.guesses and (replica is not None or self._pool(look) is not None)

    def _pool(self, look: RetrieverSnapshot) -> SharedPassageCache | None:
        """Return the pool that a call shares with others: one of settings that come again."""
        if look.passing or (isinstance(self.pool, OwnPool) and not look.hosts_own):
            return None
        return self.pool

    def schedule_for(self, *, looked_into: bool) -> Schedule:
        """Return the schedule over a store that is searched in batches, or over a black box."""
        if self.schedule is not None:
            return self.schedule
        lanes = 1 if looked_into else self.side_by_side
        return Continuous(
            lanes=lanes,
            min_acceptance_rate=_WORTH_A_CALL if self.calls_cost else MIN_ACCEPTANCE_RATE,
        )

    def merged_lanes(self, schedule: Schedule, *, looked_into: bool, pure: bool) -> int | None:
        """Return how many merged searches may be out at a time; `None` to merge none.

        Merging single calls would only make them wait for each other.
        """
        if not looked_into or not pure:
            return None
        return schedule.lanes if isinstance(schedule, Continuous) else 1

    def settings(
        self, retriever: Retriever, schedule: Schedule, replica: Retriever | None = None
    ) -> Settings:
        """Return the engine's settings over a retriever.

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
                may_guess=self.may_guess,
            )
        pools = () if self.pool is None else (self.pool.of(retriever),)
        return Settings(
            schedule=schedule,
            prefetch=prefetch,
            memo=self.memo,
            speculate=self.speculate,
            speculators=(*pools, Replica(replica, of=retriever, reencode=True)),
            may_guess=self.may_guess,
        )


def is_one_shot(chosen: object) -> bool:
    """Return whether a workload, by its name or what makes it, is one retrieval and one call."""
    return chosen == "one_shot" or getattr(chosen, "func", chosen) is OneShot


def most_tokens(workload: Workload[Any]) -> int:
    """Return an answer's length: of sentences, as much as the workload's own bounds allow."""
    if isinstance(workload, Sentences):
        return workload.tokens * workload.max_sentences
    return _MOST_TOKENS


def _prefetch(retriever: Retriever) -> int | None:
    """Bound how many documents a search brings: each is a Python object, made and copied."""
    k = getattr(retriever, "k", None)
    return None if k is None or 20 * k <= _MOST_PREFETCHED else max(_MOST_PREFETCHED, 2 * k)
