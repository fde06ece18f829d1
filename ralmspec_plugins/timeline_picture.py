"""The timeline as a picture, by matplotlib (extra `plots`)."""

import io
from collections.abc import Sequence
from typing import Any

from ralmspec_plugins.retrieval.optional import optional
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
)

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
