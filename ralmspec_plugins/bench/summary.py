"""What the rows of a case come to: medians and quartiles, ratios with their intervals."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, quantiles
from typing import Any, Final

from ralmspec_plugins.bench.cases import PLAIN_NAME

_DRAWS: Final = 4000
NOT_SLOWER: Final = 0.97  # what the lower end of an adaptive schedule's interval must be above


@dataclass(frozen=True, slots=True)
class Spread:
    """A median and the quartiles around it."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Summary:
    """One way to run a case, over all its requests and repetitions.

    Attributes:
        arm: its name.
        runs: how many.
        wall_s: seconds of a request.
        speed_up: all plain runs' seconds to all of its own, as the paper's averages are.
        ratios: of each run to the plain run beside it.
        interval: the 95 % bootstrap interval of the mean of these.
        of_bound: the share of the bound of DESIGN 5 that it reaches; `None` where requests
            share a model, for which there is no such bound.
        saved_s: seconds saved in a request, on average.
        guess_rate: the share of right guesses; `None` where none was made.
        round_trips: for a request, on average.
        batch: queries in a round trip, on average.
        wasted: segments thrown away, for a request, on average.
        per_s: requests answered in a second, where several are answered at once.
        shares: where a request's seconds go, on average: "writing" (kept), "thrown away",
            "waiting" for searches and all else.
    """

    arm: str
    runs: int
    wall_s: Spread
    speed_up: float
    ratios: Spread
    interval: tuple[float, float]
    of_bound: float | None
    saved_s: float
    guess_rate: float | None
    round_trips: float
    batch: float | None
    wasted: float
    per_s: float | None
    shares: Mapping[str, float]

    @property
    def as_fast(self) -> bool:
        """Whether it is as fast as the plain loop, or faster."""
        return self.arm == PLAIN_NAME or self.interval[0] > NOT_SLOWER


def summaries(record: Mapping[str, Any]) -> list[Summary]:
    """Sum up each way of a case, in the order in which they were run."""
    arms = list(dict.fromkeys(row["arm"] for row in record["rows"]))
    replicas = {arm["name"] for arm in record["case"]["arms"] if arm["replica"]}
    at_once = record["case"]["concurrency"]
    return [
        summary_of(
            arm,
            [row for row in record["rows"] if row["arm"] == arm],
            first_guessed=arm in replicas,
            at_once=at_once,
        )
        for arm in arms
    ]


def summary_of(
    arm: str, rows: Sequence[Mapping[str, Any]], *, first_guessed: bool, at_once: int
) -> Summary:
    """Sum up the runs of one way.

    Args:
        arm: its name.
        rows: its runs.
        first_guessed: whether the first retrieval is guessed too, which moves the bound.
        at_once: requests that were answered at a time.
    """
    walls = [row["wall_s"] for row in rows]
    ratios = [row["plain_s"] / row["wall_s"] for row in rows]
    bound = "bound_guessed_s" if first_guessed else "bound_s"
    guesses, trips = sum(row["guesses"] for row in rows), sum(row["round_trips"] for row in rows)
    right = sum(row["guesses_right"] for row in rows)
    wasted_s = fmean(row["wasted_s"] for row in rows)
    writing_s = fmean(row["writing_s"] for row in rows)
    return Summary(
        arm=arm,
        runs=len(rows),
        wall_s=spread(walls),
        speed_up=sum(row["plain_s"] for row in rows) / sum(walls),
        ratios=spread(ratios),
        interval=bootstrap(ratios),
        of_bound=sum(row[bound] for row in rows) / sum(walls) if at_once == 1 else None,
        saved_s=fmean(row["plain_s"] - row["wall_s"] for row in rows),
        guess_rate=right / guesses if guesses else None,
        round_trips=trips / len(rows),
        batch=sum(row["queries"] for row in rows) / trips if trips else None,
        wasted=fmean(row["wasted_segments"] for row in rows),
        per_s=None if at_once == 1 else len(rows) / sum({row["together_s"] for row in rows}),
        shares={
            "writing": max(0.0, writing_s - wasted_s),
            "thrown away": wasted_s,
            "waiting": max(0.0, fmean(walls) - writing_s),
        },
    )


def spread(values: Sequence[float]) -> Spread:
    """Give median and quartiles; of one value, it itself.

    >>> spread([1.0, 2.0, 3.0])
    Spread(median=2.0, low=1.0, high=3.0)
    """
    if len(values) < 2:
        return Spread(values[0], values[0], values[0])
    low, _, high = quantiles(values, n=4)
    return Spread(median(values), low, high)


def bootstrap(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """Give the 95 % interval of the mean, by drawing from the values again and again."""
    dice = random.Random(seed)  # noqa: S311 nothing here is secret
    means = sorted(fmean(dice.choices(values, k=len(values))) for _ in range(_DRAWS))
    return means[_DRAWS // 40], means[-_DRAWS // 40 - 1]


def regime(record: Mapping[str, Any]) -> tuple[float, float]:
    """Give the median seconds of a step and of a search in the plain runs of a case."""
    plain = [row for row in record["rows"] if row["arm"] == PLAIN_NAME]
    return median(row["step_s"] for row in plain), median(row["search_s"] for row in plain)
