"""Runs a coroutine that waits for nothing to its end, without an event loop."""

from collections.abc import Coroutine
from typing import Any, TypeVar

ResultT = TypeVar("ResultT")


def unawaited(call: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Run a coroutine here and now: of what is written once, for requests with a loop or without.

    Raises:
        Exception: what it raises.
    """
    try:
        call.send(None)
    except StopIteration as end:
        result: ResultT = end.value
        return result
    call.close()
    raise AssertionError("without an event loop there is nothing to wait for")
