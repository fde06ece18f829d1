"""Runs the merged searches of many callers, a few at a time, in threads or as asyncio tasks."""

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

# Counts what happens to merged searches.


_WAITS_KEPT = 4096  # of the latest calls, for median and quantile


class Counters:
    """Counts calls by what became of them, searches by their size, and how long calls waited."""

    def __init__(self) -> None:
        """Start at nothing."""
        self.counts: Counter[str] = Counter()
        self.batch_sizes: Counter[int] = Counter()
        self.waits_s: deque[float] = deque(maxlen=_WAITS_KEPT)

    def stats(self, *, waiting: int, running: int) -> VerifierStats:
        """Sum up."""
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


# Whose searches this code is part of: what it asks of them itself cannot wait for a lane.
_inside: "ContextVar[tuple[Dispatcher, ...]]" = ContextVar("ralmspec_inside_lanes", default=())


class Dispatcher:
    """At most `lanes` searches at a time; whatever waits when one ends goes into the next.

    There is no timer. Thread-safe, also for several event loops at once. An
    awaited search is a task of its own, so that no caller's cancellation ends it
    for the others; with its last caller gone it is cancelled.
    """

    def __init__(
        self, lanes: int, max_batch: int, max_waiting: int, patience_s: float | None
    ) -> None:
        """Start with nothing to do; threads start with the first search that needs one."""
        self._free = self._lanes = lanes
        self._max_batch = max_batch
        forever = patience_s is None or patience_s > threading.TIMEOUT_MAX
        self._patience_s = None if forever else patience_s
        self._line = RequestQueue(max_waiting)
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(lanes, thread_name_prefix="ralmspec-verifier")
        self._awaited: dict[Batch, asyncio.Task[None] | None] = {}  # None: not begun yet
        self._gone: deque[tuple[PendingCall, str]] = (
            deque()
        )  # whose callers have gone, not seen to yet
        self._closed = False
        self._process = os.getpid()
        self._tally = Counters()

    def search(self, group: Hashable, way: SearchFn, queries: Sequence[Query]) -> list[Hits] | None:
        """Have queries searched with others', and wait in this thread.

        Returns:
            The hits of each query; `None` if the caller has to search alone: nothing can be
            started any more, or he would wait for himself.

        Raises:
            Overloaded: there was no room in the line for too long.
            BaseException: what the search raised, where it was this caller's alone.
        """
        if self in _inside.get() or self._waits_on_this_thread():
            return None
        ended = threading.Event()
        call = self._join(group, way, queries, ended.set)
        try:
            if not ended.wait(self._patience_s):
                self._refuse_if_outside(call)
                ended.wait()
        except BaseException as error:
            self._give_up(call, error)
            raise
        return _outcome(call)

    async def asearch(
        self, group: Hashable, way: SearchFn, queries: Sequence[Query]
    ) -> list[Hits] | None:
        """Do the same without blocking the event loop."""
        if self in _inside.get():
            return None
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits there
                loop.call_soon_threadsafe(ended.set)

        call = self._join(group, way, queries, wake)
        try:
            try:
                async with asyncio.timeout(self._patience_s):
                    await ended.wait()
            except TimeoutError:
                self._refuse_if_outside(call)
                await ended.wait()
        except BaseException as error:
            self._give_up(call, error)
            raise
        return _outcome(call)

    def _join(
        self, group: Hashable, way: SearchFn, queries: Sequence[Query], wake: Callable[[], None]
    ) -> PendingCall:
        if os.getpid() != self._process:
            raise ConfigError(
                "this verifier was made before the process forked, and its threads are not here; "
                "make one in each worker process"
            )
        call = PendingCall(
            group=group, way=way, queries=queries, came_s=time.perf_counter(), wake=wake
        )
        with self._lock:
            if self._closed:
                raise Closed("verifier")
            self._tally.counts["calls"] += 1
            self._line.join(call)
            ended = self._fill()
        _wake(ended)
        return call

    def _waits_on_this_thread(self) -> bool:
        """Whether this thread runs an event loop whose searches it would keep from ending."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return False
        with self._lock:
            out = any(batch.way.loop is loop for batch in self._awaited)
            return out or self._line.waits_on(loop)

    def _refuse_if_outside(self, call: PendingCall) -> None:
        with self._lock:
            if self._line.outside(call):
                raise Overloaded(
                    f"{self._line.size} queries are waiting to be searched, and there was no "
                    f"room for {len(call.queries)} more within {self._patience_s} s; ask less at "
                    "a time, or allow more (max_waiting, patience_s, lanes)"
                )

    def _give_up(self, call: PendingCall, error: BaseException) -> None:
        """Take a call out of the line; stop a search that nobody else waits for."""
        self._gone.append((call, "refused" if isinstance(error, Overloaded) else "given_up"))
        if isinstance(error, GeneratorExit):
            return  # the garbage collection can come to this under our own lock: next time then
        with self._lock:
            ended = self._fill()
        _wake(ended)

    def _see_off(self) -> None:
        """Forget the calls whose callers have gone, and stop what only they waited for."""
        while self._gone:
            gone, how = self._gone.popleft()
            self._tally.counts[how] += 1
            gone.given_up = True
            self._line.leave(gone)
            for batch, task in self._awaited.items():
                # Once only: a second time would break off the first one's cleaning up.
                if task and batch.unwanted and gone in batch.calls:
                    _cancel(task)

    def _fill(self) -> list[PendingCall]:
        """Start searches while lanes are free and calls wait; list the calls that this ended."""
        self._see_off()
        ended: list[PendingCall] = []
        for stranded, task in tuple(self._awaited.items()):
            if stranded.way.stopped:
                ended += self._settle(stranded, None)
                if task:
                    _cancel(task)
        while self._free and (batch := self._line.next_batch(self._max_batch)):
            now_s = time.perf_counter()
            self._tally.waits_s.extend(now_s - call.came_s for call in batch.calls)
            self._free -= 1
            try:
                self._start(batch)
            except Exception:  # noqa: BLE001 no thread, or no loop: its callers do without
                ended += self._settle(batch, None)
            else:
                self._tally.batch_sizes[batch.size] += 1
        return ended

    def _start(self, batch: Batch) -> None:
        context = batch.calls[0].context.copy()  # a call may be in two batches at once
        if batch.way.loop is None:
            self._threads.submit(context.run, self._run, batch)
            return
        if batch.way.stopped:
            raise RuntimeError("the event loop of this search does not run")
        batch.way.loop.call_soon_threadsafe(self._spawn, batch, context)
        self._awaited[batch] = None

    def _run(self, batch: Batch) -> None:
        """Search in a thread."""
        assert batch.way.search is not None
        if batch.given:  # its thread could not be started at once
            return
        _inside.set((*_inside.get(), self))
        try:
            found = batch.checked(batch.way.search(batch.queries))
        except BaseException as error:  # noqa: BLE001 raised where it is waited for
            self._end(batch, error)
        else:
            self._end(batch, found)

    def _spawn(self, batch: Batch, context: Context) -> None:
        """Make a task of a search, on its loop."""
        if batch.given or batch.unwanted:
            self._end(batch, None)
            return
        search = self._arun(batch)
        try:
            task = asyncio.get_running_loop().create_task(search, context=context)
        except Exception:  # noqa: BLE001 a task factory that does not know contexts, say
            search.close()
            self._end(batch, None)
            return
        with self._lock:
            if not batch.given:  # an eager task may have ended already
                self._awaited[batch] = task
        # One that is cancelled before its first step never comes to its own end.
        task.add_done_callback(lambda _: self._end(batch, asyncio.CancelledError()))

    async def _arun(self, batch: Batch) -> None:
        assert batch.way.asearch is not None
        _inside.set((*_inside.get(), self))
        try:
            found = batch.checked(await batch.way.asearch(batch.queries))
        except GeneratorExit:  # its loop is gone; perhaps in a garbage collection, see _give_up
            raise
        except BaseException as error:
            self._end(batch, error)
            if not isinstance(error, Exception):
                raise
        else:
            self._end(batch, found)

    def _end(self, batch: Batch, outcome: list[Hits] | BaseException | None) -> None:
        """Give each caller what was found for him, once, and start the next searches."""
        with self._lock:
            if batch.given:
                return
            self._settle(batch, outcome)
            ended = [call for call in batch.calls if call.ended] + self._fill()
        _wake(ended)

    def _settle(
        self, batch: Batch, outcome: list[Hits] | BaseException | None
    ) -> list[PendingCall]:
        """Note an outcome, or that there is none; list the calls that have to search alone."""
        self._free += 1
        self._awaited.pop(batch, None)
        broken_off = isinstance(outcome, asyncio.CancelledError) and not batch.is_one_call
        if outcome is None or broken_off:
            let_go = batch.let_go()
            self._tally.counts["repeated"] += len(let_go)
            for call in let_go:
                self._line.leave(call)
            return let_go
        again = batch.give(outcome)
        self._tally.counts["repeated"] += len(again)
        if again:
            self._line.repeat(again)
        return []

    def close(self) -> None:
        """Let whoever waits search alone, wait for what is running, and let the threads go."""
        with self._lock:
            self._closed = True
            sent_off = self._line.empty()
            for call in sent_off:
                call.disturbed = True
        _wake(sent_off)
        self._threads.shutdown(wait=True)

    def stats(self) -> VerifierStats:
        """Return what has happened so far."""
        with self._lock:
            return self._tally.stats(waiting=self._line.size, running=self._lanes - self._free)


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
