"""The benchmark of decoding: rows of every way, equal texts, and a report."""

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.decoding import measure as measuring
from benchmarks.decoding.both import summary_of_both
from benchmarks.decoding.cli import report
from benchmarks.decoding.journal import Journal
from benchmarks.decoding.measure import UnequalTextError, measure, summary
from benchmarks.decoding.tasks import world_corpus, world_tasks
from benchmarks.harness.inputs import load_model
from benchmarks.harness.results import surroundings
from ralmspec_plugins.errors import InputError

COPIED = ["corpus (REST)", "suffix + recycling + corpus"]  # with texts to copy from
OURS = ["plain", "suffix", "suffix + passages", "recycling", "suffix + recycling", *COPIED]


@pytest.fixture
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_a_task_is_measured_and_reported(tmp_path: Path) -> None:
    """One text of the demo's world, and one without repetition, in every way; once."""
    rows: list[dict[str, Any]] = []
    demo, again = load_model("demo", ()), list[dict[str, Any]]()
    journal = Journal(tmp_path / "journal.jsonl", {"seed": 1})
    corpus = world_corpus()[:50]
    result = measure(demo, world_tasks(1), 12, 1, journal, rows.append, corpus)
    journal = Journal(tmp_path / "journal.jsonl", {"seed": 1})
    assert result == measure(demo, world_tasks(1), 12, 1, journal, again.append, corpus)
    assert again == []

    ways = [*OURS, "generate", "generate, prompt lookup", *OURS]
    assert ways == [row["way"] for row in rows] == [row["way"] for row in result["rows"]]
    assert all(row["equal"] for row in rows if "equal" in row)
    assert all(row["seconds"] > 0 for row in rows)
    expected = result["expected"]["in-domain QA"]
    assert expected["0"] == 1.0
    assert expected["31"] >= expected["1"] >= 1.0
    bounded = [row for row in summary(result, "own_s") if "bound" in row]
    assert ["suffix", "suffix + passages"] == [row["way"] for row in bounded]
    page = report({"surroundings": surroundings(), "models": [result], "costs": {}})
    assert "| in-domain QA | suffix |" in page


@pytest.mark.usefixtures("one_thread")
def test_an_unequal_text_is_no_result(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A way that writes another text stops the measurement."""
    written = measuring._written
    tasks = world_tasks(2)

    def other(lm: Any, task: Any, tokens: int, seed: int) -> Any:
        drafted = hasattr(lm.decoder, "counts")
        return written(lm, tasks[1] if drafted else task, tokens, seed)

    monkeypatch.setattr(measuring, "_written", other)
    journal = Journal(tmp_path / "journal.jsonl", {})
    with pytest.raises(UnequalTextError, match="is not"):
        measure(load_model("demo", ()), tasks[:1], 12, 1, journal, lambda _: None)


def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    """What was whole is not measured again, a broken line is; other settings are refused."""
    path, measured = tmp_path / "out" / "journal.jsonl", list[str]()

    def value(name: str) -> Any:
        measured.append(name)
        return {"of": name}

    journal = Journal(path, {"seed": 1})
    for name in ("one", "two"):
        journal.of(name, lambda name=name: value(name))
    path.write_text(path.read_text()[:-9])
    journal = Journal(path, {"seed": 1})
    found = [journal.of(name, lambda name=name: value(name)) for name in ("one", "two", "three")]

    assert ["one", "two", "two", "three"] == measured
    assert [{"of": name} for name in ("one", "two", "three")] == found
    assert 4 == len(path.read_text().splitlines())
    with pytest.raises(InputError, match="other settings"):
        Journal(path, {"seed": 2})


def test_both_speculations_are_held_against_their_bound() -> None:
    """Worked: 1.0 s plainly, 0.7 s with drafts of which two more searches of 0.1 s are waits.

    So 0.5 s are left, twice as fast as the plain loop; both took 0.6 s.
    """
    seconds = {
        ("plain loop", "one token a pass"): 1.0,
        ("speculative", "one token a pass"): 0.8,
        ("plain loop", "drafts"): 0.7,
        ("speculative", "drafts"): 0.6,
    }
    rows = [
        {"interval": 4, "loop": loop, "model": model, "searches": 3, "seconds": took_s}
        for (loop, model), took_s in seconds.items()
    ]
    told = summary_of_both(rows, 0.1)

    assert [2.0] * 4 == pytest.approx([row["bound"] for row in told])
    assert [1.0, 1.25, 1 / 0.7, 1 / 0.6] == pytest.approx([row["speed"] for row in told])
