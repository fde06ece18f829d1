"""A knowledge base as if it were far away: each round trip waits before it is answered."""

import time
from collections.abc import Hashable, Sequence

from ralmspec_plugins.protocols import PassageTable, WideRetriever
from ralmspec_plugins.records import Hits, Query
from ralmspec_plugins.retrieval import KnowledgeBase


class RemoteStore:
    """Adds a fixed wait to each round trip; several may wait side by side, as on a network.

    The answers are the inner store's own, and so is the signature. Whoever uses
    this says on screen that the wait is added.
    """

    def __init__(self, inner: KnowledgeBase, latency_s: float) -> None:
        """Put a store this far away."""
        self._inner = inner
        self.latency_s = latency_s
        self.k = inner.k
        self.size = inner.size
        self.pure = inner.pure
        self.signature: Hashable = inner.signature

    def encode(self, text: str) -> Query:
        """Encode one query, here: only searches travel."""
        return self._inner.encode(text)

    def search(self, queries: Sequence[Query]) -> list[Hits]:
        """Wait one round trip, and search."""
        time.sleep(self.latency_s)
        return self._inner.search(queries)

    def table(self, capacity: int) -> PassageTable:
        """Make an empty table for a pool, which is here."""
        return self._inner.table(capacity)


class WideRemoteStore(RemoteStore):
    """The same for a store that can be searched wider than its k."""

    def __init__(self, inner: KnowledgeBase, wide: WideRetriever, latency_s: float) -> None:
        """Put a store this far away; `wide` is the same store again."""
        super().__init__(inner, latency_s)
        self._wide = wide

    def search_wide(self, queries: Sequence[Query], width: int) -> list[Hits]:
        """Wait one round trip, and search."""
        time.sleep(self.latency_s)
        return self._wide.search_wide(queries, width)


def far_away(inner: KnowledgeBase, latency_s: float) -> RemoteStore:
    """Put a store this many seconds away."""
    if isinstance(inner, WideRetriever):
        return WideRemoteStore(inner, inner, latency_s)
    return RemoteStore(inner, latency_s)
