"""Draw timelines: the model's segments, the searches, and what was discarded.

`write` writes one file from the spans of `Stats.timeline`: a self-contained page (.html),
its drawing only (.svg), or Chrome trace events for Perfetto and chrome://tracing
(.json). `figure` returns the drawing as text, for a notebook. All are views of `layout`.
"""

import json
import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Final

from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.retrieval.storage.files import write_whole
from ralmspec_plugins.types import Outcome, Span, Stats

SUFFIXES: Final = (".html", ".json", ".svg")
KINDS: Final = ("model", "questions", "searches")  # of lanes, from above
_KINDS: Final = {"extend": "model", "search": "searches"}  # by a span's; "questions" for others
LOOKS: Final = {
    "kept": "part of the answer",
    "dropped": "generated after a wrong guess, discarded",
    "cancelled": "cancelled during generation, discarded",
    "failed": "failed",
    "search": "search (number: queries in one round trip)",
    "ask": "query formed and encoded, guess made",
}
AHEAD: Final = "hatched: speculative, started before its passages were verified"
_AT_ONCE_S: Final = 1e-9  # two spans that touch may share a lane


@dataclass(frozen=True, slots=True)
class Bar:
    """One piece of work in the drawing."""

    look: str  # a key of LOOKS
    span: Span
    hint: str  # in words
    label: str = ""  # inside the bar, if there is room


@dataclass(frozen=True, slots=True)
class Lane:
    """A row of work that does not overlap."""

    kind: str  # one of KINDS
    place: int  # among the lanes of its kind
    bars: tuple[Bar, ...]


@dataclass(frozen=True, slots=True)
class Band:
    """One run: its lanes from top to bottom, and its statistics."""

    name: str
    lanes: tuple[Lane, ...]
    stats: Stats


def check_path(path: str | os.PathLike[str]) -> None:
    """Check, before a run, that a timeline can be written to a path.

    Raises:
        ConfigError: the suffix is not known, or there is no such folder.
    """
    file = Path(path)
    if file.suffix.lower() not in SUFFIXES:
        raise ConfigError(
            f"a timeline is written as {', '.join(SUFFIXES)}, got {file.name!r}; "
            "for a picture, take a screenshot of the .html page"
        )
    if not file.absolute().parent.is_dir():
        raise ConfigError(f"there is no folder {file.parent} to write {file.name} to")
    if file.is_dir():
        raise ConfigError(f"{file} is a folder; give a file's name")


def write(
    path: str | os.PathLike[str], runs: Mapping[str, Stats], *, title: str = "", note: str = ""
) -> None:
    """Draw runs of one request below each other on one axis of time; plain ones come last.

    The file is written atomically.

    Args:
        path: ends in .html, .json (Chrome trace events) or .svg.
        runs: the statistics by the run's name, such as "speculative" and "plain".
        title: the request.
        note: a remark for the reader, such as an added latency.

    Raises:
        ConfigError: there are no runs, or the path cannot be written.
    """
    check_path(path)
    bands = layout(runs)
    views = {".html": _page, ".json": _trace, ".svg": _figure}
    content = views[Path(path).suffix.lower()](bands, title, note)
    write_whole(Path(path), content.encode())


def figure(runs: Mapping[str, Stats], *, title: str = "", note: str = "") -> str:
    """Return only the drawing of a page, as SVG, for `IPython.display.SVG`.

    Raises:
        ConfigError: no runs.
    """
    return _figure(layout(runs), title, note)


def layout(runs: Mapping[str, Stats]) -> list[Band]:
    """Return the band of each run, plain runs last.

    Raises:
        ConfigError: no runs.
    """
    if not runs:
        raise ConfigError("a timeline needs at least one run")
    return [_band(name, runs[name]) for name in sorted(runs, key=lambda name: name == "plain")]


def _band(name: str, stats: Stats) -> Band:
    lanes = []
    for kind in KINDS:
        spans = [span for span in stats.timeline if _KINDS.get(span.kind, "questions") == kind]
        places = lanes_of(spans)
        for place in range(max(places, default=0) + 1):
            here = [span for span, at in zip(spans, places, strict=True) if at == place]
            lanes.append(Lane(kind, place, tuple(map(_bar, here))))
    return Band(name, tuple(lanes), stats)


def lanes_of(spans: Sequence[Span]) -> list[int]:
    """Return the lane of each span: the first that is free when the span starts.

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


def _bar(span: Span) -> Bar:
    times = f"{span.started_s:.3f} s to {span.ended_s:.3f} s"
    if span.kind == "search":
        look = "failed" if span.outcome is Outcome.FAILED else "search"
        queries = "1 query" if span.queries == 1 else f"{span.queries} queries"
        return Bar(look, span, f"search of {queries}, {times}", str(span.queries))
    if span.kind == "extend":
        look = span.outcome.value
        ahead = ", ahead of its verification" if span.ahead else ""
        return Bar(look, span, f"{LOOKS[look]}{ahead}{_passes(span)}, {times}")
    return Bar("ask", span, f"{span.kind}{_passes(span)}, {times}")


def _passes(span: Span) -> str:
    """Return how many passes of the model a piece of work took, if they are counted."""
    return f", {span.passes} {'pass' if span.passes == 1 else 'passes'}" if span.passes else ""


def _bars(bands: Sequence[Band]) -> list[Bar]:
    return [bar for band in bands for lane in band.lanes for bar in lane.bars]


def ticks(until_s: float, most: int = 12) -> list[float]:
    """Return round times for an axis.

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
    """Return a summary of the runs in one sentence."""
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
    """Return a run's main statistics by name."""
    return {
        "time": f"{stats.wall_s:.3f} s",
        "first text": "-" if stats.first_text_s is None else f"{stats.first_text_s:.3f} s",
        "round trips": str(stats.searches),
        "queries": str(stats.queries),
        "guesses right": f"{stats.accepted} of {stats.guesses}" if stats.guesses else "-",
        "segments kept": str(stats.segments),
        "discarded": str(stats.wasted_segments),
        "searching": f"{stats.search_s:.3f} s",
        "writing": f"{stats.write_s:.3f} s",
        "in parallel": f"{stats.overlap_s:.3f} s",
        "passes": str(stats.model_passes) if stats.model_passes else "-",
        "tokens a pass": f"{stats.tokens_per_pass:.2f}" if stats.tokens_per_pass else "-",
    }


# The page and its drawing: inline SVG, no script, no external resource.


_LEFT, _WIDTH, _RIGHT = 96, 1000, 24  # names of lanes, the plot, and room for the last tick
_LINE, _TITLE, _GAP, _AXIS = 20, 30, 14, 30  # of text, a band's name, between bands, the axis
_HEIGHTS: Final = {"model": 30, "questions": 7, "searches": 16}
_THIN, _MANY = 8, 12  # the height of a search's lane where there are many
_LEAST, _LETTER = 0.6, 7.0  # widths: a bar is never drawn narrower; a digit in a bar
_UNWRITABLE: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML

_STYLE = """
.timeline { --page: #fff; --text: #1b1f24; --soft: #59636e; --line: #d5dae0; --lane: #f5f7f9;
  --kept: #1f6fb4; --dropped: #e08a00; --cancelled: #8d96a0; --failed: #c62828; --in: #fff;
  --search: #128a6a; --ask: #a05fb0; --hatch: #ffffffa0; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { .timeline { --page: #14181d; --text: #e6e9ed;
  --soft: #9aa4af; --line: #39424c; --lane: #1b2127; --kept: #4d9fe6; --dropped: #f0a63c;
  --cancelled: #78828d; --failed: #ef6b6b; --search: #35b993; --ask: #c58ad6; --in: #10141a;
  --hatch: #14181db0; } }
svg.timeline { max-width: 100%; }
.timeline text { fill: var(--soft); font: 12px system-ui, sans-serif; }
.timeline text.name { fill: var(--text); font-weight: 600; font-size: 14px; }
.timeline text.in { fill: var(--in); font-size: 11px; pointer-events: none; }
.timeline .tick { stroke: var(--line); } .timeline .hatch { stroke: var(--hatch); }
.timeline .bar { stroke: var(--page); stroke-width: .5; } .timeline .bar.ask { stroke: none; }
.timeline .bar:hover { stroke: var(--text); stroke-width: 1.5; }
.timeline .ahead { fill: url(#ahead); pointer-events: none; }
.timeline .first { stroke: var(--text); stroke-dasharray: 3 3; }
""" + "".join(
    f".timeline .{name} {{ fill: var(--{name}); }}\n" for name in (*LOOKS, "page", "lane")
)
_PAGE_STYLE = """
body { margin: 2rem auto; max-width: 72rem; padding: 0 1rem; background: var(--page);
  color: var(--text); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.25rem; margin: 0 0 .25rem; } p { margin: .25rem 0; }
.note { color: var(--dropped); font-weight: 600; } .wide { overflow-x: auto; margin: 1rem 0; }
.wide > svg { min-width: 640px; width: 100%; height: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .8rem .2rem 0; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; } th:first-child { text-align: left; }
"""


def _page(bands: Sequence[Band], title: str, note: str) -> str:
    shown = escape(title or "What happened when")
    rows = [("th", "run", list(numbers(bands[0].stats)))]
    rows += [("td", escape(band.name), list(numbers(band.stats).values())) for band in bands]
    table = "".join(
        f"<tr><th>{name}</th>{''.join(f'<{cell}>{text}</{cell}>' for text in texts)}</tr>"
        for cell, name, texts in rows
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{shown}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>{_PAGE_STYLE}</style></head>
<body class="timeline">
<h1>{shown}</h1>
<p>{escape(headline(bands))}.</p>
<p class="note">{escape(note)}</p>
<figure class="wide">{_drawing(bands, [])}</figure>
<div class="wide"><table>{table}</table></div>
<p>Each run begins at 0. Rest the pointer on a bar for its times.</p>
</body></html>
"""


def _figure(bands: Sequence[Band], title: str, note: str) -> str:
    return _drawing(bands, [text for text in (title, headline(bands), note) if text])


def _drawing(bands: Sequence[Band], heading: Sequence[str]) -> str:
    """Return the drawing of all bands over one axis, with a heading and the legend."""
    svg = ET.Element("svg", {"class": "timeline", "xmlns": "http://www.w3.org/2000/svg"})
    svg.attrib |= {"role": "img", "aria-labelledby": "plot-title plot-text"}
    _add(svg, "title", "Timeline", id="plot-title")
    _add(svg, "desc", headline(bands), id="plot-text")
    _add(svg, "style", _STYLE)
    pattern = _add(_add(svg, "defs"), "pattern", id="ahead", width=5, height=5)
    pattern.attrib |= {"patternUnits": "userSpaceOnUse", "patternTransform": "rotate(45)"}
    _add(pattern, "line", class_="hatch", x1=1, x2=1, y1=0, y2=5, stroke_width=1.6)
    _add(svg, "rect", class_="page", width="100%", height="100%")
    for line, text in enumerate(heading):
        _add(svg, "text", text, class_="" if line else "name", x=0, y=_LINE * line + 16)
    ends_s = [bar.span.ended_s for bar in _bars(bands)]
    until_s = max([*ends_s, *(band.stats.wall_s for band in bands), 1e-6])
    axis, bottom = _add(svg, "g"), float(_LINE * len(heading))
    for band in bands:
        bottom = _draw_band(svg, band, bottom, until_s)
    unit, factor = ("ms", 1000) if until_s < 1 else ("s", 1)
    for mark in (marks := ticks(until_s)):
        x, last = _x(mark, until_s), f" {unit}" if mark == marks[-1] else ""
        _add(axis, "line", class_="tick", x1=x, x2=x, y1=_LINE * len(heading), y2=bottom)
        _add(axis, "text", f"{mark * factor:g}{last}", x=x, y=bottom + 16, text_anchor="middle")
    width, height = _LEFT + _WIDTH + _RIGHT, _draw_legend(svg, bands, bottom + _AXIS)
    svg.attrib |= {"viewBox": f"0 0 {width} {height:g}", "width": f"{width}"}
    return ET.tostring(svg, encoding="unicode")


def _add(parent: ET.Element, tag: str, text: str = "", **attributes: float | str) -> ET.Element:
    """Add an element; `_` in an attribute's name stands for `-`, and for nothing at its end."""
    given = {
        name.rstrip("_").replace("_", "-"): value if isinstance(value, str) else f"{value:g}"
        for name, value in attributes.items()
    }
    element = ET.SubElement(parent, tag, given)
    element.text = _UNWRITABLE.sub("\ufffd", text) or None
    return element


def _x(time_s: float, until_s: float) -> float:
    return _LEFT + _WIDTH * time_s / until_s


def _draw_band(svg: ET.Element, band: Band, top: float, until_s: float) -> float:
    """Draw one run; return the top of the next one."""
    _add(svg, "text", band.name, class_="name", x=0, y=top + 18)
    crowded = sum(lane.kind == "searches" for lane in band.lanes) > _MANY
    y = top + _TITLE
    for lane in band.lanes:
        height = _THIN if crowded and lane.kind == "searches" else _HEIGHTS[lane.kind]
        _add(svg, "rect", class_="lane", x=_LEFT, y=y, width=_WIDTH, height=height)
        if not lane.place:
            _add(svg, "text", lane.kind, x=_LEFT - 8, y=y + height / 2 + 4, text_anchor="end")
        for bar in lane.bars:
            _draw_bar(svg, bar, y, height, until_s)
        y += height + 3
    if (first_s := band.stats.first_text_s) is not None:
        x, above = _x(first_s, until_s), top + _TITLE - 7
        _add(svg, "line", class_="first", x1=x, x2=x, y1=above, y2=y - 3)
        _add(svg, "text", "first text", x=x + 4, y=above)
    return y + _GAP


def _draw_bar(svg: ET.Element, bar: Bar, y: float, height: float, until_s: float) -> None:
    x = _x(bar.span.started_s, until_s)
    width = max(_LEAST, _x(bar.span.ended_s, until_s) - x)
    place: dict[str, Any] = {"x": x, "y": y, "width": width, "height": height}
    _add(_add(svg, "rect", class_=f"bar {bar.look}", **place), "title", bar.hint)
    if bar.span.ahead:
        _add(svg, "rect", class_="ahead", **place)
    if bar.label and height > _THIN and width > _LETTER * len(bar.label) + 4:
        center: dict[str, Any] = {"x": x + width / 2, "y": y + height - 4}
        _add(svg, "text", bar.label, class_="in", text_anchor="middle", **center)


def _draw_legend(svg: ET.Element, bands: Sequence[Band], top: float) -> float:
    """Draw the legend of the looks that occur, in two columns; return the total height."""
    used = {bar.look for bar in _bars(bands)}
    entries = [([look], LOOKS[look]) for look in LOOKS if look in used]
    if any(bar.span.ahead for bar in _bars(bands)):
        entries.append((["kept", "ahead"], AHEAD))
    for place, (drawn, text) in enumerate(entries):
        x, y = _LEFT + _WIDTH / 2 * (place % 2), top + _LINE * (place // 2)
        for look in drawn:
            _add(svg, "rect", class_=look, x=x, y=y, width=22, height=13)
        _add(svg, "text", text, x=x + 30, y=y + 11)
    return top + _LINE * ((len(entries) + 1) // 2) + 4


def _trace(bands: Sequence[Band], title: str, note: str) -> str:
    """Return Chrome trace events: a run is a process, a lane a thread, times are microseconds."""
    events: list[dict[str, Any]] = []
    for run, band in enumerate(bands, start=1):
        name = {"ph": "M", "pid": run, "name": "process_name", "args": {"name": band.name}}
        events.append(name)
        for thread, lane in enumerate(band.lanes, start=1):
            number = f" {lane.place + 1}" if lane.place else ""
            here = {"pid": run, "tid": thread}
            args = {"name": f"{lane.kind}{number}"}
            events.append({"ph": "M", "name": "thread_name", "args": args} | here)
            events += [_event(bar) | here for bar in lane.bars]
        if (first_s := band.stats.first_text_s) is not None:
            first = {"ph": "i", "s": "p", "name": "first text", "ts": first_s * 1e6}
            events.append(first | {"pid": run, "tid": 1})
    told = {"title": title, "note": note, "headline": headline(bands)}
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms", "otherData": told})


def _event(bar: Bar) -> dict[str, Any]:
    span = bar.span
    args = {"look": LOOKS[bar.look], "ahead": span.ahead, "queries": span.queries}
    args["passes"] = span.passes
    start, length = round(1e6 * span.started_s, 3), round(1e6 * (span.ended_s - span.started_s), 3)
    return {"ph": "X", "name": span.kind, "cat": bar.look, "ts": start, "dur": length, "args": args}
