"""The timeline: what is drawn, that a file is whole or not there, and that nothing is fetched."""

import json
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ralmspec_plugins import Stats
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.timeline import check_path, figure, lanes_of, layout, ticks, write
from ralmspec_plugins.types import Outcome, Span

FAST = Stats(
    wall_s=1.0,
    first_text_s=0.4,
    searches=3,
    queries=4,
    batch_sizes=(1, 2, 1),
    segments=3,
    wasted_segments=2,
    guesses=3,
    accepted=2,
    timeline=(
        Span("start", 0.0, 0.01),
        Span("ask", 0.01, 0.02),
        Span("search", 0.02, 0.4, queries=1),
        Span("extend", 0.4, 0.5),
        Span("extend", 0.5, 0.6, ahead=True),
        Span("search", 0.5, 0.8, queries=2),
        Span("search", 0.6, 0.9, queries=1),
        Span("extend", 0.6, 0.7, ahead=True, outcome=Outcome.DROPPED),
        Span("extend", 0.7, 0.8, ahead=True, outcome=Outcome.CANCELLED),
        Span("extend", 0.8, 1.0),
    ),
)
PLAIN = Stats(
    wall_s=2.0,
    searches=4,
    segments=4,
    timeline=(Span("search", 0.0, 1.0, queries=1), Span("extend", 1.0, 2.0)),
)
RUNS = {"plain": PLAIN, "speculative": FAST}


class _Page(HTMLParser):
    """Counts tags, classes and whatever would be fetched."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.classes: list[str] = []
        self.fetched: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        self.classes += (given.get("class") or "").split()
        self.fetched += [name for name in ("src", "href", "xlink:href") if name in given]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _page(tmp_path: Path, **options: str) -> str:
    write(tmp_path / "t.html", RUNS, **options)
    return (tmp_path / "t.html").read_text(encoding="utf-8")


def test_each_piece_of_work_is_a_bar(tmp_path: Path) -> None:
    """By its outcome, and hatched where it ran ahead."""
    text = _page(tmp_path)
    classes = _Page(text).classes
    bars = text.count('class="bar ')

    assert bars == len(FAST.timeline) + len(PLAIN.timeline)
    assert text.count('class="bar dropped"') == text.count('class="bar cancelled"') == 1
    assert text.count('class="bar search"') == 4
    assert classes.count("ahead") == 3 + 1  # one in the legend
    assert classes.count("first") == 1


def test_the_page_needs_nothing_else_and_is_accessible(tmp_path: Path) -> None:
    """Tags close, nothing is fetched, no script; a title, a description, a hint on each bar."""
    text = _page(tmp_path)
    page = _Page(text)

    assert page.open == []
    assert page.fetched == []
    assert "script" not in page.tags
    assert text.count("http") == text.count('xmlns="http://www.w3.org/2000/svg"') == 1
    assert 'role="img"' in text
    assert {"title", "desc"} <= set(page.tags)
    assert text.count("<title>") == 1 + text.count('class="bar ')
    assert "prefers-color-scheme: dark" in text


def test_numbers_and_notes_are_shown_and_escaped(tmp_path: Path) -> None:
    """A question may hold markup; added costs stand in the page."""
    text = _page(tmp_path, title="<b>Who?</b>", note="added: 50 ms & more")

    assert "&lt;b&gt;Who?&lt;/b&gt;" in text
    assert "added: 50 ms &amp; more" in text
    assert "2.00 times as fast, 3 round trips in place of 4" in text
    assert "2 of 3" in text


def test_passes_are_shown_where_they_are_counted(tmp_path: Path) -> None:
    """In the hint of a segment's bar, in the numbers of a run, in trace events."""
    spans = (Span("extend", 0.0, 0.5, passes=3), Span("ask", 0.5, 0.6, passes=1))
    stats = Stats(model_passes=4, tokens_written=10, timeline=(*spans, Span("extend", 0.6, 0.7)))
    for name in ("t.html", "t.json"):
        write(tmp_path / name, {"speculative": stats})
    page = (tmp_path / "t.html").read_text(encoding="utf-8")
    trace = json.loads((tmp_path / "t.json").read_text(encoding="utf-8"))
    bars = [event for event in trace["traceEvents"] if event["ph"] == "X"]

    assert "3 passes, 0.000 s" in page
    assert "ask, 1 pass, 0.500 s" in page
    assert "2.50" in page
    assert [0, 1, 3] == sorted(bar["args"]["passes"] for bar in bars)
    assert "passes, " not in _page(tmp_path)


def test_the_plain_run_comes_last() -> None:
    """Whatever order they were given in."""
    assert [band.name for band in layout(RUNS)] == ["speculative", "plain"]


def test_the_drawing_alone_is_an_svg(tmp_path: Path) -> None:
    """Well-formed whatever the question holds, with its heading; a notebook shows the same."""
    write(tmp_path / "t.svg", RUNS, title="<Who?>\x00", note="added: 50 ms & more")
    text = (tmp_path / "t.svg").read_text(encoding="utf-8")
    shown = [element.text for element in ET.fromstring(text).iter() if element.text]

    assert text == figure(RUNS, title="<Who?>\x00", note="added: 50 ms & more")
    assert {"<Who?>\ufffd", "added: 50 ms & more", "speculative", "plain"} <= set(shown)


def test_trace_events_say_what_the_page_draws(tmp_path: Path) -> None:
    """Each bar is a complete event in the lane of its run; lanes hold no overlapping events."""
    write(tmp_path / "t.json", RUNS, title="Who?", note="added: 50 ms")
    trace = json.loads((tmp_path / "t.json").read_text(encoding="utf-8"))
    bars = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    names = [e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "process_name"]
    lanes = {(bar["pid"], bar["tid"]) for bar in bars}
    drawn = [bar for band in layout(RUNS) for lane in band.lanes for bar in lane.bars]

    assert ["speculative", "plain"] == names
    assert [bar.look for bar in drawn] == [bar["cat"] for bar in bars]
    assert [bar.span.kind for bar in drawn] == [bar["name"] for bar in bars]
    assert {"title": "Who?", "note": "added: 50 ms"}.items() <= trace["otherData"].items()
    [wide] = [bar for bar in bars if bar["args"]["queries"] == 2]
    assert ("search", 500_000, 300_000) == (wide["name"], wide["ts"], wide["dur"])
    for lane in lanes:
        inside = sorted((b["ts"], b["ts"] + b["dur"]) for b in bars if (b["pid"], b["tid"]) == lane)
        assert all(one[1] <= other[0] + 1e-3 for one, other in pairwise(inside))


def test_segments_written_at_the_same_time_have_lanes_of_their_own() -> None:
    """A server may write several: none hides another."""
    spans = (Span("extend", 0.0, 0.5), Span("extend", 0.1, 0.4, ahead=True))
    [band] = layout({"speculative": Stats(wall_s=0.5, timeline=spans)})

    assert [1, 1] == [len(lane.bars) for lane in band.lanes if lane.kind == "model"]


def test_an_empty_run_can_be_drawn(tmp_path: Path) -> None:
    """An answer that needed no search and no writing has no spans."""
    write(tmp_path / "t.html", {"plain": Stats()})

    assert (tmp_path / "t.html").exists()


@pytest.mark.parametrize("name", ["t.gif", "t.png", "t", "nowhere/t.html", "folder.html"])
def test_a_path_that_cannot_be_written_is_refused(tmp_path: Path, name: str) -> None:
    """Before any run, and with what to do."""
    (tmp_path / "folder.html").mkdir()

    with pytest.raises(ConfigError):
        check_path(tmp_path / name)


def test_no_runs_are_refused(tmp_path: Path) -> None:
    """There is nothing to draw."""
    with pytest.raises(ConfigError, match="at least one run"):
        write(tmp_path / "t.html", {})


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing beside it."""
    (tmp_path / "t.html").write_text("old", encoding="utf-8")

    def refuse(self: Path, target: object) -> None:
        raise OSError("no")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="no"):
        write(tmp_path / "t.html", RUNS)

    assert ["t.html"] == [file.name for file in tmp_path.iterdir()]
    assert (tmp_path / "t.html").read_text(encoding="utf-8") == "old"


_SPANS = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 9)), max_size=20)


@given(times=_SPANS)
def test_searches_in_one_lane_never_overlap(times: list[tuple[int, int]]) -> None:
    """And there are no more lanes than searches were ever out at once."""
    spans = [Span("search", start, start + length) for start, length in times]
    lanes = lanes_of(spans)
    by_lane = [
        sorted((s.started_s, s.ended_s) for s, at in zip(spans, lanes, strict=True) if at == lane)
        for lane in range(max(lanes, default=-1) + 1)
    ]
    busiest = max(
        (sum(s.started_s <= one.started_s < s.ended_s for s in spans) for one in spans), default=0
    )

    assert all(one[1] <= other[0] for lane in by_lane for one, other in pairwise(lane))
    assert len(by_lane) == busiest


@given(until_s=st.floats(1e-5, 1e5))
def test_ticks_are_few_and_within(until_s: float) -> None:
    """From 0, between 3 and 13 of them, evenly."""
    marks = ticks(until_s)

    assert marks[0] == 0
    assert 3 <= len(marks) <= 13
    assert marks[-1] <= until_s * (1 + 1e-6)
