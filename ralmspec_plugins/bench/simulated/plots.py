"""Draws simulated ablations and crowds as SVG (needs the extra `plots`)."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ralmspec_plugins.errors import MissingExtraError

_LOGARITHMIC = {"prefetch", "window", "lanes", "interval", "latency", "passages", "cache"}
_X = {
    "stride": "guesses per verification",
    "cache": "passages in the shared pool",
    "prefetch": "hits that a verification brings to the pool",
    "interval": "steps of 4 tokens between two retrievals",
    "window": "unverified steps at once",
    "lanes": "searches that may be out at a time",
    "latency": "seconds of a search, beside a step of 25 ms",
    "passages": "passages",
    "batching": "a batch costs less than its queries",
}


def draw_ablations(result: dict[str, Any], stem: Path) -> list[Path]:
    """Draw a picture for each ablation, beside `stem`; solid: article in, dotted: left out.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    rows = result["rows"]
    pictures = []
    for ablation in dict.fromkeys(row["ablation"] for row in rows):
        ours = [row for row in rows if row["ablation"] == ablation]
        picture = stem.with_name(f"{stem.name}_{ablation}.svg")
        _draw(picture, partial(_ablation, ablation, ours))
        pictures.append(picture)
    return pictures


def draw_crowds(result: dict[str, Any], stem: Path) -> list[Path]:
    """Draw requests a second and the median latency by the size of the crowd.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    pictures = []
    for what, label in (("per_second", "requests a second"), ("median_s", "median seconds")):
        picture = stem.with_name(f"{stem.name}_{what}.svg")
        _draw(picture, partial(_crowds, result["rows"], what, label))
        pictures.append(picture)
    return pictures


def _ablation(ablation: str, rows: Sequence[dict[str, Any]], axis: Any) -> None:
    names = list(dict.fromkeys(str(row["x"]) for row in rows))
    for line in dict.fromkeys(row["line"] for row in rows):
        ours = [row for row in rows if row["line"] == line]
        logarithmic = ablation in _LOGARITHMIC
        x = [row["x"] if logarithmic else names.index(str(row["x"])) for row in ours]
        color = None
        for place, style in (("in_knowledge_base", "-"), ("left_out", ":")):
            if any(row[place] is None for row in ours):
                continue
            y = [row[place]["speed_up"] for row in ours]
            label = line if color is None else None
            (drawn,) = axis.plot(x, y, style, marker=".", color=color, label=label)
            color = drawn.get_color()
    if ablation in _LOGARITHMIC:
        axis.set_xscale("log")
    else:
        axis.set_xticks(range(len(names)), names)
    axis.set_xlabel(_X[ablation])
    axis.set_ylabel("times as fast as plain (simulated)")


def _crowds(rows: Sequence[dict[str, Any]], what: str, label: str, axis: Any) -> None:
    color: dict[str, Any] = {}
    for service, arm in dict.fromkeys((row["service"], row["arm"]) for row in rows):
        ours = [row for row in rows if (row["service"], row["arm"]) == (service, arm)]
        style = ":" if arm == "plain" else "-"
        (drawn,) = axis.plot(
            [row["requests"] for row in ours],
            [row[what] for row in ours],
            style,
            marker=".",
            color=color.get(service),
            label=f"{service}, {arm}",
        )
        color[service] = drawn.get_color()
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("requests at once")
    axis.set_ylabel(f"{label} (simulated)")


def _draw(picture: Path, fill: Callable[[Any], None]) -> None:
    """Draw one picture; the same numbers give the same file."""
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise MissingExtraError("plots", "matplotlib") from error
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": picture.stem}):
        figure = Figure(figsize=(8.5, 5), layout="constrained")
        axis = figure.subplots()
        fill(axis)
        axis.grid(visible=True, which="both", alpha=0.25)
        axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
        canvas: Any = FigureCanvasSVG(figure)
        canvas.print_svg(str(picture), metadata={"Date": None})
