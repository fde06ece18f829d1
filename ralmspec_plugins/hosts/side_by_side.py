"""Calls of one kind at the same time, for hosts whose stores take one query a call."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, TypeVar

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def each(
    call: Callable[[ItemT], ResultT], items: Sequence[ItemT], at_once: int
) -> list[ResultT | Exception]:
    """Call once for each item, so many at a time, each in a copy of the caller's context.

    What a call raises stands in the place of its result. No thread is left behind.
    """
    workers = min(at_once, len(items))
    if workers <= 1:
        return [_tried(call, item) for item in items]
    with ThreadPoolExecutor(workers, thread_name_prefix="ralmspec-host") as threads:
        futures = [threads.submit(copy_context().run, _tried, call, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:  # Ctrl-C: what has not begun does not begin
            threads.shutdown(wait=False, cancel_futures=True)
            raise


def _tried(call: Callable[[ItemT], ResultT], item: ItemT) -> ResultT | Exception:
    try:
        return call(item)
    except Exception as error:  # noqa: BLE001 given back in the place of the result
        return error


async def aeach(
    call: Callable[[ItemT], Coroutine[Any, Any, ResultT]], items: Sequence[ItemT], at_once: int
) -> list[ResultT | Exception]:
    """Do the same with tasks; none is left behind, also where the caller is cancelled."""
    if len(items) == 1:
        return [await _atried(call(items[0]))]
    gate = asyncio.Semaphore(at_once)

    async def gated(item: ItemT) -> ResultT | Exception:
        async with gate:
            return await _atried(call(item))

    tasks = [asyncio.create_task(gated(item)) for item in items]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _atried(call: Awaitable[ResultT]) -> ResultT | Exception:
    try:
        return await call
    except Exception as error:  # noqa: BLE001 given back in the place of the result
        return error


def all_or_first_error(results: Sequence[ResultT | Exception]) -> list[ResultT]:
    """Give the results, or raise the first error among them."""
    good: list[ResultT] = []
    for result in results:
        if isinstance(result, Exception):
            raise result
        good.append(result)
    return good
