"""Measured results as tables: the paper's, the bounds, the ablations."""

import pytest

from benchmarks.harness import tables
from benchmarks.harness.tables import ablation_picture

from .test_report import recorded, result, rows


def test_the_papers_table_as_measured() -> None:
    """Ways by stores, with R/G and n in the head, and the published numbers behind ours."""
    record = recorded(*rows("+PSA", (4.0, 1.0), (6.0, 3.0)))

    page = tables.table_1(result(record))

    assert "sparse, m: R/G 2, n = 2" in page
    assert "| +PSA | 2.50, 50 % of the bound (1.53 / 1.31) |" in page


def test_other_cases_are_no_part_of_it() -> None:
    """Ablations and the like are not in the paper's table."""
    page = tables.table_1(result(recorded(chosen={"name": "remote, 5 ms"})))

    assert "remote" not in page


def test_what_is_held_against_the_bound() -> None:
    """A line for each way, with its share of the bound."""
    record = recorded(*rows("a", (4.0, 1.0), (6.0, 3.0)), chosen={"name": "remote, 5 ms"})

    page = tables.against_bound(result(record), ("remote",))

    assert "| remote, 5 ms | 2 | a | 2.50 | 2.00 to 4.00 | 50 % |" in page
    assert "a" not in tables.against_bound(result(record), ("scan",)).splitlines()[2:]


def test_requests_at_once() -> None:
    """Two units of a request each took 1.5 and 3.5 seconds."""
    record = recorded(*rows("a", (4.0, 1.0), (6.0, 3.0)), chosen={"concurrency": 2})

    assert "| sparse, m | a | 0.40 | 2.50 |" in tables.at_once(result(record))


@pytest.mark.parametrize(
    ("kind", "seconds", "said"),
    [
        ("continuous", 5.0, "| sparse, m | a | 0.80 to 1.20 |"),
        ("fixed", 5.0, "None: each interval"),
        ("continuous", 3.0, "None: each interval"),
    ],
)
def test_what_may_be_slower_is_listed(kind: str, seconds: float, said: str) -> None:
    """Of the adaptive schedules, each whose interval does not lie above 0.97."""
    record = recorded(*rows("a", (4.0, seconds), (6.0, 5.0)))
    record["case"]["arms"][0]["kind"] = kind
    record["case"]["store"]["place"] = "beside"
    here = recorded(*rows("a", (4.0, 5.0), (6.0, 5.0)))

    assert said in tables.slower(result(record, here))


def test_intervals_are_told_of_every_way() -> None:
    """Hand-worked: 10 s to 5 s, ratios 4 and 1.5."""
    page = tables.intervals(result(recorded(*rows("a", (4.0, 1.0), (6.0, 4.0)))))

    assert "| sparse, m | 2 | a | 2.000 | 1.500 to 4.000 | " in page


def test_predictions_are_held_against_what_was_measured() -> None:
    """Two seconds were said, and one and a half were taken."""
    more = rows("a", (4.0, 1.0), (6.0, 2.0))
    for row in more:
        row["predicted_s"] = 2.0

    page = tables.predicted(result(recorded(*more)))

    assert "Median error of 2 first requests in 1 configurations: 50.0%" in page
    assert "| sparse, m | a | 2.00 | 1.50 | +33 % |" in page


@pytest.mark.parametrize(
    ("ablation", "case", "arm", "line", "x"),
    [
        ("stride", "speculation stride", "stride 4", "", "4"),
        ("stride", "speculation stride", "continuous", "", "continuous"),
        ("cache", "cache size and eviction", "lru, 500", "lru", "500"),
        ("prefetch", "prefetch", "prefetch 64", "", "64"),
        ("interval", "interval 16", "continuous", "continuous", "16"),
        ("window", "window", "window 8", "", "8"),
        ("lanes", "lanes", "32 lanes", "", "32"),
        ("latency", "latency 100 ms", "replica", "replica", "100"),
        ("passages", "250,000 passages", "+PSA", "+PSA", "250000"),
        ("turns", "switch interval", "turns every 500 us", "", "500"),
    ],
)
def test_ablations_are_found_by_their_names(
    ablation: str, case: str, arm: str, line: str, x: str
) -> None:
    """What was varied stands in the name of the case or of the way."""
    told = result(recorded(*rows(arm, (4.0, 1.0), (6.0, 3.0)), chosen={"name": case}))
    told["cases"][0]["case"]["arms"][0]["name"] = arm
    (point,) = tables.points(told, ablation)

    assert (line, x, 2.5) == (point.line, point.x, point.found.speed_up)
    assert f"| {line} | {x} | 2.50 |" in tables.ablation(told, ablation)
    assert ablation_picture([point], "what was varied").startswith(b"<?xml")


def test_every_ablation_of_the_suite_is_shown() -> None:
    """No case of the suite is measured and left out of the tables."""
    from benchmarks.harness.cases import ablations

    shown = 0
    for case in ablations():
        arms = [arm.name for arm in case.arms]
        more = [row for arm in arms for row in rows(arm, (4.0, 1.0), (6.0, 3.0))]
        told = recorded(*more, chosen={"name": case.name})
        told["case"]["arms"] = [{**told["case"]["arms"][0], "name": arm} for arm in arms]
        found = [tables.points(result(told), name) for name in tables.ABLATIONS]
        assert [len(arms)] == [len(points) for points in found if points]
        shown += 1

    assert shown
