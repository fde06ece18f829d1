"""What the calls of one host's object share: verifiers in front of stores, engines, threads."""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, TypeVar

from ralmspec_plugins.batching.verifier import Verifier
from ralmspec_plugins.config import Settings
from ralmspec_plugins.engine.aio import AsyncEngine
from ralmspec_plugins.engine.threads import THREADS, Engine
from ralmspec_plugins.protocols import Retriever, Workload

_MOST: Final = 64  # engines that are kept: one for each user's store and for each setting in use

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
        return Runtime, ()

    def _reset(self) -> None:
        self._process = os.getpid()
        self._threads: ThreadPoolExecutor | None = None
        self._verifiers: dict[int, Verifier] = {}  # by their number of lanes
        self._engines: OrderedDict[Hashable, Engines] = OrderedDict()
        self._hosts: dict[Hashable, Any] = {}

    def host(self, key: Hashable, make: Callable[[], HostT]) -> HostT:
        """Give the host's retriever of this key: copies share what is known of it, and counts.

        Raises:
            ConfigError: it cannot be made.
        """
        with self._lock:
            if key not in self._hosts:
                self._hosts[key] = make()
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
        """Give the engines of this key, making them when it is new.

        Args:
            key: names everything that the engines depend on, the retriever's signature too.
            retriever: what is searched.
            make: makes workload and settings for it.
            lanes: merged searches that may be out at a time; `None` to merge none.
            kept: whether another call may want them. Those that are not kept take no other's
                place; their threads are everybody's, so nobody has to close them.
        """
        with self._lock:
            if self._process != os.getpid():
                self._reset()
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
            retriever = self._verified(retriever, lanes)
        workload, settings = make(retriever)
        return Engines(
            Engine(workload, retriever, settings, threads=self._threads),
            AsyncEngine(workload, retriever, settings, threads=self._threads),
            self._threads,
        )

    def _verified(self, retriever: Retriever, lanes: int) -> Verifier:
        first = self._verifiers.get(lanes)
        if first is not None:
            return first.beside(retriever)
        return self._verifiers.setdefault(lanes, Verifier(retriever, lanes=lanes))

    @property
    def verifiers(self) -> tuple[Verifier, ...]:
        """The verifiers in use, for their statistics."""
        with self._lock:
            return tuple(self._verifiers.values())

    def close(self) -> None:
        """Let all threads go; whoever calls again starts anew."""
        with self._lock:
            verifiers, threads = tuple(self._verifiers.values()), self._threads
            self._reset()
        for verifier in verifiers:
            verifier.close()
        if threads is not None:
            threads.shutdown(wait=True)
