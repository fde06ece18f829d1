"""Writes simulated results as Markdown tables."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness.report import table
from ralmspec_plugins.errors import MissingExtraError

_PLACES = ("in_knowledge_base", "left_out")


def speed_up_tables(result: dict[str, Any]) -> str:
    """Write the speed-ups of simulate_traces.json: ways by regimes, for each mode.

    A cell has the article in the knowledge base / left out, and the published number behind.
    """
    cells = result["cells"]
    regimes = _each(cells, "regime")
    found = {(cell["mode"], cell["column"], cell["regime"]): cell for cell in cells}
    parts = []
    for mode in _each(cells, "mode"):
        rows = [
            [column, *(_with_published(found[mode, column, regime]) for regime in regimes)]
            for column in _each(cells, "column")
        ]
        parts.append(f"**{mode.capitalize()}**\n\n{table(['', *regimes], rows)}")
    return "\n\n".join(parts)


def detail_tables(result: dict[str, Any]) -> str:
    """Write all counts of simulate_traces.json in the mode that is held to, by regime."""
    parts = []
    ours = [cell for cell in result["cells"] if cell["mode"] == result["held_to"]]
    head = ["", "speed-up", "bound", "published", "guesses right", "round trips"]
    head += ["mean batch", "segments thrown away", "saved a request"]
    for regime in _each(ours, "regime"):
        cells = [cell for cell in ours if cell["regime"] == regime]
        rows = [
            [
                cell["column"],
                _both(cell, "speed_up", "{:.2f}"),
                f"{cell['in_knowledge_base']['bound']:.1f}",
                "-" if cell["published"] is None else f"{cell['published']:.2f}",
                _both(cell, "guess_rate", "{:.0%}"),
                _both(cell, "round_trips", "{:.1f}"),
                _both(cell, "mean_batch", "{:.1f}"),
                _both(cell, "wasted_segments", "{:.1f}"),
                _both(cell, "saved_s", "{:.2f} s"),
            ]
            for cell in cells
        ]
        count = cells[0]["in_knowledge_base"]["requests"]
        title = f"**{regime}**, simulated, n = {count} requests of {result['steps']} retrievals"
        parts.append(f"{title}\n\n{table(head, rows)}")
    return "\n\n".join(parts)


def demand_table(result: dict[str, Any]) -> str:
    """Write what was demanded of simulate_traces.json, and what each mode reached."""
    said = result["verdicts"]
    modes = _each(said, "mode")
    reached: dict[tuple[str, str, str, float], dict[str, list[str]]] = {}
    for one in said:
        key = one["regime"], one["column"], one["over"], one["least"]
        shown = f"{one['reached']:.2f}" + ("" if one["met"] else " (missed)")
        reached.setdefault(key, {}).setdefault(one["mode"], []).append(shown)
    rows = [
        [regime, column, over, f"{least:g}", *(" / ".join(modes_of[mode]) for mode in modes)]
        for (regime, column, over, least), modes_of in reached.items()
    ]
    head = ["regime", "way", "times", "at least"]
    held = [f"{mode} (held to)" if mode == result["held_to"] else mode for mode in modes]
    return table([*head, *held], rows)


def ablation_tables(result: dict[str, Any], ablation: str | None = None) -> str:
    """Write simulate_ablations.json: lines by settings, for each ablation or for one.

    A cell has the speed-up with the article in the knowledge base / left out, and the seconds
    that a request is spared.
    """
    parts = []
    for name in _each(result["rows"], "ablation"):
        if ablation not in (None, name):
            continue
        rows = [row for row in result["rows"] if row["ablation"] == name]
        settings = _each(rows, "x")
        found = {(row["line"], row["x"]): row for row in rows}
        lines = [
            [line, *(_spared(found.get((line, setting))) for setting in settings)]
            for line in _each(rows, "line")
        ]
        head = [name, *(f"{x:,}" if isinstance(x, int) else str(x) for x in settings)]
        parts.append(table(head, lines))
    return "\n\n".join(parts)


def crowd_tables(result: dict[str, Any]) -> str:
    """Write simulate_crowds.json: a table for each store, plain against speculative."""
    parts = []
    head = ["requests", "way", "requests a second", "median", "95 % within", "mean batch"]
    head += ["queries searched", "guesses right"]
    for service in _each(result["rows"], "service"):
        ours = [row for row in result["rows"] if row["service"] == service]
        rows = [
            [
                f"{row['requests']:,}",
                row["arm"],
                f"{row['per_second']:.3g}",
                f"{row['median_s']:.1f} s",
                f"{row['p95_s']:.1f} s",
                f"{row['mean_batch']:.1f}",
                f"{row['queries']:,}",
                "-" if row["guess_rate"] is None else f"{row['guess_rate']:.0%}",
            ]
            for row in ours
        ]
        parts.append(f"**{service}** ({ours[0]['basis']})\n\n{table(head, rows)}")
    return "\n\n".join(parts)


def _with_published(cell: dict[str, Any]) -> str:
    shown = _both(cell, "speed_up", "{:.1f}")
    return shown if cell["published"] is None else f"{shown} ({cell['published']:.2f})"


def _both(cell: dict[str, Any], what: str, form: str) -> str:
    values = [cell[place][what] for place in _PLACES if cell[place] is not None]
    return " / ".join("-" if value is None else form.format(value) for value in values)


def _spared(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    saved_s = round(row["in_knowledge_base"]["saved_s"], 6) + 0.0  # sums differ in the last bits
    return f"{_both(row, 'speed_up', '{:.2f}')} ({saved_s:.3g} s)"


def _each(rows: Sequence[dict[str, Any]], name: str) -> list[Any]:
    """List what stands under a name, each once, in order."""
    return list(dict.fromkeys(row[name] for row in rows))


# Draws simulated ablations and crowds as SVG (needs the extra `plots`).


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
