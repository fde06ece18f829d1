"""Draw what happened when: the model's segments, the searches, and what was thrown away.

People would rather look than read numbers. `write` makes one file: a page that
needs nothing else (.html), or a picture by matplotlib (.png, .svg).
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.stats import Outcome, Span, Stats
from ralmspec_plugins.whole_file import write_whole

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
        from ralmspec_plugins.timeline_picture import figure_class

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
        from ralmspec_plugins.timeline_html import page

        content = page(bands, title, note).encode()
    else:
        from ralmspec_plugins.timeline_picture import picture

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
    right = f"{stats.guesses_right} of {stats.guesses}" if stats.guesses else "-"
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
