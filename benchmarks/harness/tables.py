"""Puts measured results together as tables: the paper's, the bounds, the ablations."""

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Final

from benchmarks.harness.cases import PLAIN_NAME
from benchmarks.harness.report import NOT_SLOWER, Summary, regime, summaries, table
from benchmarks.published import published
from benchmarks.simulated.predict import Prediction, errors
from ralmspec_plugins.retrieval.optional import optional

_TABLE_1: Final = ("exact dense", "approximate dense", "sparse")


@dataclass(frozen=True, slots=True)
class Point:
    """One way in an ablation.

    Attributes:
        line: what it is compared along with.
        x: the setting that was varied.
        found: what was measured.
    """

    line: str
    x: str
    found: Summary


_Records = Sequence[Mapping[str, Any]]
_Pick = Callable[[_Records], Iterator[Point]]


def table_1(result: Mapping[str, Any]) -> str:
    """Write the paper's Table 1 as measured: ways by stores and models.

    A cell has the speed-up, the share of the bound, and the published numbers for GPT-2 and
    LLaMA-2-7B; a column's head has R/G and the number of requests.
    """
    records = [one for one in result["cases"] if one["case"]["name"].startswith(_TABLE_1)]
    found = [{one.arm: one for one in summaries(record)} for record in records]
    ways = list(dict.fromkeys(arm for one in found for arm in one if arm != PLAIN_NAME))
    heads = []
    for record, ours in zip(records, found, strict=True):
        step_s, search_s = regime(record)
        runs = ours[PLAIN_NAME].runs
        heads.append(f"{record['case']['name']}: R/G {search_s / step_s:.2g}, n = {runs}")
    rows = [
        [way, *(_cell(record, ours, way) for record, ours in zip(records, found, strict=True))]
        for way in ways
    ]
    return table(["", *heads], rows)


def _cell(record: Mapping[str, Any], found: Mapping[str, Summary], way: str) -> str:
    if way not in found:
        return "-"
    one = found[way]
    bound = "" if one.of_bound is None else f", {100 * one.of_bound:.0f} % of the bound"
    told = published(record["case"]["name"], way)
    return f"{one.speed_up:.2f}{bound}" + (f" ({told})" if told else "")


def against_bound(result: Mapping[str, Any], begins: tuple[str, ...]) -> str:
    """Write what cases of these names reach, one line for each way, by rising R/G."""
    head = ["", "R/G", "", "as fast as plain", "95 % of the mean ratio", "of the bound"]
    head += ["guesses right", "round trips", "thrown away", "n"]
    rows = [
        [
            record["case"]["name"],
            f"{_ratio(record):.2g}",
            one.arm,
            f"{one.speed_up:.2f}",
            f"{one.interval[0]:.2f} to {one.interval[1]:.2f}",
            "-" if one.of_bound is None else f"{100 * one.of_bound:.0f} %",
            *_counts(one),
        ]
        for record in sorted(_of(result, begins), key=_ratio)
        for one in summaries(record)[1:]
    ]
    return table(head, rows)


_FIRST_PAGE: Final = {
    "exact dense, random:4x256": "exact scan of a million vectors, in another process",
    "exact dense, random:6x384": "the same, a larger model",
    "exact dense, R/G above 10, random:4x256": "exact scan of 3,850 vectors, delayed by 1.5 s",
    "exact dense, R/G above 10, random:6x384": "the same, a larger model",
    "remote, 60 ms": "remote, 60 ms",
    "remote, 180 ms": "remote, 180 ms",
    "remote, 1000 ms": "remote, 1 s",
    "approximate dense, random:4x256": "HNSW of 100,000 vectors, in the model's process",
    "sparse, random:4x256": "BM25 of 200,000 passages, in the model's process",
}
_OURS: Final = ("continuous", "continuous, P256, 32 lanes")  # the default; for a remote store


def first_page(result: Mapping[str, Any]) -> str:
    """Write one row a configuration: ours by default, the best of the paper's, and the bound."""
    records = {one["case"]["name"]: one for one in result["cases"]}
    rows = []
    for name, label in _FIRST_PAGE.items():
        found = {one.arm: one for one in summaries(records[name])}
        ours = next(found[arm] for arm in _OURS if arm in found)
        paper = [one for arm, one in found.items() if arm.startswith(("base", "+"))]
        best = max(paper, key=lambda one: one.speed_up, default=None)
        assert ours.of_bound is not None
        rows.append(
            [
                label,
                f"{_ratio(records[name]):.2g}",
                f"{ours.speed_up:.1f}",
                "not run" if best is None else f"{best.speed_up:.1f} ({best.arm})",
                f"{ours.speed_up / ours.of_bound:.1f}",
            ]
        )
    head = ["configuration", "R/G", "speedup", "RaLMSpec's best setting (our reimplementation)"]
    return table([*head, "upper bound"], rows)


def at_once(result: Mapping[str, Any]) -> str:
    """Write requests a second where several are answered at once."""
    rows = [
        [
            record["case"]["name"],
            one.arm,
            f"{one.per_s:.2f}",
            f"{one.speed_up:.2f}",
            _rate(one),
            f"{one.round_trips:.1f}",
            "-" if one.batch is None else f"{one.batch:.1f}",
            str(one.runs),
        ]
        for record in result["cases"]
        if record["case"]["concurrency"] > 1
        for one in summaries(record)
    ]
    head = ["", "", "requests a second", "as fast as plain", "guesses right", "round trips"]
    return table([*head, "batch", "n"], rows)


def slower(result: Mapping[str, Any]) -> str:
    """List the cells in which an adaptive schedule may be slower than the plain loop.

    Those with a store in the model's process are left out: `intervals` has more of them.
    """
    found = []
    for record in result["cases"]:
        if record["case"]["store"]["place"] == "here":
            continue
        kinds = {arm["name"]: arm["kind"] for arm in record["case"]["arms"]}
        found += [
            [record["case"]["name"], one.arm, f"{one.interval[0]:.2f} to {one.interval[1]:.2f}"]
            for one in summaries(record)
            if kinds.get(one.arm) in ("os3", "continuous") and not one.as_fast
        ]
    if not found:
        return f"None: each interval of an adaptive schedule lies above {NOT_SLOWER}."
    return table(["", "", "95 % of the mean ratio"], found)


def intervals(result: Mapping[str, Any]) -> str:
    """Write how surely each way is as fast as the plain loop."""
    head = ["", "R/G", "", "as fast as plain", "95 % of the mean ratio", "guesses right", "n"]
    rows = []
    for record in result["cases"]:
        for one in summaries(record)[1:]:
            low, high = one.interval
            rows.append(
                [
                    record["case"]["name"],
                    f"{_ratio(record):.2g}",
                    one.arm,
                    f"{one.speed_up:.3f}",
                    f"{low:.3f} to {high:.3f}",
                    _rate(one),
                    str(one.runs),
                ]
            )
    return table(head, rows)


def predicted(result: Mapping[str, Any]) -> str:
    """Write predicted against measured seconds of first requests, for each case and way."""
    rows = []
    for record in result["cases"]:
        by_way: dict[str, list[Prediction]] = {}
        for row in record["rows"]:
            if "predicted_s" in row:
                pair = Prediction(row["predicted_s"], row["wall_s"])
                by_way.setdefault(row["arm"], []).append(pair)
        for way, pairs in by_way.items():
            said, took = (
                fmean(one.predicted_s for one in pairs),
                fmean(one.measured_s for one in pairs),
            )
            error = f"{100 * (said / took - 1):+.0f} %"
            rows.append([record["case"]["name"], way, f"{said:.2f}", f"{took:.2f}", error])
    found = errors(result)
    assert found is not None, "there are no predictions in these results"
    head = ["", "", "predicted, s", "measured, s", "error"]
    told = (
        f"Median error of {found[1]} first requests in {len(rows)} configurations: {found[0]:.1%}."
    )
    return f"{told}\n\n{table(head, rows)}"


def ablation(result: Mapping[str, Any], name: str) -> str:
    """Write one ablation as a table."""
    head = ["", "", "as fast as plain", "95 % of the mean ratio", "saved a request, s"]
    head += ["guesses right", "round trips", "thrown away", "n"]
    rows = [
        [
            point.line,
            point.x,
            f"{point.found.speed_up:.2f}",
            f"{point.found.interval[0]:.2f} to {point.found.interval[1]:.2f}",
            f"{point.found.saved_s:.2f}",
            *_counts(point.found),
        ]
        for point in points(result, name)
    ]
    return table(head, rows)


def points(result: Mapping[str, Any], name: str) -> list[Point]:
    """Give what an ablation measured, in the order of its table."""
    return list(ABLATIONS[name](result["cases"]))


def _ways(case: str, pattern: str) -> _Pick:
    """Pick the ways of one case; the pattern says what of their names is line and what is x."""

    def pick(records: _Records) -> Iterator[Point]:
        for record in records:
            if record["case"]["name"] != case:
                continue
            for one in summaries(record)[1:]:
                match = re.fullmatch(pattern, one.arm)
                parts = match.groupdict() if match else {"line": "", "x": one.arm}
                yield Point(parts.get("line") or "", parts["x"], one)

    return pick


def _cases(pattern: str) -> _Pick:
    """Pick all ways of the cases whose name fits; what the pattern holds is x."""

    def pick(records: _Records) -> Iterator[Point]:
        for record in records:
            if match := re.fullmatch(pattern, record["case"]["name"]):
                for one in summaries(record)[1:]:
                    yield Point(one.arm, match["x"].replace(",", ""), one)

    return pick


ABLATIONS: Final[Mapping[str, _Pick]] = {
    "stride": _ways("speculation stride", r"stride (?P<x>\d+)"),
    "cache": _ways("cache size and eviction", r"(?P<line>\w+), (?P<x>\d+)"),
    "prefetch": _ways("prefetch", r"prefetch (?P<x>\d+)"),
    "interval": _cases(r"interval (?P<x>\d+)"),
    "window": _ways("window", r"window (?P<x>\d+)"),
    "lanes": _ways("lanes", r"(?P<x>\d+) lanes"),
    "latency": _cases(r"latency (?P<x>\d+) ms"),
    "passages": _cases(r"(?P<x>[\d,]+) passages"),
    "turns": _ways("switch interval", r"turns every (?P<x>\d+) us"),
}
"""The measured ablations by name."""


def _of(result: Mapping[str, Any], begins: tuple[str, ...]) -> list[Mapping[str, Any]]:
    return [one for one in result["cases"] if one["case"]["name"].startswith(begins)]


def _ratio(record: Mapping[str, Any]) -> float:
    step_s, search_s = regime(record)
    return search_s / step_s


def _counts(one: Summary) -> list[str]:
    return [_rate(one), f"{one.round_trips:.1f}", f"{one.wasted:.1f}", str(one.runs)]


def _rate(one: Summary) -> str:
    return "-" if one.guess_rate is None else f"{100 * one.guess_rate:.0f} %"


# Pictures of results, by matplotlib (extra `plots`).


_COLOURS: Final = {"writing": "#1f6fb4", "thrown away": "#e08a00", "waiting": "#c9ced4"}
_LINE_INCHES: Final = 0.32


def figure_class() -> Any:
    """Give matplotlib's Figure, which needs no display and no global state.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    return optional("matplotlib.figure", "plots", "matplotlib").Figure


def where_the_time_goes(record: Mapping[str, Any]) -> bytes:
    """Draw one bar for each way to run a case, split into writing, waste and waiting: an SVG.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    found = summaries(record)
    height = 1.2 + _LINE_INCHES * len(found)
    figure = figure_class()(figsize=(8.0, height), layout="constrained")
    axes = figure.add_subplot()
    names = [one.arm for one in found]
    left = [0.0] * len(found)
    for part, colour in _COLOURS.items():
        widths = [one.shares[part] for one in found]
        axes.barh(names, widths, left=left, color=colour, label=part, height=0.7)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for place, one in enumerate(found):
        axes.text(left[place], place, f" {one.speed_up:.2f} x", va="center", fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("seconds of a request")
    axes.set_xlim(0, 1.12 * max(left))
    axes.spines[["right", "top"]].set_visible(False)
    axes.legend(loc="lower right", fontsize=8)
    axes.set_title(record["case"]["name"], fontsize=10)
    return svg(figure)


def ablation_picture(points: Sequence[Point], x_label: str) -> bytes:
    """Draw speed-ups with their 95 % intervals over what was varied, a line for each way: an SVG.

    What is no number (a schedule that stands beside the varied ones) is drawn as a level.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = figure_class()(figsize=(6.0, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for line in dict.fromkeys(point.line for point in points):
        ours = [point for point in points if point.line == line and point.x.isdigit()]
        if not ours:
            continue
        found = [point.found for point in ours]
        below = [max(0.0, one.speed_up - one.interval[0]) for one in found]
        above = [max(0.0, one.interval[1] - one.speed_up) for one in found]
        x, y = [int(point.x) for point in ours], [one.speed_up for one in found]
        axes.errorbar(x, y, [below, above], marker=".", capsize=2, label=line or None)
    for point in points:
        if not point.x.isdigit():
            level = point.found.speed_up
            axes.axhline(level, linestyle=":", color="#888888")
            axes.annotate(
                point.x,
                (1, level),
                xycoords=("axes fraction", "data"),
                ha="right",
                va="bottom",
                fontsize=8,
            )
    ticks = sorted({int(point.x) for point in points if point.x.isdigit()})
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{x:,}" for x in ticks])
    axes.minorticks_off()
    axes.set_xlabel(x_label)
    axes.set_ylabel("times as fast as plain")
    axes.spines[["right", "top"]].set_visible(False)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=8)
    return svg(figure)


def svg(figure: Any) -> bytes:
    """Give a figure's SVG, the same for the same content."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
