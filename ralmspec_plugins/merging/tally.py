"""Counts what happens to merged searches."""

from collections import Counter, deque
from collections.abc import Sequence
from statistics import median, quantiles

from ralmspec_plugins.stats import VerifierStats

_WAITS_KEPT = 4096  # of the latest calls, for median and quantile


class Tally:
    """Counts calls by what became of them, searches by their size, and how long calls waited."""

    def __init__(self) -> None:
        """Start at nothing."""
        self.counts: Counter[str] = Counter()
        self.batch_sizes: Counter[int] = Counter()
        self.waits_s: deque[float] = deque(maxlen=_WAITS_KEPT)

    def stats(self, *, waiting: int, running: int) -> VerifierStats:
        """Sum up."""
        waits_s = tuple(self.waits_s) or (0.0,)
        sizes = dict(sorted(self.batch_sizes.items()))
        return VerifierStats(
            calls=self.counts["calls"],
            searches=sum(sizes.values()),
            queries=sum(size * count for size, count in sizes.items()),
            batch_sizes=sizes,
            waited_median_s=median(waits_s),
            waited_p95_s=_p95(waits_s),
            repeated=self.counts["repeated"],
            given_up=self.counts["given_up"],
            refused=self.counts["refused"],
            waiting=waiting,
            running=running,
        )


def _p95(waits_s: Sequence[float]) -> float:
    if len(waits_s) == 1:
        return waits_s[0]
    return quantiles(waits_s, n=20, method="inclusive")[-1]
