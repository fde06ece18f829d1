"""Runs merged searches in lanes, in threads or as asyncio tasks."""

import asyncio
import contextlib
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context, ContextVar
from statistics import median, quantiles

from ralmspec_plugins.batching.queue import Batch, PendingCall, RequestQueue, SearchFn
from ralmspec_plugins.errors import Closed, ConfigError, Overloaded
from ralmspec_plugins.types import Hits, Query, VerifierStats

# Statistics of merged searches.


_WAITS_KEPT = 4096  # latest calls in the median and quantile


class Counters:
    """Counts calls by outcome, searches by size, and the waiting times of calls."""

    def __init__(self) -> None:
        """Create counters at 0."""
        self.counts: Counter[str] = Counter()
        self.batch_sizes: Counter[int] = Counter()
        self.waits_s: deque[float] = deque(maxlen=_WAITS_KEPT)

    def stats(self, *, waiting: int, running: int) -> VerifierStats:
        """Return the statistics."""
        waits_s = tuple(self.waits_s) or (0.0,)
        sizes = dict(sorted(self.batch_sizes.items()))
        return VerifierStats(
            calls=self.counts["calls"],
            searches=sum(sizes.values()),
            queries=sum(size * count for size, count in sizes.items()),
            batch_sizes=sizes,
            waited_median_s=median(waits_s),
            waited_p95_s=_p95(waits_s),
            repeated=self.counts["repeated"],
            given_up=self.counts["given_up"],
            refused=self.counts["refused"],
            waiting=waiting,
            running=running,
        )


def _p95(waits_s: Sequence[float]) -> float:
    if len(waits_s) == 1:
        return waits_s[0]
    return quantiles(waits_s, n=20, method="inclusive")[-1]


# The dispatchers whose searches run this code: nested searches must not wait for a lane.
_enclosing: "ContextVar[tuple[Dispatcher, ...]]" = ContextVar("ralmspec_inside_lanes", default=())


class Dispatcher:
    """Runs at most `lanes` searches in parallel; queued calls are merged into the next one.

    There is no timer. Thread-safe, also with several event loops. An
    awaited search is a separate task, so that the cancellation of one caller does not end it
    for the others; it is cancelled with its last caller.
    """

    def __init__(
        self, lanes: int, max_batch: int, max_waiting: int, patience_s: float | None
    ) -> None:
        """Create an idle dispatcher; threads start with the first search that needs one."""
        self._free = self._lanes = lanes
        self._max_batch = max_batch
        forever = patience_s is None or patience_s > threading.TIMEOUT_MAX
        self._patience_s = None if forever else patience_s
        self._queue = RequestQueue(max_waiting)
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(lanes, thread_name_prefix="ralmspec-verifier")
        self._awaited: dict[Batch, asyncio.Task[None] | None] = {}  # None: not started yet
        self._gone: deque[tuple[PendingCall, str]] = deque()  # cancelled calls, not processed yet
        self._closed = False
        self._process = os.getpid()
        self._counters = Counters()

    def search(
        self, group: Hashable, search_fn: SearchFn, queries: Sequence[Query]
    ) -> list[Hits] | None:
        """Search queries together with those of other callers, and wait in this thread.

        Returns:
            The hits of each query; `None` if the caller has to search separately: nothing can be
            started, or the caller would wait for itself.

        Raises:
            Overloaded: the queue was full until the timeout.
            BaseException: the error of a search of this caller only.
        """
        if self in _enclosing.get() or self._waits_on_this_thread():
            return None
        ended = threading.Event()
        call = self._join(group, search_fn, queries, ended.set)
        try:
            if not ended.wait(self._patience_s):
                self._check_admission(call)
                ended.wait()
        except BaseException as error:
            self._give_up(call, error)
            raise
        return _outcome(call)

    async def asearch(
        self, group: Hashable, search_fn: SearchFn, queries: Sequence[Query]
    ) -> list[Hits] | None:
        """Search queries as `search` does, without blocking the event loop."""
        if self in _enclosing.get():
            return None
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: no caller waits there
                loop.call_soon_threadsafe(ended.set)

        call = self._join(group, search_fn, queries, wake)
        try:
            try:
                async with asyncio.timeout(self._patience_s):
                    await ended.wait()
            except TimeoutError:
                self._check_admission(call)
                await ended.wait()
        except BaseException as error:
            self._give_up(call, error)
            raise
        return _outcome(call)

    def _join(
        self,
        group: Hashable,
        search_fn: SearchFn,
        queries: Sequence[Query],
        wake: Callable[[], None],
    ) -> PendingCall:
        if os.getpid() != self._process:
            raise ConfigError(
                "this verifier was created before the process forked, and its threads do not "
                "exist here; create one in each worker process"
            )
        call = PendingCall(
            group=group, search_fn=search_fn, queries=queries, came_s=time.perf_counter(), wake=wake
        )
        with self._lock:
            if self._closed:
                raise Closed("verifier")
            self._counters.counts["calls"] += 1
            self._queue.join(call)
            ended = self._fill()
        _wake(ended)
        return call

    def _waits_on_this_thread(self) -> bool:
        """Return whether this thread runs an event loop whose searches it would block."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return False
        with self._lock:
            out = any(batch.search_fn.loop is loop for batch in self._awaited)
            return out or self._queue.waits_on(loop)

    def _check_admission(self, call: PendingCall) -> None:
        with self._lock:
            if self._queue.awaits_admission(call):
                raise Overloaded(
                    f"{self._queue.size} queries are waiting to be searched, and there was no "
                    f"room for {len(call.queries)} more within {self._patience_s} s; reduce "
                    "the load, or raise max_waiting, patience_s or lanes"
                )

    def _give_up(self, call: PendingCall, error: BaseException) -> None:
        """Remove a call from the queue; stop a search without any other caller."""
        self._gone.append((call, "refused" if isinstance(error, Overloaded) else "given_up"))
        if isinstance(error, GeneratorExit):
            return  # called by garbage collection under the lock: the next call processes it
        with self._lock:
            ended = self._fill()
        _wake(ended)

    def _remove_cancelled(self) -> None:
        """Remove cancelled calls, and stop searches without any other caller."""
        while self._gone:
            gone, how = self._gone.popleft()
            self._counters.counts[how] += 1
            gone.given_up = True
            self._queue.leave(gone)
            for batch, task in self._awaited.items():
                # Only once: a second cancellation would interrupt the cleanup of the first one.
                if task and batch.abandoned and gone in batch.calls:
                    _cancel(task)

    def _fill(self) -> list[PendingCall]:
        """Start searches while lanes are free and calls wait; return the calls that ended."""
        self._remove_cancelled()
        ended: list[PendingCall] = []
        for stranded, task in tuple(self._awaited.items()):
            if stranded.search_fn.stopped:
                ended += self._settle(stranded, None)
                if task:
                    _cancel(task)
        while self._free and (batch := self._queue.next_batch(self._max_batch)):
            now_s = time.perf_counter()
            self._counters.waits_s.extend(now_s - call.came_s for call in batch.calls)
            self._free -= 1
            try:
                self._start(batch)
            except Exception:  # noqa: BLE001 no thread or loop: the callers search separately
                ended += self._settle(batch, None)
            else:
                self._counters.batch_sizes[batch.size] += 1
        return ended

    def _start(self, batch: Batch) -> None:
        context = batch.calls[0].context.copy()  # a call may be part of two batches
        if batch.search_fn.loop is None:
            self._threads.submit(context.run, self._run, batch)
            return
        if batch.search_fn.stopped:
            raise RuntimeError("the event loop of this search does not run")
        batch.search_fn.loop.call_soon_threadsafe(self._spawn, batch, context)
        self._awaited[batch] = None

    def _run(self, batch: Batch) -> None:
        """Search in a thread."""
        assert batch.search_fn.search is not None
        if batch.delivered:  # its thread could not be started
            return
        _enclosing.set((*_enclosing.get(), self))
        try:
            found = batch.checked(batch.search_fn.search(batch.queries))
        except BaseException as error:  # noqa: BLE001 raised to the callers
            self._end(batch, error)
        else:
            self._end(batch, found)

    def _spawn(self, batch: Batch, context: Context) -> None:
        """Create the task of a search on its event loop."""
        if batch.delivered or batch.abandoned:
            self._end(batch, None)
            return
        search = self._arun(batch)
        try:
            task = asyncio.get_running_loop().create_task(search, context=context)
        except Exception:  # noqa: BLE001 such as a task factory without support for contexts
            search.close()
            self._end(batch, None)
            return
        with self._lock:
            if not batch.delivered:  # an eager task may have ended already
                self._awaited[batch] = task
        # A task that is cancelled before its first step never runs its own cleanup.
        task.add_done_callback(lambda _: self._end(batch, asyncio.CancelledError()))

    async def _arun(self, batch: Batch) -> None:
        assert batch.search_fn.asearch is not None
        _enclosing.set((*_enclosing.get(), self))
        try:
            found = batch.checked(await batch.search_fn.asearch(batch.queries))
        except GeneratorExit:  # its loop has ended; perhaps in a garbage collection, see _give_up
            raise
        except BaseException as error:
            self._end(batch, error)
            if not isinstance(error, Exception):
                raise
        else:
            self._end(batch, found)

    def _end(self, batch: Batch, outcome: list[Hits] | BaseException | None) -> None:
        """Deliver the results to each caller, once, and start the next searches."""
        with self._lock:
            if batch.delivered:
                return
            self._settle(batch, outcome)
            ended = [call for call in batch.calls if call.ended] + self._fill()
        _wake(ended)

    def _settle(
        self, batch: Batch, outcome: list[Hits] | BaseException | None
    ) -> list[PendingCall]:
        """Record an outcome, if there is one; return the calls that must search separately."""
        self._free += 1
        self._awaited.pop(batch, None)
        broken_off = isinstance(outcome, asyncio.CancelledError) and not batch.is_one_call
        if outcome is None or broken_off:
            released = batch.disturb()
            self._counters.counts["repeated"] += len(released)
            for call in released:
                self._queue.leave(call)
            return released
        again = batch.give(outcome)
        self._counters.counts["repeated"] += len(again)
        if again:
            self._queue.repeat(again)
        return []

    def close(self) -> None:
        """Make queued calls search separately, wait for running ones, and release the threads."""
        with self._lock:
            self._closed = True
            removed = self._queue.empty()
            for call in removed:
                call.disturbed = True
        _wake(removed)
        self._threads.shutdown(wait=True)

    def stats(self) -> VerifierStats:
        """Return the statistics so far."""
        with self._lock:
            return self._counters.stats(waiting=self._queue.size, running=self._lanes - self._free)


def _outcome(call: PendingCall) -> list[Hits] | None:
    if call.error is not None:
        raise call.error
    return None if call.disturbed else [call.found[at] for at in range(len(call.queries))]


def _wake(ended: Sequence[PendingCall]) -> None:
    for call in ended:
        call.wake()


def _cancel(task: "asyncio.Task[None]") -> None:
    with contextlib.suppress(RuntimeError):  # its loop is closed
        task.get_loop().call_soon_threadsafe(task.cancel)
