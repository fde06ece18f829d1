"""A replica in traces: an index of its own that guesses any question, and is sometimes wrong."""

import random
from collections.abc import Hashable

from ralmspec_plugins.bench.simulated.traces import Traces
from ralmspec_plugins.records import Hits, Query

RIGHT = 0.97  # of an HNSW index with usual settings (docs/benchmarks.md, approximate roles)


class NoisyReplica:
    """Guesses any retrieval, the first too; what it misses is the last of the hits."""

    inline = True

    def __init__(self, traces: Traces, seed: int, right: float = RIGHT) -> None:
        """Be right as often as told, by dice of its own."""
        self._traces = traces
        self._dice = random.Random(seed)  # noqa: S311 no secret
        self._right = right
        self.signature: Hashable = traces.signature

    def guess(self, query: Query) -> Hits:
        """Give the true hits, or all of them but one and the next."""
        k = self._traces.k
        [hits] = self._traces.search_wide([query], k + 1)
        return hits[:k] if self._dice.random() < self._right else (*hits[: k - 1], *hits[k:])

    def learn(self, query: Query, hits: Hits) -> None:
        """It knows all there is."""
