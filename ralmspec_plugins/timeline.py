"""Draw what happened when: the model's segments, the searches, and what was thrown away.

People would rather look than read numbers. `write` makes one file: a page that
needs nothing else (.html), or a picture by matplotlib (.png, .svg).
"""

import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.retrieval.optional import optional
from ralmspec_plugins.retrieval.storage.files import write_whole
from ralmspec_plugins.types import Outcome, Span, Stats

PICTURES = (".png", ".svg")
MODEL_LANE, ASK_LANE, SEARCH_LANE = 0, 1, 2
_AT_ONCE_S = 1e-9  # two searches that touch may share a lane


@dataclass(frozen=True, slots=True)
class Bar:
    """One piece of work as it is drawn."""

    lane: int  # MODEL_LANE, ASK_LANE, or SEARCH_LANE and following
    look: str  # a key of LOOKS
    started_s: float
    ended_s: float
    ahead: bool = False  # written before its passages were verified
    label: str = ""  # inside the bar, where there is room
    hint: str = ""  # in full


@dataclass(frozen=True, slots=True)
class Band:
    """One run: its lanes from the model's down, and its numbers."""

    name: str
    lanes: int
    bars: tuple[Bar, ...]
    stats: Stats


LOOKS = {
    "kept": "written, and part of the answer",
    "dropped": "written behind a wrong guess, thrown away",
    "cancelled": "stopped in the middle, thrown away",
    "failed": "failed",
    "search": "search (number: queries in one round trip)",
    "ask": "question formed and encoded, guess made",
}
AHEAD = "hatched: written ahead, before its passages were verified"


def check_path(path: str | os.PathLike[str]) -> None:
    """Refuse, before anything is run, a file that could not be written.

    Raises:
        ConfigError: the suffix is not known, or there is no such folder.
        MissingExtraError: a picture needs matplotlib.
    """
    file = Path(path)
    suffix = file.suffix.lower()
    if suffix not in (".html", *PICTURES):
        raise ConfigError(
            f"a timeline is written as {', '.join(('.html', *PICTURES))}, got {file.name!r}"
        )
    if not file.absolute().parent.is_dir():
        raise ConfigError(f"there is no folder {file.parent} to write {file.name} to")
    if file.is_dir():
        raise ConfigError(f"{file} is a folder; give a file's name")
    if suffix in PICTURES:
        figure_class()


def write(
    path: str | os.PathLike[str], runs: Mapping[str, Stats], *, title: str = "", note: str = ""
) -> None:
    """Draw runs of one request below each other on one axis of time; plain ones come last.

    The file is there whole or not at all.

    Args:
        path: ends in .html, .png or .svg.
        runs: the statistics by the run's name, such as "speculative" and "plain".
        title: what was asked.
        note: what a reader must know, such as costs that were added.

    Raises:
        ConfigError: no runs, or the path is not one that can be written.
        MissingExtraError: a picture needs matplotlib.
    """
    check_path(path)
    if not runs:
        raise ConfigError("a timeline needs at least one run")
    bands = layout(runs)
    file = Path(path)
    if file.suffix.lower() == ".html":
        content = page(bands, title, note).encode()
    else:
        content = picture(bands, title, note, file.suffix.lower().removeprefix("."))
    write_whole(file, content)


def layout(runs: Mapping[str, Stats]) -> list[Band]:
    """Give each run its band, plain runs last."""
    return [_band(name, runs[name]) for name in sorted(runs, key=lambda name: name == "plain")]


def _band(name: str, stats: Stats) -> Band:
    searches = [span for span in stats.timeline if span.kind == "search"]
    stacked = lanes_of(searches)
    bars = [_bar(span, _lane(span)) for span in stats.timeline if span.kind != "search"]
    bars += [_bar(span, SEARCH_LANE + lane) for span, lane in zip(searches, stacked, strict=True)]
    return Band(name, SEARCH_LANE + max(stacked, default=0) + 1, tuple(bars), stats)


def lanes_of(spans: Sequence[Span]) -> list[int]:
    """Stack spans that overlap: each takes the first lane that is free when it starts.

    >>> lanes_of([Span("search", 0, 2), Span("search", 1, 3), Span("search", 2, 4)])
    [0, 1, 0]
    """
    free_at: list[float] = []
    lanes = [0] * len(spans)
    for place in sorted(range(len(spans)), key=lambda place: spans[place].started_s):
        span = spans[place]
        open_lanes = (at for at, end in enumerate(free_at) if end <= span.started_s + _AT_ONCE_S)
        lane = next(open_lanes, len(free_at))
        free_at[lane : lane + 1] = [span.ended_s]
        lanes[place] = lane
    return lanes


def _lane(span: Span) -> int:
    return MODEL_LANE if span.kind == "extend" else ASK_LANE


def _bar(span: Span, lane: int) -> Bar:
    times = f"{span.started_s:.3f} s to {span.ended_s:.3f} s"
    if span.kind == "search":
        label = str(span.queries)
        failed = span.outcome is Outcome.FAILED
        hint = f"search of {label} {'query' if span.queries == 1 else 'queries'}, {times}"
        return Bar(lane, "failed" if failed else "search", *_ends(span), label=label, hint=hint)
    if span.kind == "extend":
        ahead = ", ahead of its verification" if span.ahead else ""
        look = span.outcome.value
        return Bar(
            lane, look, *_ends(span), ahead=span.ahead, hint=f"{LOOKS[look]}{ahead}, {times}"
        )
    return Bar(lane, "ask", *_ends(span), hint=f"{span.kind}, {times}")


def _ends(span: Span) -> tuple[float, float]:
    return span.started_s, span.ended_s


def looks_used(bands: Iterable[Band]) -> list[str]:
    """List the looks that a drawing needs to explain, in the order of `LOOKS`."""
    used = {bar.look for band in bands for bar in band.bars}
    return [look for look in LOOKS if look in used]


def end_s(bands: Iterable[Band]) -> float:
    """Give the time at which the last thing ended; never 0."""
    ends = [bar.ended_s for band in bands for bar in band.bars]
    return max([*ends, *(band.stats.wall_s for band in bands), 1e-6])


def ticks(until_s: float, most: int = 12) -> list[float]:
    """Choose round times for an axis.

    >>> ticks(1.0)
    [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    """
    step = 1e-6
    while until_s / step > most:
        for factor in (2, 2.5, 2):
            step *= factor
            if until_s / step <= most:
                break
    return [round(step * place, 9) for place in range(int(until_s / step + 1e-9) + 1)]


def headline(bands: Sequence[Band]) -> str:
    """Say in one sentence what came of it."""
    by_name = {band.name: band.stats for band in bands}
    plain, fast = by_name.get("plain"), by_name.get("speculative")
    if plain is None or fast is None or not fast.wall_s:
        stats = bands[0].stats
        return f"{bands[0].name}: {stats.wall_s:.2f} s, {stats.searches} round trips"
    trips = f"{fast.searches} round trips"
    if fast.searches != plain.searches:
        trips += f" in place of {plain.searches}"
    return (
        f"{fast.wall_s:.2f} s with speculation, {plain.wall_s:.2f} s without: "
        f"{plain.wall_s / fast.wall_s:.2f} times as fast, {trips}"
    )


def numbers(stats: Stats) -> dict[str, str]:
    """Give a run's headline numbers by name."""
    first = "-" if stats.first_text_s is None else f"{stats.first_text_s:.3f} s"
    right = f"{stats.accepted} of {stats.guesses}" if stats.guesses else "-"
    return {
        "time": f"{stats.wall_s:.3f} s",
        "first text": first,
        "round trips": str(stats.searches),
        "queries": str(stats.queries),
        "guesses right": right,
        "segments kept": str(stats.segments),
        "thrown away": str(stats.wasted_segments),
        "searching": f"{stats.search_s:.3f} s",
        "writing": f"{stats.write_s:.3f} s",
        "both at once": f"{stats.overlap_s:.3f} s",
    }


# The timeline as one HTML page: inline SVG, no script, nothing fetched from elsewhere.


_GUTTER, _WIDTH, _RIGHT = 96, 1000, 24  # names of lanes, the plot, and room for the last tick
_TITLE, _GAP, _AXIS = 30, 14, 26  # a band's name, between bands, the axis
_SVG_HEIGHTS = {MODEL_LANE: 30, ASK_LANE: 7}
_SEARCH, _SEARCH_THIN, _MANY = 16, 8, 12  # a search lane; the same where there are many
_LEAST = 0.6  # a bar is never drawn narrower
_LETTER = 7.0  # the width of a digit in a bar

_STYLE = """
:root { color-scheme: light dark; --page: #fff; --text: #1b1f24; --soft: #59636e; --line: #d5dae0;
  --lane: #f5f7f9; --kept: #1f6fb4; --dropped: #e08a00; --cancelled: #8d96a0; --failed: #c62828;
  --search: #128a6a; --ask: #a05fb0; --hatch: #ffffffa0; }
@media (prefers-color-scheme: dark) { :root { --page: #14181d; --text: #e6e9ed; --soft: #9aa4af;
  --line: #39424c; --lane: #1b2127; --kept: #4d9fe6; --dropped: #f0a63c; --cancelled: #78828d;
  --failed: #ef6b6b; --search: #35b993; --ask: #c58ad6; --hatch: #14181db0; } }
body { margin: 2rem auto; max-width: 72rem; padding: 0 1rem; background: var(--page);
  color: var(--text); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.25rem; margin: 0 0 .25rem; } p { margin: .25rem 0; }
.note { color: var(--dropped); font-weight: 600; } .soft { color: var(--soft); }
.wide { overflow-x: auto; } svg.plot { min-width: 640px; width: 100%; height: auto; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .8rem .2rem 0; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; } th:first-child { text-align: left; } th { font-weight: 600; }
ul { list-style: none; display: flex; flex-wrap: wrap; gap: .3rem 1.4rem; padding: 0; }
li svg { vertical-align: -2px; margin-right: .45rem; }
text { fill: var(--soft); font: 12px system-ui, sans-serif; } text.name { fill: var(--text);
  font-weight: 600; font-size: 14px; } text.in { fill: #fff; font-size: 11px; }
@media (prefers-color-scheme: dark) { text.in { fill: #10141a; } }
.lane { fill: var(--lane); } .tick { stroke: var(--line); } .kept { fill: var(--kept); }
.dropped { fill: var(--dropped); } .cancelled { fill: var(--cancelled); }
.failed { fill: var(--failed); } .search { fill: var(--search); } .ask { fill: var(--ask); }
.bar { stroke: var(--page); stroke-width: .5; } .bar.ask { stroke: none; }
.bar:hover, .bar.ask:hover { stroke: var(--text); stroke-width: 1.5; }
.hatch { stroke: var(--hatch); }
.first { stroke: var(--text); stroke-dasharray: 3 3; }
"""
_PATTERN = (
    '<pattern id="ahead" width="5" height="5" patternUnits="userSpaceOnUse" '
    'patternTransform="rotate(45)"><line class="hatch" x1="1" y1="0" x2="1" y2="5" '
    'stroke-width="1.6"/></pattern>'
)


def page(bands: Sequence[Band], title: str, note: str) -> str:
    """Write the page."""
    shown = escape(title or "What happened when")
    warning = f'<p class="note">{escape(note)}</p>' if note else ""
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{shown}</title>\n<style>{_STYLE}</style>\n</head>\n<body>",
            f"<h1>{shown}</h1>\n<p>{escape(headline(bands))}.</p>\n{warning}",
            f'<figure class="wide" style="margin: 1rem 0">{_plot(bands)}</figure>',
            _svg_legend(bands),
            f'<div class="wide">{_table(bands)}</div>',
            '<p class="soft">Each run begins at 0. Rest the pointer on a bar for its times.</p>',
            "</body>\n</html>\n",
        ]
    )


def _plot(bands: Sequence[Band]) -> str:
    """Draw all bands over one axis."""
    until_s = end_s(bands)
    parts, top = [], 0.0
    for band in bands:
        drawn, top = _svg_band(band, top, until_s)
        parts.append(drawn)
    width = _GUTTER + _WIDTH + _RIGHT
    description = "; ".join(f"{band.name}: {_said(band)}" for band in bands)
    return (
        f'<svg class="plot" viewBox="0 0 {width} {top + _AXIS:.0f}" role="img" '
        f'aria-labelledby="plot-title plot-text"><title id="plot-title">Timeline</title>'
        f'<desc id="plot-text">{escape(description)}</desc><defs>{_PATTERN}</defs>'
        f"{_axis(until_s, top)}{''.join(parts)}</svg>"
    )


def _said(band: Band) -> str:
    return ", ".join(f"{name} {value}" for name, value in numbers(band.stats).items())


def _axis(until_s: float, bottom: float) -> str:
    parts = []
    marks = ticks(until_s)
    unit, factor = ("ms", 1000) if until_s < 1 else ("s", 1)
    for mark in marks:
        x = _x(mark, until_s)
        parts.append(
            f'<line class="tick" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{bottom:.0f}"/>'
            f'<text x="{x:.1f}" y="{bottom + 16:.0f}" text-anchor="middle">{mark * factor:g}'
            f"{' ' + unit if mark == marks[-1] else ''}</text>"
        )
    return "".join(parts)


def _svg_band(band: Band, top: float, until_s: float) -> tuple[str, float]:
    """Draw one run; give the drawing and where the next one begins."""
    parts = [f'<text class="name" x="0" y="{top + 18:.0f}">{escape(band.name)}</text>']
    tops = _lane_tops(band, top + _TITLE)
    heights = [_height(lane, band.lanes) for lane in range(band.lanes)]
    names = {MODEL_LANE: "model", ASK_LANE: "questions", SEARCH_LANE: "searches"}
    for lane, (y, height) in enumerate(zip(tops, heights, strict=True)):
        name = names.get(lane, "")
        parts.append(
            f'<rect class="lane" x="{_GUTTER}" y="{y}" width="{_WIDTH}" height="{height}"/>'
            f'<text x="{_GUTTER - 8}" y="{y + height / 2 + 4}" text-anchor="end">{name}</text>'
        )
    parts += [_svg_bar(bar, tops[bar.lane], heights[bar.lane], until_s) for bar in band.bars]
    bottom = tops[-1] + heights[-1]
    first_s = band.stats.first_text_s
    if first_s is not None:
        x = _x(first_s, until_s)
        parts.append(
            f'<line class="first" x1="{x:.1f}" x2="{x:.1f}" y1="{top + _TITLE - 8:.0f}" '
            f'y2="{bottom}"/><text x="{x + 4:.1f}" y="{top + _TITLE - 6:.0f}">first text</text>'
        )
    return "".join(parts), bottom + _GAP


def _lane_tops(band: Band, top: float) -> list[float]:
    tops = []
    for lane in range(band.lanes):
        tops.append(top)
        top += _height(lane, band.lanes) + 3
    return tops


def _height(lane: int, lanes: int) -> int:
    return _SVG_HEIGHTS.get(lane, _SEARCH_THIN if lanes > _MANY else _SEARCH)


def _svg_bar(bar: Bar, y: float, height: float, until_s: float) -> str:
    x = _x(bar.started_s, until_s)
    width = max(_LEAST, _x(bar.ended_s, until_s) - x)
    place = f'x="{x:.2f}" y="{y}" width="{width:.2f}" height="{height}"'
    hint = f"<title>{escape(bar.hint)}</title>"
    parts = [f'<rect class="bar {bar.look}" {place}>{hint}</rect>']
    if bar.ahead:
        parts.append(f'<rect fill="url(#ahead)" pointer-events="none" {place}/>')
    if bar.label and height >= _SEARCH and width > _LETTER * len(bar.label) + 4:
        parts.append(
            f'<text class="in" x="{x + width / 2:.2f}" y="{y + height - 4}" '
            f'text-anchor="middle" pointer-events="none">{escape(bar.label)}</text>'
        )
    return "".join(parts)


def _x(time_s: float, until_s: float) -> float:
    return _GUTTER + _WIDTH * time_s / until_s


def _svg_legend(bands: Sequence[Band]) -> str:
    items = [
        _entry(f'<rect class="{look}" width="22" height="13"/>', LOOKS[look])
        for look in looks_used(bands)
    ]
    if any(bar.ahead for band in bands for bar in band.bars):
        hatched = (
            '<rect class="kept" width="22" height="13"/>'
            '<rect fill="url(#ahead)" width="22" height="13"/>'
        )
        items.append(_entry(hatched, AHEAD))
    return f"<ul>{''.join(items)}</ul>"


def _entry(swatch: str, text: str) -> str:
    return f'<li><svg width="22" height="13" aria-hidden="true">{swatch}</svg>{escape(text)}</li>'


def _table(bands: Sequence[Band]) -> str:
    names = list(numbers(bands[0].stats))
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    rows = []
    for band in bands:
        cells = "".join(f"<td>{escape(value)}</td>" for value in numbers(band.stats).values())
        rows.append(f'<tr><th scope="row">{escape(band.name)}</th>{cells}</tr>')
    return f'<table><tr><th scope="col">run</th>{head}</tr>{"".join(rows)}</table>'


# The timeline as a picture, by matplotlib (extra `plots`).


_COLOURS = {  # those of the page in a light room; told apart by colour-blind eyes too
    "kept": "#1f6fb4",
    "dropped": "#e08a00",
    "cancelled": "#8d96a0",
    "failed": "#c62828",
    "search": "#128a6a",
    "ask": "#a05fb0",
}
_FIGURE_HEIGHTS = {MODEL_LANE: 1.6, ASK_LANE: 0.4}  # in search lanes
_BETWEEN, _NAME = 0.2, 2.2
_INCHES, _LANE_INCHES, _HEAD_INCHES = 12.0, 0.24, 1.9
_DOTS = 150
_LABEL_SHARE = 0.012  # the share of the width that a number needs


def figure_class() -> Any:
    """Give matplotlib's Figure, which needs no display and no global state.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    return optional("matplotlib.figure", "plots", "matplotlib").Figure


def picture(bands: Sequence[Band], title: str, note: str, kind: str) -> bytes:
    """Draw all bands into a PNG or SVG file's content."""
    tops, total = _tops(bands)
    figure = figure_class()(figsize=(_INCHES, _HEAD_INCHES + _LANE_INCHES * total), dpi=_DOTS)
    figure.set_layout_engine("constrained")
    axes = figure.add_subplot()
    until_s = end_s(bands)
    factor = 1000 if until_s < 1 else 1
    axes.set(xlim=(0, until_s * factor), ylim=(total, 0))
    axes.set_xlabel("milliseconds" if factor == 1000 else "seconds")
    axes.grid(axis="x", color="#d5dae0", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["left", "right", "top"]].set_visible(False)
    for band, top in zip(bands, tops, strict=True):
        _draw(axes, band, top, factor, until_s)
    _name_lanes(axes, bands, tops)
    axes.set_title("\n".join(filter(None, (title, headline(bands), note))), loc="left", fontsize=11)
    _figure_legend(figure, bands)
    content = io.BytesIO()
    figure.savefig(content, format=kind, facecolor="white")
    return content.getvalue()


def _tops(bands: Sequence[Band]) -> tuple[list[list[float]], float]:
    """Place each band's lanes; also give the height of all."""
    tops: list[list[float]] = []
    at = 0.0
    for band in bands:
        at += _NAME
        tops.append([])
        for lane in range(band.lanes):
            tops[-1].append(at)
            at += _FIGURE_HEIGHTS.get(lane, 1.0) + _BETWEEN
    return tops, at + _BETWEEN


def _draw(axes: Any, band: Band, tops: Sequence[float], factor: float, until_s: float) -> None:
    axes.text(0, tops[0] - 1.1, band.name, fontweight="bold", fontsize=10)
    for bar in band.bars:
        height = _FIGURE_HEIGHTS.get(bar.lane, 1.0)
        start, width = bar.started_s * factor, (bar.ended_s - bar.started_s) * factor
        axes.broken_barh([(start, width)], (tops[bar.lane], height), **_look(bar))
        if bar.label and bar.ended_s - bar.started_s > _LABEL_SHARE * until_s * len(bar.label):
            axes.text(
                start + width / 2,
                tops[bar.lane] + height / 2,
                bar.label,
                ha="center",
                va="center",
                color="white",
                fontsize=7,
            )
    first_s = band.stats.first_text_s
    if first_s is not None:
        lowest = tops[-1] + 1.0
        axes.vlines(first_s * factor, tops[0] - 0.3, lowest, color="#1b1f24", ls=":", lw=1)
        axes.annotate(
            "first text",
            (first_s * factor, tops[0] - 0.3),
            xytext=(3, 1),
            textcoords="offset points",
            fontsize=8,
            color="#59636e",
        )


def _look(bar: Bar) -> dict[str, Any]:
    colour = _COLOURS[bar.look]
    if bar.lane == ASK_LANE:  # far too short to be seen without an edge
        return {"facecolor": colour, "edgecolor": colour, "linewidth": 0.8}
    look: dict[str, Any] = {"facecolor": colour, "edgecolor": "white", "linewidth": 0.5}
    if bar.ahead:
        look |= {"hatch": "/////", "edgecolor": "#ffffff90"}
    return look


def _name_lanes(axes: Any, bands: Sequence[Band], tops: Sequence[Sequence[float]]) -> None:
    places, names = [], []
    shown = {MODEL_LANE: "model", ASK_LANE: "questions", SEARCH_LANE: "searches"}
    for band, lanes in zip(bands, tops, strict=True):
        for lane in range(min(band.lanes, SEARCH_LANE + 1)):
            places.append(lanes[lane] + _FIGURE_HEIGHTS.get(lane, 1.0) / 2)
            names.append(shown[lane])
    axes.set_yticks(places, names, fontsize=9)
    axes.tick_params(axis="y", length=0)


def _figure_legend(figure: Any, bands: Sequence[Band]) -> None:
    patch = optional("matplotlib.patches", "plots", "matplotlib").Patch
    entries = [patch(facecolor=_COLOURS[look], label=LOOKS[look]) for look in looks_used(bands)]
    if any(bar.ahead for band in bands for bar in band.bars):
        look = {"facecolor": _COLOURS["kept"], "hatch": "/////", "edgecolor": "white"}
        entries.append(patch(label=AHEAD, linewidth=0, **look))
    figure.legend(handles=entries, loc="outside lower left", ncols=2, fontsize=8, frameon=False)
