"""Building that is stopped at any call that reaches the disk."""

import itertools
import os
from collections.abc import Callable
from typing import Any

import pytest

from ralmspec_plugins.retrieval.storage import format as folders
from ralmspec_plugins.retrieval.storage import journal


def stopping(monkeypatch: pytest.MonkeyPatch, at: int, error: BaseException) -> Callable[[], bool]:
    """Let the n-th call that reaches the disk fail; say whether it has been reached."""
    count = itertools.count()
    reached = []

    def stop(function: Any) -> Any:
        def stopped(*arguments: Any, **named: Any) -> Any:
            if next(count) == at:
                reached.append(at)
                raise error
            return function(*arguments, **named)

        return stopped

    for module, name in (
        (os, "fsync"),
        (os, "truncate"),
        (folders, "atomic_replace"),
        (journal, "remove"),
    ):
        monkeypatch.setattr(module, name, stop(getattr(module, name)))
    return lambda: bool(reached)
