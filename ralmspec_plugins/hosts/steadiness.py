"""Notices a black box that is another one after each call, so that nothing of it is remembered."""

import logging
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Final

_log = logging.getLogger(__name__)

_WATCHED: Final = 3  # calls; an attribute that the first one makes is no reason to complain


class Steadiness:
    """Compares what a black box was before and after its first calls. Thread-safe.

    All its attributes are part of its signature, since nobody knows on which of them its
    answers depend. One that counts its calls in one of them is safe, and never remembered.
    """

    def __init__(self) -> None:
        """Watch what comes."""
        self._lock = threading.Lock()
        self._changes: list[bool] = []

    @contextmanager
    def watched(self, signature: Callable[[], Hashable], retriever: object) -> Iterator[None]:
        """Watch one call, if it is one of the first; say so if each of them changed something."""
        if len(self._changes) >= _WATCHED:
            yield
            return
        before = signature()
        yield
        self._note(retriever, changed=signature() != before)

    def _note(self, retriever: object, *, changed: bool) -> None:
        with self._lock:
            self._changes.append(changed)
            last = len(self._changes) == _WATCHED
        if last and all(self._changes):
            _log.warning(
                "each call of %s changes one of its attributes, so that nothing it finds is "
                "remembered for later requests; if that is a counter, keep it in an object of "
                "its own, such as itertools.count()",
                type(retriever).__name__,
            )
