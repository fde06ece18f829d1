"""`python -m benchmarks capacity`: what is foretold, by hand, and a small run on a real cluster."""

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer import Typer
from typer.testing import CliRunner

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from benchmarks.serving import capacity as module
from benchmarks.serving.application import STEPS
from benchmarks.serving.capacity import (
    Foreteller,
    Record,
    Round,
    Times,
    capacity,
    hop_of,
    prompts_of,
    row_of,
    table,
)


def test_a_plain_crowd_by_hand() -> None:
    """Alone each step waits for its search and segment; three share a search's round trips.

    At once: the first two searches go out with one query each, the third waits until both are
    back (1.1 s), and then writes for 2 s while the others search again.
    """
    times = Times(1.0, 0.1, 2.0, hop_s=0.25)
    alone = Foreteller("plain", times).round(["a"])
    three = Foreteller("plain", Times(1.0, 0.1, 2.0)).round(["a", "b", "c"])

    assert pytest.approx(STEPS * (0.25 + 1.1 + 2.0)) == alone.wall_s
    assert sorted(three.each_s) == pytest.approx([18.6, 18.6, 19.7])
    assert pytest.approx(0.5) == hop_of([Round(STEPS * (3.1 + 0.5), ())], Times(1.0, 0.1, 2.0))


def test_a_crowd_comes_as_fast_as_the_processors_take_it() -> None:
    """Three requests that never wait for each other: each ends a second after the one before."""
    times = Times(1.0, 0.0, 2.0, admission_s=1.0)
    found = Foreteller("plain", replace(times, write_s=0.5, search_s=0.25)).round(["a", "b", "c"])

    assert found.each_s == pytest.approx([4.5, 5.5, 6.5])
    assert found.wall_s == pytest.approx(6.5)


def test_speculation_is_foretold_with_a_cache_that_stays_warm() -> None:
    """The second crowd asks about topics that the first one found."""
    first, second = prompts_of("crowd", 40, 2)
    teller = Foreteller("speculative", Times(1.0, 0.0, 0.3))
    cold, warm = teller.round(first), teller.round(second)
    plain = Foreteller("plain", Times(1.0, 0.0, 0.3)).round(second)

    assert len({*first, *second}) == 80
    assert warm.wall_s < plain.wall_s
    assert cold.wall_s <= STEPS * 1.3 + 1e-9


def test_a_row_by_hand() -> None:
    """Medians of rounds and of all requests; the error is that of what was foretold."""
    real = [Round(2.0, (1.0, 2.0), 0.5), Round(4.0, (3.0, 4.0), 0.9), Round(5.0, (5.0, 5.0))]
    row = row_of("plain", 2, real, [Round(2.0, (2.8, 2.8))] * 3)

    assert row["per_second_of_rounds"] == [1.0, 0.5, 0.4]
    assert (row["per_second"], row["foretold_per_second"], row["per_second_error"]) == (0.5, 1, 1)
    assert row["median_s"] == 3.5
    assert row["median_error"] == pytest.approx(-0.2)
    assert row["busy"] == pytest.approx(0.7)


def test_a_run_goes_on_with_what_its_file_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same times, rounds and commit; another run's rows are kept beside its own."""
    monkeypatch.setattr(module, "busy_for", lambda seconds: 0.0 * seconds)
    path, times = tmp_path / "out" / "capacity.json", Times(1.0, 0.1, 2.0)
    row = row_of("plain", 4, [Round(1.0, (1.0,))], [Round(1.0, (1.0,))])
    Record(path, times, 5).add(replace(times, hop_s=0.01, admission_s=0.1), [row])
    again = Record(path, times, 5)
    again.add(replace(times, hop_s=0.02, admission_s=0.1), [{**row, "at_once": 16}])
    other = Record(path, Times(1.0, 0.2, 2.0), 5)
    written = json.loads(path.read_text())

    assert again.lacking([4, 16, 64]) == [16, 64]
    assert Record(path, times, 5).lacking([4, 16, 64]) == [64]
    assert other.lacking([4, 16]) == [4, 16] == Record(path, times, 3).lacking([4, 16])
    assert [one["hop_s"] for one in written["sessions"]] == [0.01, 0.02]
    assert len(table(other.sessions)) == 6
    for session in written["sessions"]:
        session["surroundings"]["commit"] = "another"
    path.write_text(json.dumps(written))
    assert Record(path, times, 5).sessions == []


def test_a_run_that_is_interrupted_keeps_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each number of requests is written when it is measured."""
    asked: list[Any] = []

    def compared(url: str, times: Times, counts: list[int], rounds: int) -> Any:
        asked.append(counts)
        row = row_of("plain", counts[0], [Round(1.0, (1.0,))], [Round(1.0, (1.0,))])
        yield replace(times, admission_s=0.1), [row]
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "busy_for", lambda seconds: 0.0 * seconds)
    monkeypatch.setattr(module, "cluster", nullcontext)
    monkeypatch.setattr(module, "compared", compared)
    app, out = Typer(), tmp_path / "capacity.json"
    app.command()(capacity)
    for _ in range(3):
        CliRunner().invoke(app, ["--out", str(out), "--at-once", "4,16"])

    assert asked == [[4, 16], [16]]


@pytest.mark.parametrize("given", ["", "0", "4,x", "4,5000"])
def test_wrong_numbers_are_refused(given: str, tmp_path: Path) -> None:
    """Before a cluster is started."""
    app = Typer()
    app.command()(capacity)
    result = CliRunner().invoke(app, ["--out", str(tmp_path / "x"), "--at-once", given])

    assert "from 1 to 512" in str(result.exception)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_small_cluster(tmp_path: Path) -> None:
    """Both ways are answered rightly, and every row has what was foretold."""
    pytest.importorskip("ray")
    app = Typer()
    app.command()(capacity)
    out = tmp_path / "capacity.json"
    small = ["--at-once", "2,6", "--rounds", "1", "--search-ms", "40", "--write-ms", "30"]
    result = CliRunner().invoke(app, ["--out", str(out), *small])
    assert result.exit_code == 0, result.output
    found = json.loads(out.read_text())

    [session] = found["sessions"]

    assert [(one["at_once"], one["way"]) for one in session["rows"]] == [
        (2, "plain"), (2, "speculative"), (6, "plain"), (6, "speculative"),
    ]  # fmt: skip
    assert all(one["foretold_per_second"] > 0 < one["per_second"] for one in session["rows"])
    assert session["hop_s"] > 0
    assert all(one["busy"] is None or 0 < one["busy"] <= 1 for one in session["rows"])
    assert "| 6 | speculative |" in result.output
