"""Counts how often a guess is right that costs nothing: that neighbours change nothing.

A cache that is right for four tokens of five says little where the model alone chooses
the same three times of four.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

from ralmspec_plugins.bench.knn.virtual import VirtualRuns, guess_rate, virtual_latencies
from ralmspec_plugins.bench.knn.ways import BASELINES

SIMULATED_WEIGHTS: Final = (0.25, 0.65)  # in the model's own domain, and in another (PAPERS 6.1)


def baselines(
    runs: VirtualRuns,
    k: int,
    *,
    weights: Sequence[float] = SIMULATED_WEIGHTS,
    told: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Count, at a stride of 8; every text is asserted equal to the plain loop's.

    Args:
        runs: what is continued; its own weight does not count.
        k: how many neighbours vote.
        weights: their shares.
        told: hears of each combination as it is done.
    """
    latencies, rows = virtual_latencies(1.0, 1.0), []  # of no effect on a fixed stride
    for weight in weights:
        weighted = replace(runs, weight=weight)
        truths = weighted.plain(k, latencies)
        for way in BASELINES:
            answers = weighted.run(way, k, latencies, truths)
            for place, ours in weighted.by_place(answers):
                named = {"k": k, "weight": weight, "guess": way.name, "place": place}
                rows.append({**named, "requests": len(ours), "rate": guess_rate(ours)})
            told(f"k = {k}, weight {weight}, {way.name}: {rows[-1]['rate']:.0%} right")
    return rows
