"""Whether the encodings of queries are computed in this process."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final

OWN: Final = 64  # kept samples of threads
RECENT: Final = 8  # kept samples of the process
SAMPLED_S: Final = 0.1  # between two samples: reading the clocks takes time
BY_THREAD: Final = 0.25  # share of an encoding that its thread computes, the processor being shared
BY_PROCESS: Final = 0.5  # the same of the whole process, which may compute something else


class EncoderTime:
    """What is computed here while queries are encoded.

    An encoder may wait for another machine, or compute in this process; the latter delays what is
    generated meanwhile. It is sampled. An encoding that its thread computed is one of this process,
    but for the first, once there is a second: a client that is set up then may compute much before
    it waits. Among many
    threads that compute, each does for a small share of its time, so any two of the last samples
    decide. What the whole process computes may be something else; there most samples decide.
    Thread-safe: of samples that are taken at the same time one may be lost.

    >>> now_s, computed_s = 0.0, 0.0
    >>> encoder = EncoderTime(lambda: now_s, lambda: computed_s, lambda: computed_s)
    >>> with encoder.in_thread():
    ...     now_s, computed_s = 0.2, 0.15
    >>> encoder.computes_here, encoder.waits
    (True, False)
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.perf_counter,
        own: Callable[[], float] = time.thread_time,
        computed: Callable[[], float] = time.process_time,
    ) -> None:
        """Create a time without samples, of which neither is known.

        Args:
            clock: returns the time in seconds.
            own: returns the seconds that the calling thread has computed.
            computed: returns the seconds that this process has computed.
        """
        self._clock, self._own, self._computed = clock, own, computed
        # Whether the encoding was computed here.
        self._by_thread: deque[bool] = deque(maxlen=OWN)
        self._by_process: deque[bool] = deque(maxlen=RECENT)
        self._next_s = clock()  # when the next one is taken

    def in_thread(self) -> AbstractContextManager[None]:
        """Sample the encoding that the body makes in this thread, unless that raises."""
        return self._sampled(self._own, BY_THREAD, self._by_thread)

    def awaited(self) -> AbstractContextManager[None]:
        """Sample the encoding that the body awaits, unless that raises."""
        return self._sampled(self._computed, BY_PROCESS, self._by_process)

    @contextmanager
    def _sampled(
        self, computed: Callable[[], float], least: float, samples: deque[bool]
    ) -> Iterator[None]:
        began_s = self._clock()
        if began_s < self._next_s:
            yield
            return
        self._next_s = began_s + SAMPLED_S
        computed_s = computed()
        yield
        computed_s = computed() - computed_s
        samples.append(computed_s > 0.0 and computed_s >= least * (self._clock() - began_s))

    @property
    def computes_here(self) -> bool:
        """Whether encodings are computed in this process."""
        own, process = tuple(self._by_thread), tuple(self._by_process)
        return sum(own) >= min(2, max(1, len(own))) or sum(process) > len(process) / 2

    @property
    def waits(self) -> bool:
        """Whether encodings were sampled, and wait for something else."""
        return bool(self._by_thread or self._by_process) and not self.computes_here
