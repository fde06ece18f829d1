"""`python -m benchmarks serving` measures what it says, and compares every answer."""

import json
from pathlib import Path

import pytest
from typer import Typer
from typer.testing import CliRunner

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("httpx")

from benchmarks.serving.application import STEPS, expected
from benchmarks.serving.cli import serving


def test_a_small_run(tmp_path: Path) -> None:
    """Both ways are measured with the same questions; searches of many clients are merged."""
    app = Typer()
    app.command()(serving)
    out = tmp_path / "serving.json"
    short = ["--search-ms", "4", "--query-ms", "0", "--write-ms", "3"]
    few = ["--clients", "1,6", "--requests", "6", "--rounds", "2"]
    result = CliRunner().invoke(app, ["--out", str(out), *short, *few])
    assert result.exit_code == 0, result.output
    found = json.loads(out.read_text())

    assert [(one["model"], one["clients"]) for one in found["rows"]] == [
        ("plain", 1),
        ("speculative", 1),
        ("plain", 6),
        ("speculative", 6),
    ]
    assert all(one["requests"] == 12 for one in found["rows"])
    assert all(one["calls"] >= 12 for one in found["rows"])
    assert found["rows"][2]["queries_per_search"] > 1
    assert all(one["loop_ticks"] > 0 for one in found["rows"])
    assert len(found["freed_s"]) == 10
    assert "| 6 | speculative |" in result.output
    assert expected("question 0 0").count("\n") == STEPS
    assert expected("question 0 0") != expected("question 0 1")


def test_wrong_numbers_are_refused(tmp_path: Path) -> None:
    """Before anything is started."""
    app = Typer()
    app.command()(serving)
    result = CliRunner().invoke(app, ["--out", str(tmp_path / "x"), "--clients", "0"])

    assert "at least 1" in str(result.exception)
