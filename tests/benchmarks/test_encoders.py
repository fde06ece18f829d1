"""What is hidden of a query's encoding: the rows run, are resumed, and say whether they suffice."""

import json
from pathlib import Path

import pytest

from benchmarks.early_guesses import counted
from benchmarks.encoders import OFTEN, Row, encoders, hosted, measure, page, rows, summary
from ralmspec_plugins import Passage, open_retriever
from ralmspec_plugins.retrieval import HashingEncoder


def test_the_rows_are_those_of_the_claim() -> None:
    """An encoder of 20 ms at four pairs of rates, and a hosted one around the rate of the goal."""
    local = [row for row in rows() if not row.hosted]
    far = [row for row in rows() if row.hosted]

    assert all(row.by_encoding is not None and row.by_encoding > row.by_text for row in local)
    assert min(row.by_text for row in far) < OFTEN < max(row.by_text for row in far)
    assert OFTEN in {row.by_text for row in far}


def test_a_row_is_measured_and_simulated() -> None:
    """Equal answers; virtual time and real time are of the same guesses."""
    row = Row(name="one", hosted=True, by_text=1.0, by_encoding=None, steps=3)
    with hosted() as encode:
        found = measure(row, 2, encode)

    assert len(found["plain_s"]) == len(found["speculative_s"]) == len(found["simulated"]) == 2
    assert min(found["plain_s"]) >= 3 * 0.225
    assert found["right"] == found["guesses"] > 0
    # 0.675 s plainly; else the third query is formed after 0.05 s and answered 0.2 s later.
    assert found["simulated"] == [pytest.approx(0.675 / 0.25)] * 2


def test_a_row_says_what_it_reached() -> None:
    """With many right guesses a hosted encoder is held against plain, else against virtual time."""
    row = {"name": "one", "hosted": True, "by_text": 0.9, "plain_s": [3.0, 3.0]}
    fast = {**row, "speculative_s": [1.4, 1.45], "simulated": [2.5, 2.5], "right": 1, "guesses": 2}
    rare = {**fast, "by_text": 0.3}

    assert (summary(fast)["reached"], summary(rare)["reached"]) == (True, False)
    assert summary(rare)["share"] == pytest.approx(summary(rare)["speed"] / 2.5)
    told = page({"surroundings": _SURROUNDINGS, "rows": [fast, rare]})
    assert told.count("| one | 3.00 | 2.11 (2.07, 2.14) | 2.50 |") == 2


_SURROUNDINGS = {"date": "today", "commit": "0", "machine": "one", "load_before": 0.0}


@pytest.mark.slow
def test_what_is_there_is_not_measured_again(tmp_path: Path) -> None:
    """A second run adds what is missing, and writes the page of all."""
    out, page_to = tmp_path / "rows.json", tmp_path / "rows.md"
    encoders(out, page_to, repetitions=1, small=True)
    first = json.loads(out.read_text())
    out.write_text(json.dumps({**first, "rows": first["rows"][:-1]}))
    encoders(out, page_to, repetitions=1, small=True)
    second = json.loads(out.read_text())

    assert second["rows"][:-1] == first["rows"][:-1]
    assert second["rows"][-1]["name"] == first["rows"][-1]["name"]
    assert page_to.read_text().count("| hosted encoder") == 4


def test_early_guesses_are_counted_from_the_second_step_on() -> None:
    """The same query again: all three guess it; another one is guessed by its encoding alone."""
    from collections import Counter

    texts = ["red fox", "blue whale", "grey cat"]
    passages = [Passage(str(number), text) for number, text in enumerate(texts)]
    retriever = open_retriever("numpy-flat", passages, encoder=HashingEncoder(64), k=1)
    queries = [retriever.encode(text) for text in ("fox", "red fox", "whale")]
    counts: Counter[str] = Counter()
    counted(retriever, queries, 1, 3, counts)

    assert counts == {"steps": 2, "repeated": 1, "by the text": 2, "by the encoding": 2}
