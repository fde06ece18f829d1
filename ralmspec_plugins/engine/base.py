"""Base classes of both engines, and of their executors."""

import time
from abc import abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from math import inf
from typing import Any, ClassVar, Generic, TypeVar

from ralmspec_plugins.config import Settings
from ralmspec_plugins.effects import Cancel, Extend, FormQuery, Need, Notice, Work
from ralmspec_plugins.engine.batch import DEFAULT_CONCURRENCY, BatchSession, check_concurrency
from ralmspec_plugins.engine.context import RequestContext
from ralmspec_plugins.engine.session import Session
from ralmspec_plugins.errors import InputError
from ralmspec_plugins.protocols import Retriever, Workload
from ralmspec_plugins.types import Request, as_request

IDLE_S = 0.005  # without a completion, after which speculators learn: what was started has begun
PATIENCE_S = 1.0  # maximum wait for a completion, after which the loop no longer gathers queries
GRACE_S = 5.0  # maximum wait for a segment to stop, when a request is cancelled
THREADS = 256  # upper bound; a thread is only started while all others are busy

EventsT = TypeVar("EventsT")
PiecesT = TypeVar("PiecesT")


class Executor:
    """Runs the work of one request; a subclass decides where."""

    def __init__(self, context: RequestContext, threads: ThreadPoolExecutor) -> None:
        """Create an executor with nothing in flight; the request's clock starts now."""
        self._context = context
        self._threads = threads
        self._began_s = time.perf_counter()

    def clock(self) -> float:
        """Return the seconds since the request began."""
        return time.perf_counter() - self._began_s

    def process(self, needs: Sequence[Need]) -> None:
        """Start work, and process notices.

        Generation is started last: it keeps Python's lock for milliseconds, which would
        delay the start of a search.
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
        """Start work; `only` if nothing else is started with it."""

    @abstractmethod
    def _cancel(self, need: Work) -> None:
        """Stop work that is no longer needed, if possible."""

    def _note(self, notice: Notice) -> None:
        self._context.note(notice)

    def _patience_s(self) -> float:
        """Return the seconds to wait for the next completion.

        Raises:
            DeadlineExceeded: The request's deadline has passed.
        """
        left_s = self._time_left_s()
        return PATIENCE_S if left_s is None else min(left_s, PATIENCE_S)

    def _time_left_s(self) -> float | None:
        """Return the seconds until the request's deadline; `None` if it has none.

        Raises:
            DeadlineExceeded: It has passed.
        """
        request, now_s = self._context.request, self.clock()
        request.check_deadline(now_s)
        return None if request.deadline_s is None else max(0.0, request.deadline_s - now_s)


def _writes(need: Need) -> bool:
    return isinstance(need, FormQuery | Extend)


class BaseEngine(Generic[EventsT, PiecesT]):
    """The workload, retriever and session of an engine, and its streams."""

    _pieces: ClassVar[Any]  # converts a stream of events to a stream of text
    _awaits: ClassVar[bool] = False  # asynchronous methods, which can be cancelled
    _session: Session

    def __init__(
        self,
        workload: Workload[Any],
        retriever: Retriever,
        settings: Settings | None = None,
        *,
        threads: ThreadPoolExecutor | None = None,
        known: "BaseEngine[Any, Any] | None" = None,
    ) -> None:
        """Create an engine for a workload and a retriever.

        Args:
            workload: defines the steps of a request.
            retriever: is searched by the steps' queries.
            settings: of speculation.
            threads: a pool of threads shared with other engines, which the caller shuts down.
            known: another engine over the same model and store, with the same speculators: what
                it has measured (times, and how often guesses are right) is known here from
                the start, and from then on both learn from the requests of each other.

        Raises:
            ConfigError: The settings do not fit the retriever.
        """
        measured = None if known is None else known._session  # noqa: SLF001 its own class
        stop_s = 0.0 if self._awaits and hasattr(retriever, "aencode") else inf
        self._session = Session(workload, retriever, settings, known=measured, stop_encode_s=stop_s)
        self._together: BatchSession = BatchSession(self._session)
        self._owns_threads = threads is None
        self._threads = threads or ThreadPoolExecutor(THREADS, thread_name_prefix="ralmspec")

    def stream(self, request: Request | str) -> PiecesT:
        """Return the answer as a stream of text; only settled text is emitted."""
        pieces: PiecesT = self._pieces(
            self._stream(self._session, as_request(request), reports=True)
        )
        return pieces

    def events(self, request: Request | str, *, reports: bool = True) -> EventsT:
        """Return the events of answering a request as a stream.

        Args:
            request: the request to answer.
            reports: whether unfinished segments are reported, so that their text
                settles incrementally.
        """
        return self._stream(self._session, as_request(request), reports=reports, watched=True)

    def invalidate(self) -> None:
        """Discard cached results, after a change of the index. Thread-safe.

        Entries of the query cache with this retriever's signature are removed; shared passage
        caches, and other speculators that have `invalidate`, are cleared. Hits of running
        requests are not shared with others. Those requests
        continue with their own hits.
        """
        self._session.invalidate()
        self._together.invalidate()

    def _stream(
        self,
        session: Session,
        request: Request,
        *,
        reports: bool,
        watched: bool = False,
        stoppable: bool = True,
    ) -> EventsT:
        session.check_process()
        return self._events(
            RequestContext(session, request, reports=reports, watched=watched, stoppable=stoppable)
        )

    @abstractmethod
    def _events(self, context: RequestContext) -> EventsT:
        """Return the stream of a request's events; work starts when it is read."""

    def _batch(
        self, requests: Sequence[Request | str], max_concurrency: int
    ) -> tuple[Session, list[Request], int]:
        """Return the session of a batch, its requests, and the maximum concurrency."""
        if isinstance(requests, str | Request):
            raise InputError(f"a batch must be a sequence of requests, got {requests!r:.200}")
        asked = [as_request(request) for request in requests]
        workers = check_concurrency(max_concurrency, len(asked))
        return self._together.session, asked, workers


__all__ = [
    "DEFAULT_CONCURRENCY",
    "GRACE_S",
    "IDLE_S",
    "PATIENCE_S",
    "THREADS",
    "BaseEngine",
    "Executor",
]
