"""The timeline as one HTML page: inline SVG, no script, nothing fetched from elsewhere."""

from collections.abc import Sequence
from html import escape

from ralmspec_plugins.timeline import (
    AHEAD,
    ASK_LANE,
    LOOKS,
    MODEL_LANE,
    SEARCH_LANE,
    Band,
    Bar,
    end_s,
    headline,
    looks_used,
    numbers,
    ticks,
)

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
