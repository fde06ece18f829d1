"""`python -m benchmarks`: a case measured, and its results, report and picture on the disk."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from benchmarks.__main__ import app
from tests.cli.conftest import Run, lines, names


@pytest.fixture
def run() -> Run:
    """Run the command in this process."""

    def command(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return command


def test_a_case_is_measured_and_reported(tmp_path: Path, run: Run) -> None:
    """One request of the demo's model: three files, equal answers, all ways in the table."""
    result = run(
        "quick", "--only", "free text", "--requests", 1, "--repetitions", 1,
        "--out", tmp_path / "out",
    )  # fmt: skip

    assert 0 == result.exit_code, result.stderr
    assert lines(result)[0]["equal"]
    assert ["free-text-local-store.svg", "report.md", "results.json"] == names(tmp_path / "out")
    measured = json.loads((tmp_path / "out" / "results.json").read_bytes())
    assert ["plain", "base (fixed 3)", "+PSA", "continuous"] == [
        row["arm"] for row in measured["cases"][0]["rows"]
    ]
    assert "| continuous |" in (tmp_path / "out" / "report.md").read_text()


def test_cases_are_listed(run: Run) -> None:
    """Nothing is measured."""
    result = run("paper", "--list")

    assert 0 == result.exit_code
    assert "remote, 1000 ms: numpy-flat, the real passages, 1000 ms away" in result.stdout


def test_unknown_cases_are_refused(run: Run) -> None:
    """The message lists what there is."""
    result = run("--only", "nothing such")

    assert 1 == result.exit_code
    assert "no case has 'nothing such' in its name" in result.stderr
    assert "scan beside" in result.stderr


def test_a_folder_without_articles_is_refused(tmp_path: Path, run: Run) -> None:
    """The message says which file is missing."""
    result = run("--only", "free", "--data", tmp_path)

    assert 1 == result.exit_code
    assert "articles.jsonl" in result.stderr
