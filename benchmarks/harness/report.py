"""Writes results as a page of Markdown: a table for each case, and what falls short."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, quantiles
from typing import Any, Final

from benchmarks.harness.cases import PLAIN_NAME, Store
from benchmarks.published import published
from benchmarks.simulated.predict import errors

# What the rows of a case come to: medians and quartiles, ratios with their intervals.


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
        of_bound: the share of the lower bound that it reaches; `None` where requests
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
    right = sum(row["accepted"] for row in rows)
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
    dice = random.Random(seed)
    means = sorted(fmean(dice.choices(values, k=len(values))) for _ in range(_DRAWS))
    return means[_DRAWS // 40], means[-_DRAWS // 40 - 1]


def regime(record: Mapping[str, Any]) -> tuple[float, float]:
    """Give the median seconds of a step and of a search in the plain runs of a case."""
    plain = [row for row in record["rows"] if row["arm"] == PLAIN_NAME]
    return median(row["step_s"] for row in plain), median(row["search_s"] for row in plain)


_HEAD: Final = (
    "",
    "seconds (quartiles)",
    "as fast as plain",
    "95 % of the mean ratio",
    "of the bound",
    "saved, s",
    "guesses right",
    "round trips",
    "batch",
    "thrown away",
    "a second",
    "published",
    "n",
)


def report(result: Mapping[str, Any], pictures: Mapping[str, str] | None = None) -> str:
    """Write the whole page.

    Args:
        result: of `python -m benchmarks`.
        pictures: the file that shows a case, by the case's name.
    """
    shown = pictures or {}
    parts = [f"# Benchmark: {result['suite']}", surroundings(result), _reading()]
    for record in result["cases"]:
        parts += _case(record, shown)
    parts += [*_foretold(result), "## What falls short", *_short(result)]
    return "\n\n".join(parts) + "\n"


def surroundings(result: Mapping[str, Any]) -> str:
    """Say when, on what and with what it was measured."""
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    models = ", ".join(f"{name} ({count:,} weights)" for name, count in result["models"].items())
    return (
        f"{result['date']}, commit {result['commit'] or 'unknown'}, on {result['machine']}; "
        f"load before: {result['load_before']}. {versions}. Texts: {result['texts']}; "
        f"encoder: {result['encoder']}; models: {models}."
    )


def _reading() -> str:
    return (
        "Every answer was asserted equal to the plain loop's in the same run: text, queries, "
        'sources and scores. All ways take turns, request by request. "As fast as plain" is '
        "the sum of the plain runs' seconds to the sum of the way's own; the bound is N a + b(1), "
        "with a replica (N - 1) a + max(a, b(1)), from the plain run of the same round. "
        '"Published" is RaLMSpec\'s number for GPT2 / LLaMA-2-7B at another ratio of '
        "searching to writing, on other machines."
    )


def _case(record: Mapping[str, Any], pictures: Mapping[str, str]) -> Iterator[str]:
    case = record["case"]
    store = Store(**{**case["store"], "settings": tuple(map(tuple, case["store"]["settings"]))})
    step_s, search_s = regime(record)
    ratio = search_s / step_s if step_s else float("inf")
    yield f"## {case['name']}"
    written = "real text" if case["text"] == "trace" else "the model's own text"
    at_once = f", {case['concurrency']} requests at once" if case["concurrency"] > 1 else ""
    yield (
        f"{case['about']} {store.told}. Model {case['model']}, {written}, {case['workload']}; "
        f"{case['steps']} steps of {case['interval']} tokens{at_once}: "
        f"one step {1000 * step_s:.1f} ms, "
        f"one search {1000 * search_s:.1f} ms, R/G {ratio:.2f}."
    ).strip()
    yield table(_HEAD, [_row(one, case["name"]) for one in summaries(record)])
    if case["name"] in pictures:
        yield f"![where the time goes]({pictures[case['name']]})"


def _row(one: Summary, case: str) -> list[str]:
    wall, rate = one.wall_s, one.guess_rate
    return [
        one.arm,
        f"{wall.median:.2f} ({wall.low:.2f} to {wall.high:.2f})",
        f"{one.speed_up:.2f}",
        f"{one.interval[0]:.2f} to {one.interval[1]:.2f}",
        "-" if one.of_bound is None else f"{100 * one.of_bound:.0f} %",
        f"{one.saved_s:.2f}",
        "-" if rate is None else f"{100 * rate:.0f} %",
        f"{one.round_trips:.1f}",
        "-" if one.batch is None else f"{one.batch:.1f}",
        f"{one.wasted:.1f}",
        "-" if one.per_s is None else f"{one.per_s:.2f}",
        published(case, one.arm),
        str(one.runs),
    ]


def _foretold(result: Mapping[str, Any]) -> Iterator[str]:
    """Say how well the runs were predicted in virtual time."""
    found = errors(result)
    if found is not None:
        yield "## Predicted against measured"
        yield (
            f"{found[1]} first requests, each predicted by `Simulation` from the plain run beside "
            f"it and the measured b(n): the median error is {found[0]:.1%}."
        )


def _short(result: Mapping[str, Any]) -> Iterator[str]:
    """List every cell in which an adaptive schedule may be slower than the plain loop."""
    slow = [
        f"- {record['case']['name']}, {one.arm}: {one.interval[0]:.2f} to {one.interval[1]:.2f}"
        for record in result["cases"]
        for one in summaries(record)
        if one.arm not in _exempt(record) and not one.as_fast
    ]
    if slow:
        yield f"Slower than {NOT_SLOWER} times plain, as far as can be told:"
        yield "\n".join(slow)
    else:
        yield (
            f"No adaptive schedule is slower than plain: every interval lies above {NOT_SLOWER}. "
            "The paper's fixed settings are reproductions, and exempt."
        )


def _exempt(record: Mapping[str, Any]) -> set[str]:
    arms = record["case"]["arms"]
    return {PLAIN_NAME, *(arm["name"] for arm in arms if arm["kind"] in ("fixed", "plain"))}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table in Markdown.

    >>> print(table(["a", "b"], [["1", "2"]]))
    | a | b |
    | --- | --- |
    | 1 | 2 |
    """
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
