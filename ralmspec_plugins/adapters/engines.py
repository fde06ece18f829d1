"""Settings of speculation shared by all integrations, and the engines made from them."""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
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
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.protocols import Retriever, Workload
from ralmspec_plugins.scheduling.cost_model import MIN_ACCEPTANCE_RATE
from ralmspec_plugins.scheduling.model_queue import ModelQueue
from ralmspec_plugins.scheduling.schedules import Continuous, Schedule
from ralmspec_plugins.speculators.passage_cache import SharedPassageCache
from ralmspec_plugins.speculators.query_cache import QueryCache
from ralmspec_plugins.speculators.replica import Replica
from ralmspec_plugins.waste import WasteShare
from ralmspec_plugins.workloads import IterRetGen, OneShot, Sentences
from ralmspec_plugins.workloads.registry import WorkloadMaker, WorkloadName, workload_of

__all__ = [
    "Engines",
    "OwnPool",
    "Runtime",
    "Speculation",
    "WorkloadMaker",
    "WorkloadName",
    "check_reads_logprobs",
    "is_one_shot",
    "most_tokens",
    "shared_pool",
    "workload_of",
    "writes_whole",
]

# The state shared by all calls of one host object: verifiers, engines, threads.


_MOST: Final = 64  # cached engines: one for each user's store and each setting in use
_MAX_BATCH: Final = 64  # queries in a merged search

HostT = TypeVar("HostT")
SharedT = TypeVar("SharedT")
Parts: TypeAlias = tuple[Workload[Any], Settings]


@dataclass(frozen=True, slots=True)
class Engines:
    """The two engines of one retriever with the same settings."""

    sync: Engine
    asynchronous: AsyncEngine
    threads: Executor  # in which their work runs


class Runtime:
    """The shared state of a host object and its copies, created again in a forked process.

    Hosts copy their objects (LangChain a runnable, for each call whose config sets a
    field). The copies have the same runtime, so verifiers, threads and caches persist.
    """

    def __init__(self) -> None:
        """Create an empty runtime."""
        self._lock = threading.Lock()
        self._reset()

    def __reduce__(self) -> tuple[type["Runtime"], tuple[()]]:
        """Copy and pickle as a new runtime: threads belong to one process, and one owner."""
        return type(self), ()

    def _reset(self) -> None:
        self._process = os.getpid()
        self._hosts: OrderedDict[Hashable, Any] = OrderedDict()  # the last used at the end
        self._shared: OrderedDict[Hashable, Any] = OrderedDict()  # likewise
        self._stop()

    def _stop(self) -> None:
        self._threads: ThreadPoolExecutor | None = None
        self._verifiers: dict[tuple[int, int], Verifier] = {}  # by lanes and batch size
        self._engines: OrderedDict[Hashable, Engines] = OrderedDict()

    def _check_process(self) -> None:
        if self._process != os.getpid():  # forked: the threads do not exist here
            self._reset()

    def host(self, key: Hashable, make: Callable[[], HostT]) -> HostT:
        """Return the retriever of this key, created on first use: copies share its counts.

        Raises:
            ConfigError: it cannot be created.
        """
        with self._lock:
            self._check_process()
            return _cached(self._hosts, key, make)

    def shared(self, key: Hashable, make: Callable[[], SharedT]) -> SharedT:
        """Return any other object of this key, created on first use and shared by copies.

        Raises:
            ConfigError: it cannot be created.
        """
        with self._lock:
            self._check_process()
            return _cached(self._shared, key, make)

    def model_queue(self, key: Hashable, max_concurrent_calls: int | None) -> ModelQueue | None:
        """Return the queue of a model, which all engines over it share; `None` without a limit.

        Args:
            key: identifies the model.
            max_concurrent_calls: the maximum number of its calls at once.

        Raises:
            ConfigError: it is no whole number of at least 1.
        """
        if max_concurrent_calls is None:
            return None
        name = ("model queue", key, max_concurrent_calls)
        return self.shared(name, lambda: ModelQueue(max_concurrent_calls))

    def waste_share(self, max_wasted_share: float | None) -> WasteShare | None:
        """Return the count of discarded calls of all engines; `None` without a limit.

        Raises:
            ConfigError: it is no number from 0 to 1.
        """
        if max_wasted_share is None:
            return None
        return self.shared(("waste", max_wasted_share), lambda: WasteShare(max_wasted_share))

    def engines(
        self,
        key: Hashable,
        retriever: Retriever,
        make: Callable[[Retriever], Parts],
        lanes: int | None,
        *,
        kept: bool = True,
    ) -> Engines:
        """Return the engines of this key, created on first use.

        Args:
            key: identifies everything that the engines depend on, including the retriever's
                signature.
            retriever: the retriever to search.
            make: returns the workload and settings for it.
            lanes: the maximum number of merged searches in parallel; `None` to merge none.
            kept: whether another call may need them. Others are not cached; they use shared
                threads, so they need not be closed.
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
        threads = self._threads
        sync = Engine(workload, retriever, settings, threads=threads)
        asynchronous = AsyncEngine(workload, retriever, settings, threads=threads, known=sync)
        return Engines(sync, asynchronous, threads)

    def verifier(self, retriever: Retriever, lanes: int, max_batch: int) -> Verifier:
        """Return a verifier of this retriever, which shares the lanes of all with these numbers.

        Raises:
            ConfigError: a number is out of range.
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
        """Release all threads; a later call creates new ones."""
        with self._lock:
            verifiers, threads = tuple(self._verifiers.values()), self._threads
            self._stop()
        for verifier in verifiers:
            verifier.close()
        if threads is not None:
            threads.shutdown(wait=True)


_MOST_TOKENS: Final = 256
_REWRITING: Final = ("iter_retgen", "iter-retgen")


def _cached(
    objects: OrderedDict[Hashable, Any], key: Hashable, make: Callable[[], SharedT]
) -> SharedT:
    """Return an object by its key, created on first use; the least recently used is evicted."""
    if key not in objects:
        objects[key] = make()
        if len(objects) > _MOST:
            objects.popitem(last=False)
    objects.move_to_end(key)
    found: SharedT = objects[key]
    return found


_MOST_PREFETCHED: Final = 80  # 20 k for a k of 4
_WORTH_A_CALL: Final = 0.3  # acceptance rate below which no speculative call is made


class OwnPool(SharedPassageCache):
    """The default passage cache of an integration's object.

    Requests share it only over exactly known classes with plain settings. Other code may
    read the current user from places outside the signature: then each request has its own
    cache, so that no passage of one tenant reaches the model of another.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle as an empty cache."""
        return OwnPool, ()


def shared_pool(
    pool: SharedPassageCache | None, look: RetrieverSnapshot
) -> SharedPassageCache | None:
    """Return the passage cache that a call shares with others, if its settings may recur."""
    if look.passing or (isinstance(pool, OwnPool) and not look.hosts_own):
        return None
    return pool


@dataclass(frozen=True, slots=True, kw_only=True)
class Speculation:
    """Settings of speculation for a host's requests.

    Args:
        speculate: False: the plain loop.
        schedule: `Continuous` by default, with lanes if single calls run in parallel.
        prefetch: the number of passages of a wider search, for the passage cache.
        pool: the passage cache; `None`: each request has its own.
        memo: the query cache, whose results are not verified.
        side_by_side: the maximum number of single calls of the retriever in parallel.
        calls_cost: whether a wrong guess costs a call that may be billed.
        guesses: False: no segment precedes its hits, which may come from the query cache.
        may_guess: returns the same at run time, also during a request.
        max_wasted_tokens: tokens of a request's discarded calls of the model.
        max_wasted_encodings: encodings of a request's discarded queries.
        max_wasted_share: the share of discarded calls of the model in all requests.
        model_queue: in which calls of the model wait for each other, confirmed ones first.
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
    max_wasted_tokens: int | None = None
    max_wasted_encodings: int | None = None
    max_wasted_share: WasteShare | None = None
    model_queue: ModelQueue | None = None

    def one_by_one(self) -> "Speculation":
        """Return the same settings with one search at a time."""
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
        """Return the engines of a host object for one call.

        Args:
            runtime: the shared state of the object's calls.
            key: identifies everything that the engines depend on, besides the retriever.
            host: the retriever, with the settings of this call.
            workload: the workload.
            replica: a cheap copy of the retriever, for guesses.

        Raises:
            ConfigError: the settings are incompatible with each other or the retriever.
        """
        look = host.look()
        looked_into = look.native is not None
        schedule = self.schedule_for(looked_into=looked_into)
        merged = self.merged_lanes(schedule, looked_into=looked_into, pure=look.pure)
        own = replace(self, pool=shared_pool(self.pool, look))

        def parts(retriever: Retriever) -> Parts:
            return workload, own.settings(retriever, schedule, replica)

        name = key, host.signature
        return runtime.engines(name, host, parts, merged, kept=not look.passing)

    def can_guess(self, look: RetrieverSnapshot, replica: Retriever | None) -> bool:
        """Return whether a request's first search can be guessed or is known.

        Args:
            look: a snapshot of the retriever.
            replica: a cheap copy of the retriever, for guesses.
        """
        if not self.speculate or not look.pure:
            return False
        if self.memo is not None:
            return True
        return self.guesses and (replica is not None or shared_pool(self.pool, look) is not None)

    def schedule_for(self, *, looked_into: bool) -> Schedule:
        """Return the schedule over a store with batch search, or over an opaque retriever."""
        if self.schedule is not None:
            return self.schedule
        lanes = 1 if looked_into else self.side_by_side
        return Continuous(
            lanes=lanes,
            min_acceptance_rate=_WORTH_A_CALL if self.calls_cost else MIN_ACCEPTANCE_RATE,
        )

    def merged_lanes(self, schedule: Schedule, *, looked_into: bool, pure: bool) -> int | None:
        """Return the maximum number of merged searches in parallel; `None` to merge none.

        Single calls are not merged, since they would only wait for each other.
        """
        if not looked_into or not pure:
            return None
        return schedule.lanes if isinstance(schedule, Continuous) else 1

    def settings(
        self, retriever: Retriever, schedule: Schedule, replica: Retriever | None = None
    ) -> Settings:
        """Return the engine's settings for a retriever.

        Raises:
            ConfigError: they are incompatible with each other or the retriever.
        """
        basic = Settings(
            schedule=schedule,
            memo=self.memo,
            speculate=self.speculate,
            max_wasted_tokens=self.max_wasted_tokens,
            max_wasted_encodings=self.max_wasted_encodings,
            max_wasted_share=self.max_wasted_share,
            model_queue=self.model_queue,
        )
        if not self.guesses:  # and nothing is prefetched for guesses
            return replace(basic, prefetch=1, speculators=())
        prefetch = _prefetch(retriever) if self.prefetch is None else self.prefetch
        guessing = replace(basic, prefetch=prefetch, may_guess=self.may_guess)
        if replica is None:
            return replace(guessing, pool=self.pool)
        pools = () if self.pool is None else (self.pool.of(retriever),)
        replicated = Replica(replica, of=retriever, reencode=True)
        return replace(guessing, speculators=(*pools, replicated))


def is_one_shot(chosen: object) -> bool:
    """Return whether a workload, by its name or factory, is one retrieval and one call."""
    return chosen == "one_shot" or getattr(chosen, "func", chosen) is OneShot


def check_reads_logprobs(chosen: object, logprobs: Mapping[str, Any] | None) -> None:
    """Check that a workload reads the log-probabilities that are to be requested for it.

    Raises:
        ConfigError: it is a named one that reads none.
    """
    if logprobs and (chosen is None or isinstance(chosen, str)) and chosen != "flare":
        raise ConfigError(
            f"logprobs cannot be used with workload={chosen or 'sentences'!r}, which reads no "
            "log-probabilities: remove this setting, or use workload='flare'"
        )


def writes_whole(chosen: object) -> bool:
    """Return whether each segment of a workload is a whole answer, which needs no limit."""
    return (
        is_one_shot(chosen) or chosen in _REWRITING or getattr(chosen, "func", chosen) is IterRetGen
    )


def most_tokens(workload: Workload[Any]) -> int:
    """Return the maximum number of tokens of an answer by the workload's own limits."""
    if isinstance(workload, Sentences):
        return workload.tokens * workload.max_sentences
    return _MOST_TOKENS


def _prefetch(retriever: Retriever) -> int | None:
    """Return an upper bound of the documents per search: each is a Python object to be copied."""
    k = getattr(retriever, "k", None)
    return None if k is None or 20 * k <= _MOST_PREFETCHED else max(_MOST_PREFETCHED, 2 * k)
