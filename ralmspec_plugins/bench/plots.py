"""Pictures of results, by matplotlib (extra `plots`)."""

import io
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ralmspec_plugins.bench.measured import Point
from ralmspec_plugins.bench.summary import summaries
from ralmspec_plugins.timeline_picture import figure_class

_COLOURS: Final = {"writing": "#1f6fb4", "thrown away": "#e08a00", "waiting": "#c9ced4"}
_LINE_INCHES: Final = 0.32


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
