"""Counts the calls of a store that a batch search makes besides the batch itself."""

import threading


class Tally:
    """A number that several threads add to."""

    def __init__(self) -> None:
        """Start at nothing."""
        self._lock = threading.Lock()
        self._count = 0

    def add(self) -> None:
        """Count one more."""
        with self._lock:
            self._count += 1

    @property
    def count(self) -> int:
        """What has been counted."""
        with self._lock:
            return self._count
