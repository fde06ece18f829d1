"""The benchmark of long contexts: rows of every way, equal texts, resumed, and a report."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from benchmarks.decoding import rapid as benchmark
from benchmarks.decoding.measure import UnequalTextError
from benchmarks.decoding.rapid import RATES, WAYS, Shape, goals, report, summary
from benchmarks.decoding.rapid_simulated import fitted_step, simulated, speed


@pytest.fixture
def one_thread() -> Any:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def _smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "TARGET", Shape(2, 64))
    monkeypatch.setattr(benchmark, "SMALL", Shape(1, 32))
    monkeypatch.setattr(benchmark, "WAYS", WAYS[1:])
    monkeypatch.setattr(benchmark, "RATES", RATES[1:2])
    monkeypatch.setattr(benchmark, "deviations", lambda **_: [])


@pytest.mark.usefixtures("one_thread")
def test_every_way_is_measured_and_a_stopped_run_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Raw rows, their summary and goals; what is in the journal is not measured again."""
    _smaller(monkeypatch)
    settings = {"out": tmp_path, "lengths": [80], "tokens": 6, "repetitions": 2, "threads": 1}
    benchmark.rapid(**settings, quick=True)  # type: ignore[arg-type]
    first = json.loads((tmp_path / "results.json").read_text())
    monkeypatch.setattr(benchmark.Bench, "_measured", None)  # nothing is left to measure
    benchmark.rapid(**settings, quick=True)  # type: ignore[arg-type]
    again = json.loads((tmp_path / "results.json").read_text())
    told = summary(first)

    assert first == again
    assert [256, 1100] == [one["length"] for one in first["measured"]]
    assert 2 * len(WAYS[1:]) == len(told)
    assert all(row["speed"] > 0 and row["bound"] >= 1 for row in told)
    for one in first["measured"]:
        assert one["context_tokens"] >= one["length"]
        assert len(one["plain_s"]) == len(one["generate_s"]) == 1
    assert "## Cost of a pass by rows" in (tmp_path / "report.md").read_text()


@pytest.mark.usefixtures("one_thread")
def test_another_text_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A way that writes something else is no result."""
    _smaller(monkeypatch)
    forced = benchmark.Bench._forced

    def other(self: Any, way: str, rate: float, truth: Any) -> Any:
        return forced(self, way, rate, (*truth[:-1], truth[-1] + 1))

    monkeypatch.setattr(benchmark.Bench, "_forced", other)
    with pytest.raises(UnequalTextError):
        benchmark.rapid(out=tmp_path, threads=1, quick=True)


def _result(share: float) -> dict[str, Any]:
    """Make a result in which each way reaches a share of its bound of 2.5 tokens a pass."""
    row = {
        "way": "small",
        "rate": 0.75,
        "rows": [[1.0 / (2.5 * share) + 0.1, 0.1, 26, 38]],
        "pass_s": 0.01,
        "costs": {"1": 1.0, "3": 1.0, "4": 100.0},
        "step_s": None,
        "prompt_tokens": 0,
    }
    measured = [
        {"length": n, "context_tokens": n, "plain_s": [1.2], "generate_s": [1.0], "ways": [row]}
        for n in (1024, 16384)
    ]
    steps = [
        {"length": 1024, "self_step_s": 1.0, "small_step_s": 0.0}
        | {"self_prefill_s": 0.0, "small_prefill_s": 0.0}
    ]
    return {
        "surroundings": {"machine": "here", "load_before": 0.0},
        "settings": {"tokens": 64, "threads": 1, "repetitions": 1},
        "weights": {"target": 10, "small": 1},
        "measured": measured,
        "steps": steps,
        "simulated": {"told": "", "rows": []},
        "deviations": [],
    }


def test_speeds_are_held_against_the_bound() -> None:
    """Two free drafts at 75 % give 2.3125 tokens a pass; the faster plain decoding takes 1 s."""
    told = summary(_result(0.9))
    missed = goals(told)
    slow = goals(summary(_result(0.3)))

    assert told[0]["bound"] == pytest.approx(2.3125)
    assert told[0]["decoding"] == pytest.approx(2.25)
    assert told[0]["share"] == pytest.approx(2.25 / 2.3125)
    assert [[], [], []] == list(missed.values())
    assert [2, 1, 1] == [len(one) for one in slow.values()]
    assert "90 % of the bound: reached" in report(_result(0.9))


def test_the_papers_figures_are_predicted_from_two_rows() -> None:
    """The fitted row comes out as published; RAPID's follow, and are held against the paper."""
    found = simulated(400)
    fitted, small, large = found["rows"]

    assert fitted["predicted"] == pytest.approx(1.63, rel=0.05)
    assert small["predicted"] > fitted["predicted"]
    assert (2.10, 2.69) == (small["published"], large["published"])
    assert all(row["parallel"] > row["predicted"] for row in found["rows"])
    assert speed(0.2, 0.8, 200) < speed(0.1, 0.8, 200)
    assert 0.05 < fitted_step(0.65, 1.63, 400) < 0.5


def test_it_is_a_suite_of_its_own() -> None:
    """With its options."""
    import typer

    app = typer.Typer()
    app.command()(benchmark.rapid)
    shown = CliRunner().invoke(app, ["--help"]).output

    assert "--lengths" in shown
    assert "--repetitions" in shown
