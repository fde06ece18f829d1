"""Counts how often the cache guesses a token right: by schedule, k, and entries taken along."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any, Final

from ralmspec_plugins.bench.knn.virtual import VirtualRuns, guess_rate, virtual_latencies
from ralmspec_plugins.bench.knn.ways import CONTINUOUS, FIXED, OS3, Way
from ralmspec_plugins.records import Answer

FOLLOWING: Final = (1, 5, 10, 20)  # n of PAPERS 1.8, where it is 10
SCHEDULES: Final = (*FIXED, OS3, CONTINUOUS)
_RATIO: Final = 10.0  # what a search takes, in tokens: of no effect on a fixed stride
_FIXED: Final = 0.975  # DESIGN 5: a scan's batch costs little more than one query


def rates(
    runs: VirtualRuns,
    ks: Sequence[int],
    *,
    schedules: Sequence[Way] = SCHEDULES,
    following: Sequence[int] = FOLLOWING,
    told: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Count in every combination; the loop, the model and the datastore are the real ones.

    Only the time is virtual, a search taking as long as ten tokens, so that the counts
    are the same on any machine. Every text is asserted equal to the plain loop's.

    Args:
        runs: what is continued.
        ks: how many neighbours vote.
        schedules: when it is verified.
        following: how many entries behind each neighbour the cache takes in.
        told: hears of each combination as it is done.
    """
    latencies = virtual_latencies(_RATIO, _FIXED)
    rows = []
    for k in ks:
        truths = runs.plain(k, latencies)
        for way in schedules:
            for n in following:
                answers = runs.run(replace(way, following=n), k, latencies, truths)
                for place, ours in runs.by_place(answers):
                    rows.append(
                        {
                            "k": k,
                            "schedule": way.name,
                            "following": n,
                            "place": place,
                            **_counts(ours),
                        }
                    )
                told(f"k = {k}, {way.name}, n = {n}: {_shown(rows[-1]['rate'])}")
    return rows


def _counts(answers: Sequence[Answer]) -> dict[str, Any]:
    stats = [answer.stats for answer in answers]
    return {
        "requests": len(stats),
        "tokens": sum(one.segments for one in stats),
        "guesses": sum(one.guesses for one in stats),
        "rate": guess_rate(answers),
        "round_trips": fmean(one.searches for one in stats),
        "wasted_tokens": fmean(one.wasted_segments for one in stats),
    }


def _shown(rate: float | None) -> str:
    return "no guesses" if rate is None else f"{rate:.0%} right"
