"""What both engines share: their parts, and how the needs of a request are handed out."""

import time
from abc import abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, Generic, TypeVar

from ralmspec_plugins.config import Settings
from ralmspec_plugins.effects import Cancel, Extend, FormQuery, Need, Notice, Work
from ralmspec_plugins.engine.batch import DEFAULT_CONCURRENCY, BatchSession, check_concurrency
from ralmspec_plugins.engine.session import RequestContext, Session, as_request
from ralmspec_plugins.protocols import Retriever, Workload
from ralmspec_plugins.types import Request

GRACE_S = 5.0  # how long an unwanted segment may take to notice, when a request is given up
THREADS = 256  # idle ones are reused; more are only started while all are busy

EventsT = TypeVar("EventsT")
PiecesT = TypeVar("PiecesT")


class Executor:
    """Has one request's work done; a subclass decides where."""

    def __init__(self, job: RequestContext, threads: ThreadPoolExecutor) -> None:
        """Begin with nothing out; the request's clock starts now."""
        self._job = job
        self._threads = threads
        self._began_s = time.perf_counter()

    def clock(self) -> float:
        """Return the seconds since the request began."""
        return time.perf_counter() - self._began_s

    def see_to(self, needs: Sequence[Need]) -> None:
        """Start work, and carry out notices.

        What writes comes last: it keeps Python's lock for milliseconds, in which a search
        would not even begin.
        """
        work = [need for need in needs if isinstance(need, Work)]
        for need in sorted(needs, key=_writes):
            if isinstance(need, Work):
                self._start(need, only=len(work) == 1)
            elif isinstance(need, Cancel):
                self._cancel(need.need)
            else:
                self._note(need)

    @abstractmethod
    def _start(self, need: Work, *, only: bool) -> None:
        """Start work; `only` if nothing else starts with it."""

    @abstractmethod
    def _cancel(self, need: Work) -> None:
        """Stop work that is no longer needed, if it can be stopped."""

    def _note(self, notice: Notice) -> None:
        self._job.note(notice)

    def _time_left_s(self) -> float | None:
        """Return the seconds until the request's deadline; `None` if it has none.

        Raises:
            DeadlineExceeded: It has passed.
        """
        request, now_s = self._job.request, self.clock()
        request.check_deadline(now_s)
        return None if request.deadline_s is None else max(0.0, request.deadline_s - now_s)


def _writes(need: Need) -> bool:
    return isinstance(need, FormQuery | Extend)


class BaseEngine(Generic[EventsT, PiecesT]):
    """The parts of an engine, and its streams."""

    _pieces: ClassVar[Any]  # makes a stream of text of a stream of events

    def __init__(
        self,
        workload: Workload[Any],
        retriever: Retriever,
        settings: Settings | None = None,
        *,
        threads: ThreadPoolExecutor | None = None,
    ) -> None:
        """Put a workload in front of a retriever.

        Args:
            workload: when to ask, what to ask, what the hits do.
            retriever: what is searched.
            settings: how to speculate.
            threads: where work is done, for engines that share them; the caller lets them go.

        Raises:
            ConfigError: The settings do not fit the retriever.
        """
        self._setup = Session(workload, retriever, settings)
        self._together: BatchSession = BatchSession(self._setup)
        self._owns_threads = threads is None
        self._threads = threads or ThreadPoolExecutor(THREADS, thread_name_prefix="ralmspec")

    def stream(self, request: Request | str) -> PiecesT:
        """Answer a request piece by piece; only text that stays is given out."""
        pieces: PiecesT = self._pieces(self._stream(self._setup, as_request(request), reports=True))
        return pieces

    def events(self, request: Request | str, *, reports: bool = True) -> EventsT:
        """Answer a request, and tell everything that happens on the way.

        Args:
            request: what is to be answered.
            reports: whether a segment is followed while it is written, so that its text
                settles bit by bit and not at once.
        """
        return self._stream(self._setup, as_request(request), reports=reports, watched=True)

    def invalidate(self) -> None:
        """Forget what was found, for when the index has changed. Thread-safe.

        The query cache forgets what was found under this retriever's signature; the passage
        caches that requests share are emptied, and so are other speculators that have
        `invalidate`. What a request that is running finds is not remembered for others. It
        goes on itself with what it has found.
        """
        self._setup.invalidate()
        self._together.invalidate()

    def _stream(
        self,
        setup: Session,
        request: Request,
        *,
        reports: bool,
        watched: bool = False,
        stoppable: bool = True,
    ) -> EventsT:
        setup.check_process()
        return self._events(
            RequestContext(setup, request, reports=reports, watched=watched, stoppable=stoppable)
        )

    @abstractmethod
    def _events(self, job: RequestContext) -> EventsT:
        """Return the stream of a request's events; nothing is done until it is read."""

    def _batch(
        self, requests: Sequence[Request | str], max_concurrency: int
    ) -> tuple[Session, list[Request], int]:
        """Return what a batch shares, its requests, and how many are answered at a time."""
        asked = [as_request(request) for request in requests]
        workers = check_concurrency(max_concurrency, len(asked))
        return self._together.setup, asked, workers


__all__ = ["DEFAULT_CONCURRENCY", "GRACE_S", "THREADS", "BaseEngine", "Executor"]
