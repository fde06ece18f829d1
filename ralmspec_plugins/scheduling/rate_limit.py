"""Providers that ask to be called less often."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

WAIT_S: Final = 60.0  # after an answer that does not say for how long
LONGEST_S: Final = 3600.0  # after which speculation is tried again in any case
_TOO_MANY: Final = 429  # the HTTP status of a rate limit
_DEPTH: Final = 8  # causes of an error that are looked at


class RateLimit:
    """Whether a provider has asked to be called less often, and has not been left alone since.

    Speculative calls count against a provider's limit. After an answer with status 429, or with
    the header `Retry-After`, none is started for as long as the answer says, or a minute.
    Thread-safe.

    >>> class TooManyRequests(Exception):
    ...     status_code = 429
    >>> now_s = 0.0
    >>> limit = RateLimit(lambda: now_s)
    >>> limit.note(TooManyRequests())
    >>> limit.active
    True
    >>> now_s = 61.0
    >>> limit.active
    False
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Create a limit that no provider has stated.

        Args:
            clock: returns the time in seconds.
        """
        self._clock = clock
        self._until_s = -math.inf
        self._lock = threading.Lock()

    def note(self, error: BaseException) -> None:
        """Record the error of a call; errors of other kinds change nothing."""
        wait_s = asked_wait_s(error)
        if wait_s is not None:
            with self._lock:
                self._until_s = max(self._until_s, self._clock() + wait_s)

    @property
    def active(self) -> bool:
        """Whether speculative calls must wait."""
        return self._clock() < self._until_s


def asked_wait_s(error: BaseException) -> float | None:
    """Return for how many seconds a provider asks to be left alone; `None` if it does not.

    The status and the headers are read where HTTP clients have them: `status_code`, and
    `response.status_code` and `response.headers`, of the error or of a cause of it.
    """
    for one in _causes(error):
        response = _read(one, "response")
        seconds = _header_s(_read(response, "headers"))
        statuses = (_read(one, "status_code"), _read(response, "status_code"))
        if seconds is not None or any(type(one) is int and one == _TOO_MANY for one in statuses):
            return WAIT_S if seconds is None else seconds
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    one: BaseException | None = error
    for _ in range(_DEPTH):
        if one is None:
            return
        yield one
        one = one.__cause__


def _read(owner: object, name: str) -> Any:
    """Return an attribute; `None` if it is missing or cannot be read."""
    try:
        return getattr(owner, name, None)
    except Exception:  # noqa: BLE001 a property of a foreign error
        return None


def _header_s(headers: Any) -> float | None:
    """Return the seconds of a `Retry-After` header: a number, or a date."""
    try:
        value = headers.get("retry-after") or headers.get("Retry-After")
        seconds = _number(value)
        if seconds is None:
            seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
    except Exception:  # noqa: BLE001 no headers, or none that says how long
        return None
    return min(max(0.0, seconds), LONGEST_S) if math.isfinite(seconds) else None


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None
