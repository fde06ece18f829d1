"""What all calls of one retriever in front of a host's share: a line to the store, and counts."""

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextvars import Context
from dataclasses import dataclass, replace
from typing import Any, Final, Generic, TypeVar

from ralmspec_plugins.batching.verifier import Verifier
from ralmspec_plugins.hosts.native import BatchMode, Look
from ralmspec_plugins.hosts.retriever import HostSearch
from ralmspec_plugins.hosts.signatures import token_of

_log = logging.getLogger(__name__)

_PLACES: Final = 64  # settings (users, filters) whose calls are merged
_WAYS: Final = 8  # sets of fields; more than one only where they are configurable
ValueT = TypeVar("ValueT")
SearchT = TypeVar("SearchT", bound=HostSearch[Any])


@dataclass(frozen=True, slots=True)
class Way(Generic[SearchT]):
    """How a retriever is wrapped: the fields of a `SpeculativeRetriever` that matter here.

    `search` makes of the host's retriever one that the core searches, given the settings
    `batch`, `side_by_side` and `pure`.
    """

    search: Callable[..., SearchT]
    retriever: Any
    batching: BatchMode
    max_batch: int
    lanes: int
    side_by_side: int
    pure: bool | None

    @property
    def key(self) -> Hashable:
        """Name the way; a retriever is only itself."""
        numbers = self.max_batch, self.lanes, self.side_by_side
        return token_of(self.retriever), self.batching, numbers, self.pure


@dataclass(frozen=True, slots=True)
class Place:
    """Where the calls of one set of settings meet."""

    host: HostSearch[Any]  # nobody's in particular, and so with nobody's handlers
    line: Verifier


@dataclass(frozen=True, slots=True)
class RetrieverStats:
    """What a retriever was asked, and what of it reached the host."""

    asked: int = 0
    remembered: int = 0  # answered by the memo
    round_trips: int = 0  # calls of the store or the wrapped retriever
    queries: int = 0  # in all of these calls


class Serving:
    """The running side of a `SpeculativeRetriever`. Thread-safe.

    No part of the retriever's value: all are equal, and a copy (pickled, deep)
    starts afresh.
    """

    def __init__(self) -> None:
        """Start with nothing running."""
        self._lock = threading.RLock()
        self._asked = RetrieverStats()
        self._warned = False
        self._reset()

    def _reset(self) -> None:
        self._process = os.getpid()
        self._hosts: OrderedDict[Hashable, Any] = OrderedDict()  # the last used at the end
        self._lines: OrderedDict[Hashable, Verifier] = OrderedDict()
        self._places: OrderedDict[Hashable, Place] = OrderedDict()

    def __reduce__(self) -> tuple[type["Serving"], tuple[()]]:
        """Travel as a new one."""
        return Serving, ()

    def __eq__(self, other: object) -> bool:
        """Be no part of a retriever's value."""
        return isinstance(other, Serving)

    def __hash__(self) -> int:
        """Agree with that."""
        return hash(Serving)

    def host(self, way: Way[SearchT]) -> SearchT:
        """Give the wrapped retriever as the core searches it."""
        if self._process != os.getpid():  # forked: the threads are not here
            self._reset()

        def make() -> SearchT:
            return Context().run(  # hosts take handlers from the context: here from nobody's
                way.search,
                way.retriever,
                batch=way.batching,
                side_by_side=way.side_by_side,
                pure=way.pure,
            )

        host: SearchT = self._kept(self._hosts, way.key, make, _WAYS)
        return host

    def place(self, way: Way[Any], asked: HostSearch[Any], look: Look) -> Place:
        """Give the place for all calls of one signature; `asked` is the first's own retriever."""

        def make() -> Place:
            host = Context().run(asked.nobodys, look)
            return Place(host, self._line(way).beside(host))

        if look.passing:
            return make()
        return self._kept(self._places, (way.key, look.signature), make, _PLACES)

    def _line(self, way: Way[Any]) -> Verifier:
        def make() -> Verifier:
            return Verifier(self.host(way), lanes=way.lanes, max_batch=way.max_batch)

        return self._kept(self._lines, way.key, make, _WAYS)

    def _kept(
        self,
        where: "OrderedDict[Hashable, ValueT]",
        key: Hashable,
        make: Callable[[], ValueT],
        most: int,
    ) -> ValueT:
        """Give what is kept under a key, or make it; the least recently used is forgotten."""
        with self._lock:
            if key not in where:
                where[key] = make()
            where.move_to_end(key)
            if len(where) > most:
                where.popitem(last=False)
            return where[key]

    def note(self, *, remembered: bool) -> None:
        """Count a question."""
        with self._lock:
            old = self._asked
            self._asked = replace(
                old, asked=old.asked + 1, remembered=old.remembered + int(remembered)
            )

    def warn_once(self, retriever: object) -> None:
        """Say that a retriever is passed straight through."""
        with self._lock:
            warned, self._warned = self._warned, True
        if not warned:
            _log.warning(
                "%s is not pure: its calls are passed on as they come, nothing is remembered",
                type(retriever).__name__,
            )

    @property
    def stats(self) -> RetrieverStats:
        """What has happened so far."""
        with self._lock:
            hosts = [host.stats for host in self._hosts.values()]
            return replace(
                self._asked,
                round_trips=sum(one.round_trips for one in hosts),
                queries=sum(one.queries for one in hosts),
            )

    def close(self) -> None:
        """Wait for searches in threads, and let the threads go."""
        with self._lock:
            lines = list(self._lines.values())
            self._lines.clear()
            self._places.clear()
        for line in lines:
            line.close()
