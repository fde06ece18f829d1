"""Summaries and reports: what the rows of runs come to."""

from typing import Any

import pytest

from benchmarks.harness.report import Spread, bootstrap, regime, report, summaries

ROW = {
    "bound_s": 1.0,
    "bound_guessed_s": 0.5,
    "step_s": 0.25,
    "search_s": 0.5,
    "round_trips": 4,
    "queries": 8,
    "guesses": 4,
    "accepted": 3,
    "wasted_segments": 2,
    "writing_s": 1.0,
    "searches": [[1, 0.5]],
    "wasted_s": 0.25,
}


def rows(arm: str, *pairs: tuple[float, float]) -> list[dict[str, Any]]:
    """Runs of one way, by the plain run's seconds and its own."""
    return [
        {"arm": arm, "plain_s": plain, "wall_s": wall, "together_s": wall + 0.5, **ROW}
        for plain, wall in pairs
    ]


def recorded(
    *more: dict[str, Any], chosen: dict[str, Any] | None = None, **arm: Any
) -> dict[str, Any]:
    """A case with a plain way and another one."""
    told = {"name": "a", "kind": "continuous", "replica": False, **arm}
    store = {"backend": "numpy-flat", "size": 0, "k": 1, "place": "here", "wait_s": 0.0,
             "threads": 1, "settings": []}  # fmt: skip
    case = {"name": "sparse, m", "about": "A case.", "store": store, "model": "m",
            "text": "trace", "steps": 4, "interval": 2, "arms": [told], "concurrency": 1,
            "workload": "interval", **(chosen or {})}  # fmt: skip
    return {"case": case, "rows": [*rows("plain", (4.0, 4.0), (6.0, 6.0)), *more]}


def result(*records: dict[str, Any]) -> dict[str, Any]:
    """A suite's results."""
    return {
        "suite": "mine", "date": "today", "commit": None, "machine": "m", "load_before": 0.1,
        "versions": {"python": "3"}, "models": {"m": 12}, "texts": "t", "encoder": "e",
        "cases": list(records),
    }  # fmt: skip


def test_a_summary_worked_by_hand() -> None:
    """Ten plain seconds to four; ratios 4 and 2; bounds 2 to 4; half of what is saved a run."""
    _, one = summaries(recorded(*rows("a", (4.0, 1.0), (6.0, 3.0))))

    assert (2.5, 0.5, 3.0) == (one.speed_up, one.of_bound, one.saved_s)
    assert Spread(median=3.0, low=1.5, high=4.5) == one.ratios
    assert (0.75, 4.0, 2.0, 2.0) == (one.guess_rate, one.round_trips, one.batch, one.wasted)
    assert {"writing": 0.75, "thrown away": 0.25, "waiting": 1.0} == one.shares


def test_a_replica_is_held_against_its_own_bound() -> None:
    """It may guess the first retrieval, so it could be faster."""
    _, one = summaries(recorded(*rows("a", (4.0, 1.0)), replica=True))

    assert 0.5 == one.of_bound


def test_requests_at_once_are_counted_by_the_second() -> None:
    """Two units of a request each took 1.5 and 3.5 seconds; a bound there is none."""
    _, one = summaries(recorded(*rows("a", (4.0, 1.0), (6.0, 3.0)), chosen={"concurrency": 2}))

    assert (0.4, None) == (one.per_s, one.of_bound)


def test_the_interval_holds_the_mean() -> None:
    """It is the same each time, around the mean, within the values."""
    low, high = bootstrap([1.0, 2.0, 3.0, 4.0])

    assert 1.0 < low < 2.5 < high < 4.0
    assert (low, high) == bootstrap([1.0, 2.0, 3.0, 4.0])


def test_a_case_says_its_regime() -> None:
    """One step and one search of the plain runs."""
    assert (0.25, 0.5) == regime(recorded())


def test_a_report_shows_the_case_and_the_papers_number() -> None:
    """Store, regime, all ways, and what was published for such a store."""
    record = recorded(*rows("+PSA", (4.0, 1.0), (6.0, 3.0)))

    page = report(result(record), {"sparse, m": "sparse.svg"})

    assert "R/G 2.00" in page
    assert "| +PSA | 2.00 (" in page
    assert "| 2.50 |" in page
    assert "1.53 / 1.31" in page
    assert "(sparse.svg)" in page


@pytest.mark.parametrize(
    ("kind", "seconds", "said"),
    [
        ("continuous", 4.5, "- sparse, m, a: 0.89 to 1.33"),
        ("continuous", 4.0, "No adaptive schedule is slower"),
        ("fixed", 9.0, "No adaptive schedule is slower"),
    ],
)
def test_what_may_be_slower_is_said(kind: str, seconds: float, said: str) -> None:
    """A lower end below 0.97 counts, where a schedule adapts; the paper's stride is exempt."""
    record = recorded(*rows("a", (4.0, seconds), (6.0, seconds)), kind=kind)

    assert said in report(result(record))


def test_predictions_are_held_against_what_was_measured() -> None:
    """Errors of 10, 20 and 50 percent: the middle one is told, and how many there are."""
    told = [
        {**row, "predicted_s": row["wall_s"] * factor}
        for row, factor in zip(rows("a", *[(4.0, 2.0)] * 3), (1.1, 0.8, 1.5), strict=True)
    ]

    page = report(result(recorded(*told)))

    assert "3 first requests" in page
    assert "the median error is 20.0%" in page
    assert "Predicted" not in report(result(recorded()))


def test_pictures_are_drawn() -> None:
    """An SVG that names every way, the same for the same results."""
    pytest.importorskip("matplotlib")
    from benchmarks.harness.tables import where_the_time_goes

    record = recorded(*rows("a", (4.0, 1.0), (6.0, 3.0)))

    drawn = where_the_time_goes(record)

    assert b"<svg" in drawn
    assert b"2.50 x" in drawn
