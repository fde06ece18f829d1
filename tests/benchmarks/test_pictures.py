"""The pictures of docs/pictures.md show the tables as they are committed."""

import pytest

from benchmarks import pictures
from benchmarks.pictures import DRAFT_ROWS, FOLDER, PAPER_ROWS, PICTURES


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_shows_its_table(name: str) -> None:
    """If a table was written again, `python -m benchmarks.pictures` has to be run."""
    numbers_of, _ = PICTURES[name]
    numbers = numbers_of()
    groups, bars = numbers

    assert len(groups) >= 4
    assert all(len(heights) == len(groups) for heights in bars.values())
    assert (FOLDER / name).read_bytes().endswith(pictures.mark(numbers))


def test_the_rows_are_those_that_are_named() -> None:
    """Of the paper's table and of the drafters."""
    _, paper = pictures.paper()
    _, drafts = pictures.drafts()

    assert list(paper) == list(PAPER_ROWS)
    assert list(drafts) == list(DRAFT_ROWS)
    assert any(height is None for height in paper["continuous, replica"])
    assert all(height is not None for height in paper["continuous"])


def test_a_changed_table_is_noticed() -> None:
    """By the last line of its picture."""
    groups, bars = pictures.load()
    name = next(iter(bars))

    assert pictures.mark((groups, bars)) == pictures.mark((groups, dict(bars)))
    assert pictures.mark((groups, bars)) != pictures.mark((groups, bars | {name: [0.0]}))


def test_a_chart_is_an_svg() -> None:
    """With missing bars, too."""
    drawn = pictures.bar_chart(["a", "b"], {"x": [1.0, None], "y": [2.0, 3.0]}, "times")

    assert drawn.lstrip().startswith(b"<?xml")
    assert b"</svg>" in drawn
