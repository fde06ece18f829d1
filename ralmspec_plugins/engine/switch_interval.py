"""A shorter thread switch interval of the interpreter during speculative requests."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# See docs/decisions/0009.

_lock = threading.RLock()  # an unreferenced run ends wherever garbage is collected
_wanted: list[float] = []  # by the running requests
_before_s = 0.0  # the interpreter's own interval, to be restored


@contextmanager
def thread_switch_interval(interval_s: float | None) -> Iterator[None]:
    """Limit the interpreter's thread switch interval; `None` does not change it.

    A thread that resumes after a wait (for a store's response, a queue, a lock) gets Python's
    lock from a computing thread only after the switch interval, 5 ms by default; and the
    response of a store involves several such waits. The interval applies to the whole
    process: it is never increased, and it is restored after the last request, unless other
    code has changed it.

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
    """Return whether this interval is set now, up to whole microseconds."""
    return abs(sys.getswitchinterval() - interval_s) < 2e-6
