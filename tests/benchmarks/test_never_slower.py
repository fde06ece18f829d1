"""The rows that show whether speculation costs time: they run, are resumed, and add up."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.never_slower.cli import line, measure, never_slower, page, ratios, spread
from benchmarks.never_slower.rows import Row, rows
from ralmspec_plugins.errors import ConfigError

QUICK = ("eight-at-once",)


def test_the_rows_are_those_of_the_claim() -> None:
    """Each has a name and says what runs."""
    known = rows()

    assert set(QUICK) < set(known)
    assert {"duplicates-5ms", "duplicates-50ms", "duplicates-300ms"} < set(known)
    assert all(row.about and row.repetitions >= 6 for row in known.values())


@pytest.mark.parametrize(
    "name",
    [one if one in QUICK else pytest.param(one, marks=pytest.mark.slow) for one in rows()],
)
def test_a_row_runs_with_equal_answers(name: str) -> None:
    """Three ways in turn, one repetition that is not counted before them."""
    found = measure(rows(small=True)[name], 2)

    assert {"plain": 2, "speculative": 2, "plain again": 2} == {
        way: len(taken) for way, taken in found["seconds"].items()
    }
    assert line(found).startswith(f"| {name} | ")


def test_answers_that_differ_end_the_measurement() -> None:
    """And so do those that are empty."""
    for wrong in (["right", "wrong"], []):
        ways = (lambda _: ["right"], lambda _, wrong=wrong: wrong[1:])
        with pytest.raises(AssertionError, match="row"):
            measure(Row(name="row", about="", opened=lambda ways=ways: _Open(ways)), 2)


class _Open:
    def __init__(self, ways: Any) -> None:
        self._ways = ways

    def __enter__(self) -> Any:
        return self._ways

    def __exit__(self, *error: object) -> None:
        """Nothing is open."""


@pytest.mark.slow
def test_what_is_there_is_not_measured_again(tmp_path: Path) -> None:
    """A second run adds what is missing, and writes the page of all."""
    out, told = tmp_path / "rows.jsonl", tmp_path / "page.md"
    for chosen in (["eight-at-once"], ["eight-at-once", "new-questions"]):
        never_slower(out, told, chosen, repetitions=2, small=True)
        kept = out.read_text().splitlines()
        assert kept[0].startswith('{"row": null')
        assert chosen == [json.loads(one)["row"] for one in kept[1:]]
        if len(chosen) == 1:
            first = kept[1]
    assert first == kept[1]
    assert told.read_text() == page([json.loads(one) for one in kept])
    assert told.read_text().count("| new-questions |") == 1


def test_an_unknown_row_is_refused(tmp_path: Path) -> None:
    """With the names that there are."""
    with pytest.raises(ConfigError, match="no row is named wrong; there are: encoder, "):
        never_slower(tmp_path / "rows.jsonl", chosen=["wrong"])


def test_a_ratio_is_that_of_the_run_beside_it() -> None:
    """2 s of plain beside 1 s is twice as fast; the interval of equal values is their value."""
    seconds = {"plain": [2.0, 3.0, 4.0], "speculative": [1.0, 1.5, 2.0]}

    assert ratios(seconds, "speculative") == [2.0, 2.0, 2.0]
    assert spread([2.0, 2.0, 2.0]) == (2.0, 2.0, 2.0)
    middle, low, high = spread([1.0, 2.0, 3.0, 4.0, 5.0])
    assert low < middle == 3.0 < high
