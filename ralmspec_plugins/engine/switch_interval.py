"""The interpreter's thread switch interval, shorter while requests run ahead."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# Lets Python's threads take turns more often while requests run ahead (docs/decisions/0009).

_lock = threading.RLock()  # a run that is dropped ends wherever garbage is collected
_wanted: list[float] = []  # by the requests that are running
_before_s = 0.0  # the interpreter's own interval, to go back to


@contextmanager
def thread_switch_interval(interval_s: float | None) -> Iterator[None]:
    """Have the interpreter switch threads at least this often; `None` leaves it as it is.

    A thread that comes back from waiting (for a store's answer, a queue, a lock) gets Python's
    lock from one that computes only after the switch interval, 5 ms unless it is set; and the
    answer of a store takes several such waits to arrive. The interval belongs to the whole
    process: it is never made longer, and with the last request it is put back, unless other
    code has set it meanwhile.

    >>> before = sys.getswitchinterval()
    >>> with thread_switch_interval(0.001):
    ...     round(sys.getswitchinterval(), 6)
    0.001
    >>> sys.getswitchinterval() == before
    True
    """
    if interval_s is None:
        yield
        return
    _begin(interval_s)
    try:
        yield
    finally:
        _end(interval_s)


def _begin(interval_s: float) -> None:
    global _before_s
    with _lock:
        if not _wanted:
            _before_s = sys.getswitchinterval()
        _wanted.append(interval_s)
        _set()


def _end(interval_s: float) -> None:
    with _lock:
        ours = _is(min(_before_s, *_wanted))
        _wanted.remove(interval_s)
        if ours:
            _set()


def _set() -> None:
    sys.setswitchinterval(min([_before_s, *_wanted]))


def _is(interval_s: float) -> bool:
    """Return whether it is what is set now; it is kept in whole microseconds."""
    return abs(sys.getswitchinterval() - interval_s) < 2e-6
