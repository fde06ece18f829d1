"""`python -m benchmarks capacity`: what is foretold, by hand, and a small run on a real cluster."""

import json
from pathlib import Path

import pytest
from typer import Typer
from typer.testing import CliRunner

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from benchmarks.serving.application import STEPS
from benchmarks.serving.capacity import Foreteller, Plan, Round, Times, capacity, hop_of


def test_a_plain_crowd_by_hand() -> None:
    """Alone each step waits for its search and segment; three share a search's round trips.

    At once: the first two searches go out with one query each, the third waits until both are
    back (1.1 s), and then writes for 2 s while the others search again.
    """
    times = Times(1.0, 0.1, 2.0, hop_s=0.25)
    alone = Foreteller("plain", times).round(["a"])
    three = Foreteller("plain", Times(1.0, 0.1, 2.0)).round(["a", "b", "c"])

    assert pytest.approx(STEPS * (0.25 + 1.1 + 2.0)) == alone.wall_s
    assert sorted(three.each_s) == pytest.approx([18.6, 18.6, 19.7])
    assert pytest.approx(0.5) == hop_of(
        [Round(99.0, ()), Round(STEPS * (3.1 + 0.5), ())], Plan([1], 1), Times(1.0, 0.1, 2.0)
    )


def test_speculation_is_foretold_with_a_cache_that_stays_warm() -> None:
    """The second crowd asks about topics that the first one found."""
    plan = Plan([40], 2)
    teller = Foreteller("speculative", Times(1.0, 0.0, 0.3))
    first, *_, last = [teller.round(prompts) for prompts in plan.prompts]
    plain = Foreteller("plain", Times(1.0, 0.0, 0.3)).round(plan.prompts[-1])

    assert plan.sizes == [1, 1, 1, 40, 40]
    assert len({prompt for prompts in plan.prompts for prompt in prompts}) == 83
    assert last.wall_s < plain.wall_s
    assert first.wall_s <= STEPS * 1.3 + 1e-9


def test_rows_are_of_the_rounds_of_their_number() -> None:
    """After the warm-up and the single requests."""
    plan = Plan([2, 4], 2)
    real = [Round(float(at), (float(at),)) for at in range(1, 8)]
    virtual = [Round(2.0 * at, (2.0 * at,)) for at in range(1, 8)]
    rows = plan.rows(
        {"plain": real, "speculative": real}, {"plain": virtual, "speculative": virtual}
    )

    assert [(one["at_once"], one["way"]) for one in rows][::2] == [(2, "plain"), (4, "plain")]
    assert rows[0]["per_second_of_rounds"] == [2 / 4, 2 / 5]
    assert rows[2]["per_second_of_rounds"] == [4 / 6, 4 / 7]
    assert (rows[2]["median_s"], rows[2]["foretold_median_s"]) == (6.5, 13.0)


@pytest.mark.parametrize("given", ["", "0", "4,x", "4,5000"])
def test_wrong_numbers_are_refused(given: str, tmp_path: Path) -> None:
    """Before a cluster is started."""
    app = Typer()
    app.command()(capacity)
    result = CliRunner().invoke(app, ["--out", str(tmp_path / "x"), "--at-once", given])

    assert "from 1 to 512" in str(result.exception)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_small_cluster(tmp_path: Path) -> None:
    """Both ways are answered rightly, and every row has what was foretold."""
    pytest.importorskip("ray")
    app = Typer()
    app.command()(capacity)
    out = tmp_path / "capacity.json"
    small = ["--at-once", "2,6", "--rounds", "1", "--search-ms", "40", "--write-ms", "30"]
    result = CliRunner().invoke(app, ["--out", str(out), *small])
    assert result.exit_code == 0, result.output
    found = json.loads(out.read_text())

    assert [(one["at_once"], one["way"]) for one in found["rows"]] == [
        (2, "plain"), (2, "speculative"), (6, "plain"), (6, "speculative"),
    ]  # fmt: skip
    assert all(one["foretold_per_second"] > 0 < one["per_second"] for one in found["rows"])
    assert found["hop_s"] > 0
    assert "| 6 | speculative |" in result.output
