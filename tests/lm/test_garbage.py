"""Caches of a request that ends in a garbage collection, which may interrupt any thread."""

import threading
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("torch")

from ralmspec_plugins.decoding import PassageDrafter, SuffixDrafter
from ralmspec_plugins.lm import kv_cache
from ralmspec_plugins.lm.kv_cache import CacheStore, PrefillSchedule, Prefix
from tests.scheduling.test_garbage import WAIT_S, Ends, at_each_line


@pytest.mark.parametrize("kind", [SuffixDrafter, PassageDrafter, lambda: CacheStore(100)])
def test_caches_are_released_wherever_a_request_is_collected(kind: Callable[[], Any]) -> None:
    """Also by the thread that drafts for another request meanwhile."""
    cache = kind()

    def release() -> None:
        with cache._lock:
            cache.release(7)

    collecting = threading.Thread(target=release, daemon=True)
    collecting.start()
    collecting.join(WAIT_S)

    assert not collecting.is_alive()


class Entry:
    """More than half of the budget."""

    nbytes = 60


def lineage(owner: int) -> PrefillSchedule:
    return PrefillSchedule(owner, Prefix(()), (1,), (2,))


def test_caches_beyond_the_budget_are_evicted_wherever_others_are_released() -> None:
    """The size is right, and nothing is evicted twice."""
    store = CacheStore(100)

    def begin() -> Ends:
        store.put(lineage(7), Entry())
        return lambda: store.release(7)

    def work() -> None:
        for owner in (8, 9):
            store.put(lineage(owner), Entry())

    at_each_line(work, kv_cache, begin)
    store.check()

    assert store.nbytes <= 60
