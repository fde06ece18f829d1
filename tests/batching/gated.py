"""Retrievers whose searches wait for a gate, so that a test decides what comes meanwhile."""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence

from ralmspec_plugins.testing import WordRetriever
from ralmspec_plugins.types import Hits, Query

TEXTS = [f"word{number} text" for number in range(40)]


class StoreError(Exception):
    """What a store raises for a bad query, and for every batch that has one in it."""


def refuse(queries: Sequence[Query]) -> None:
    bad = [query.text for query in queries if query.text.startswith("bad")]
    if bad:
        raise StoreError(f"cannot search {bad[0]}")


class Gated(WordRetriever):
    """Searches only while its gate is open; queries that begin with "bad" fail their batch."""

    def __init__(self, texts: Sequence[str] = TEXTS, k: int = 1) -> None:
        super().__init__(texts, k)
        self._gate = threading.Semaphore(0)
        self.most_at_once = self.at_once = 0
        self._lock = threading.Lock()

    def admit(self, searches: int = 10_000) -> None:
        """Let so many searches through, or all."""
        self._gate.release(searches)

    def search_wide(self, queries: Sequence[Query], width: int) -> list[Hits]:
        with self._lock:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            self.searched.append(tuple(query.text for query in queries))
        try:
            assert self._gate.acquire(timeout=20)
            refuse(queries)
            return [self._ranked(query)[:width] for query in queries]
        finally:
            with self._lock:
                self.at_once -= 1


class AsyncGated(WordRetriever):
    """The same on an event loop, and only there."""

    def __init__(self, texts: Sequence[str] = TEXTS, k: int = 1) -> None:
        super().__init__(texts, k)
        self._gate = asyncio.Semaphore(0)
        self.cancelled = 0

    def admit(self, searches: int = 1000) -> None:
        """Let so many searches through, or all."""
        for _ in range(searches):
            self._gate.release()

    async def asearch(self, queries: Sequence[Query]) -> list[Hits]:
        self.searched.append(tuple(query.text for query in queries))
        try:
            await self._gate.acquire()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        refuse(queries)
        return [self._ranked(query)[: self.k] for query in queries]


def eventually(fact: Callable[[], bool]) -> None:
    """Wait until something is true, in seconds at most."""
    for _ in range(10_000):
        if fact():
            return
        time.sleep(0.001)
    raise AssertionError("it never came true")


async def aeventually(fact: Callable[[], bool]) -> None:
    """Wait for it without holding up the loop."""
    for _ in range(10_000):
        if fact():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never came true")
