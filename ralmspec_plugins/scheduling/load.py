"""How busy the model of an engine is, and its store, over all requests."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from statistics import median_low
from typing import Final
from weakref import WeakSet

RECENT: Final = 8  # kept durations of one level of concurrency
ENOUGH: Final = 3  # durations of a level before it counts
SLOWER: Final = 1.5  # relative duration from which on segments slow each other down
FULL: Final = 0.85  # share of the best rate from which on the model is at its capacity
MARGIN: Final = 0.5  # segments beyond the measured capacity
OWN: Final = 0.5  # share of a search that its thread computes, where nothing else delays it
KEPT: Final = 256  # samples for which that is known
BUSY: Final = 0.8  # computed seconds a second, of the whole process, from which on threads wait
SAMPLED_S: Final = 0.1  # between two samples
CROWD: Final = 8  # requests in progress


class ModelLoad:
    """The number of segments that are generated now, and how many the model generates at once.

    A local model takes turns: of n segments in parallel each takes up to n times as long. A
    speculative segment of one request then delays the confirmed ones of others. So the durations
    are measured by the number of segments in parallel; where more of them take longer, the
    capacity is the best rate of segments times the duration of one.

    Thread-safe without a lock: a garbage collection may interrupt any thread, and end a segment
    there, or wait for a thread that ends one. Of durations that are recorded at the same time one
    may be lost.

    >>> load = ModelLoad()
    >>> for parallel, seconds in 3 * ((1, 0.1), (4, 0.4)):
    ...     load.observe(parallel, seconds)
    >>> load.capacity
    1.0
    """

    def __init__(self) -> None:
        """Create a load without measurements: the capacity is unlimited."""
        self.capacity = float("inf")
        self._segments: list[None] = []  # in parallel now; its methods are atomic
        # By the number in parallel; both are replaced, never changed.
        self._seconds: dict[int, tuple[float, ...]] = {}
        self._usual: dict[int, float] = {}  # of those that count

    @property
    def running(self) -> int:
        """The number of segments in parallel now."""
        return len(self._segments)

    @contextmanager
    def segment(self, clock: Callable[[], float]) -> Iterator[None]:
        """Count a segment while the body generates it; time it unless that raises."""
        self._segments.append(None)
        parallel, seconds = self.running, None
        try:
            began_s = clock()
            yield
            seconds = clock() - began_s
        finally:
            parallel = round((parallel + self.running) / 2)
            self._segments.pop()
            if seconds is not None:
                self.observe(parallel, seconds)

    def observe(self, parallel: int, seconds: float) -> None:
        """Record the duration of a segment in parallel with `parallel - 1` others."""
        recent = (*self._seconds.get(parallel, ()), seconds)[-RECENT:]
        self._seconds = {**self._seconds, parallel: recent}
        if len(recent) >= ENOUGH:
            self._usual = usual = {**self._usual, parallel: median_low(recent)}
            self.capacity = _capacity(usual)

    def has_room(self, *, own: int = 0) -> bool:
        """Return whether one more segment delays no other one.

        Args:
            own: segments of the same request that may be in progress, and do not count.
        """
        return self.running - own + 1 <= max(1.0, self.capacity) + MARGIN


def _capacity(usual: Mapping[int, float]) -> float:
    """Return how many segments a model generates at once, by their durations in parallel."""
    fewest = min(usual)
    if max(usual.values()) <= SLOWER * usual[fewest]:
        return float("inf")
    best = max(parallel / seconds for parallel, seconds in usual.items())
    if fewest > 1 and fewest / usual[fewest] > FULL * best:  # reached before the fewest measured
        return 1.0
    return best * usual[fewest]


class StoreTime:
    """What searches compute in the threads that make them, and how busy all are.

    A search of a store in this process takes longer while other requests compute: it waits for
    the processor, or for Python's lock. A guess cannot hide that time, since what is generated
    meanwhile needs the processor, too. Only what the search itself computes is hidden by it, on a
    processor of its own. The time of a remote store is waiting, which a guess hides, however
    busy the process is. Reading these clocks may take long, so searches are sampled.
    Thread-safe.

    >>> now_s, computed_s = 0.0, 0.0
    >>> store = StoreTime(lambda: now_s, lambda: computed_s, lambda: computed_s)
    >>> with store.search():
    ...     now_s, computed_s = 0.2, 0.2
    >>> requests = ModelLoad(), ModelLoad()  # any two objects
    >>> for request in requests:
    ...     store.begin(request)
    >>> store.hidden_s(0.5)
    0.2
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.perf_counter,
        own: Callable[[], float] = time.thread_time,
        computed: Callable[[], float] = time.process_time,
    ) -> None:
        """Create the time of a store that was not searched yet: it counts as remote.

        Args:
            clock: returns the time in seconds.
            own: returns the seconds that the calling thread has computed.
            computed: returns the seconds that this process has computed.
        """
        self._requests = WeakSet[object]()  # in progress
        self._clock, self._own_clock, self._computed = clock, own, computed
        self._own: deque[float] = deque(maxlen=RECENT)
        self._since = KEPT  # samples since a search was computed by its thread
        self._reading = clock(), computed()  # the last one of both clocks
        self._next_s = self._reading[0]  # when the next search is sampled
        self._is_busy = False
        self._lock = threading.Lock()

    @contextmanager
    def search(self) -> Iterator[None]:
        """Count a search while the body makes it in this thread, unless that raises."""
        began_s = self._clock()
        if began_s < self._next_s:
            yield
            return
        self._next_s = began_s + SAMPLED_S  # not sampled by other threads meanwhile
        own_s = self._own_clock()
        yield
        own_s = self._own_clock() - own_s
        self.observe(self._clock() - began_s, own_s)

    def awaited(self) -> None:
        """Count a search that was awaited: how busy the process is, is sampled as in threads."""
        if self._clock() >= self._next_s:
            with self._lock:
                self._read()

    def observe(self, seconds: float, own_s: float) -> None:
        """Record the duration of a search, and the seconds that its thread computed."""
        with self._lock:
            self._since = 0 if own_s >= OWN * seconds else self._since + 1
            self._own.append(own_s)
            self._read()

    def _read(self) -> None:
        now = self._clock(), self._computed()
        passed_s, computed_s = now[0] - self._reading[0], now[1] - self._reading[1]
        self._next_s = now[0] + SAMPLED_S
        if passed_s >= SAMPLED_S / 2:
            self._is_busy = computed_s >= BUSY * passed_s
            self._reading = now

    def begin(self, request: object) -> None:
        """Count a request, until it ends or is not referenced any more.

        Without the lock: a garbage collection while it is held may end another request.
        """
        self._requests.add(request)

    def end(self, request: object) -> None:
        """Count a request no longer."""
        self._requests.discard(request)

    @property
    def is_crowded(self) -> bool:
        """Whether so many requests are in progress that hardly any is ever alone."""
        return len(self._requests) > CROWD

    @property
    def is_swamped(self) -> bool:
        """Whether a crowd of requests uses the processor up, or Python's lock."""
        return self._is_busy and self.is_crowded

    @property
    def computes_here(self) -> bool:
        """Whether a recent search was computed by the thread that made it."""
        return self._since < KEPT

    def hidden_s(self, seconds: float) -> float:
        """Return how much of a search of so many seconds a right guess hides."""
        if not (self._is_busy and self.computes_here):
            return seconds
        if len(self._requests) <= 1:
            return seconds
        with self._lock:
            return min(seconds, median_low(self._own))
