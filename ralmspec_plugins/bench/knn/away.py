"""A search of a datastore as if it were on another machine: a given delay, and said to be one."""

import time
from collections.abc import Hashable, Sequence
from typing import Final

from ralmspec_plugins.knn.neighbours import Neighbours
from ralmspec_plugins.knn.search import NeighbourSearch
from ralmspec_plugins.records import Query

AWAY_S: Final = 0.005  # of one round trip: a server in the same region
AWAY: Final = f"{1000 * AWAY_S:g} ms away"


class AwaySearch:
    """Adds a delay to each round trip; the neighbours are the inner search's."""

    def __init__(self, inner: NeighbourSearch, delay_s: float = AWAY_S) -> None:
        """Put a search this far away."""
        self.inner = inner
        self.k = inner.k
        self.exact = inner.exact
        self.pure = inner.pure
        self.inline_encode = inner.inline_encode
        self.size = inner.size
        self.datastore = inner.datastore
        self.signature: Hashable = inner.signature
        self._delay_s = delay_s

    def encode(self, text: str) -> Query:
        """Do as the inner search does."""
        return self.inner.encode(text)

    def search(self, queries: Sequence[Query]) -> list[Neighbours]:
        """Wait, and search."""
        time.sleep(self._delay_s)
        return self.inner.search(queries)
