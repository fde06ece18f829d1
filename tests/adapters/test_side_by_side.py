"""Single calls at the same time: results in order, errors in place, nothing left behind."""

import asyncio
import threading
from contextvars import ContextVar

import pytest

from ralmspec_plugins.adapters.retriever import aeach, all_or_first_error, each

_user: ContextVar[str] = ContextVar("user")


def tenth(number: int) -> float:
    return 10 / number


def test_results_and_errors_stand_in_order() -> None:
    """Each call's result or error is in its place."""
    found = each(tenth, [1, 0, 2, 0, 5], 3)

    assert [10.0, 5.0, 2.0] == [found[0], found[2], found[4]]
    assert [ZeroDivisionError] * 2 == [type(found[1]), type(found[3])]


def test_the_first_error_is_raised() -> None:
    """Of several errors, the first in order counts."""
    with pytest.raises(KeyError):
        all_or_first_error([1, KeyError("a"), ValueError("b")])


@pytest.mark.parametrize("at_once", [1, 4])
def test_as_many_at_a_time_as_was_said(at_once: int) -> None:
    """No more calls run at a time, and the threads are gone afterwards."""
    before = threading.active_count()
    running, most, lock = 0, 0, threading.Lock()
    together = threading.Barrier(at_once)

    def call(_: int) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        together.wait(timeout=10)
        with lock:
            running -= 1

    each(call, range(8), at_once)

    assert most == at_once
    assert threading.active_count() == before


def test_the_context_goes_along() -> None:
    """Context variables of the caller are seen, as tracing needs it."""
    _user.set("ada")

    assert each(lambda _: _user.get(), [1, 2, 3], 3) == ["ada"] * 3


def test_tasks_give_the_same_and_are_gone_after_a_cancel() -> None:
    """Results in order, errors in place; a cancelled caller leaves no task."""

    async def call(number: int) -> float:
        await asyncio.sleep(0)
        return tenth(number)

    async def main() -> tuple[list[object], int]:
        found = await aeach(call, [1, 0, 5], 2)
        started = asyncio.Event()

        async def forever(_: int) -> None:
            started.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(aeach(forever, [1, 2, 3], 2))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return [type(one) for one in found], len(asyncio.all_tasks())

    assert asyncio.run(main()) == ([float, ZeroDivisionError, float], 1)
