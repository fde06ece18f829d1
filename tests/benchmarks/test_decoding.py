"""The benchmark of decoding: rows of every way, equal texts, and a report."""

from typing import Any

import pytest
import torch

from benchmarks.decoding import measure as measuring
from benchmarks.decoding.cli import report
from benchmarks.decoding.measure import UnequalTextError, measure, summary
from benchmarks.decoding.tasks import world_tasks
from benchmarks.harness.inputs import load_model
from benchmarks.harness.results import surroundings

WAYS = ["plain", "suffix", "suffix + passages", "generate", "generate, prompt lookup"]


@pytest.fixture
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_a_task_is_measured_and_reported() -> None:
    """One text of the demo's world, and one without repetition, in every way."""
    rows: list[dict[str, Any]] = []
    result = measure(load_model("demo", ()), world_tasks(1), 12, 1, rows.append)

    assert [*WAYS, *WAYS[:3]] == [row["way"] for row in rows] == [r["way"] for r in result["rows"]]
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
def test_an_unequal_text_is_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """A way that writes another text stops the measurement."""
    written = measuring._written
    tasks = world_tasks(2)

    def other(lm: Any, task: Any, tokens: int, seed: int) -> Any:
        drafted = hasattr(lm.decoder, "counts")
        return written(lm, tasks[1] if drafted else task, tokens, seed)

    monkeypatch.setattr(measuring, "_written", other)
    with pytest.raises(UnequalTextError, match="is not"):
        measure(load_model("demo", ()), tasks[:1], 12, 1, lambda _: None)
