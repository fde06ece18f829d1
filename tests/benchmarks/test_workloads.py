"""The benchmark of workloads: its scripts, its bounds, and its command line."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks.__main__ import _Suite
from benchmarks.workloads import cli
from benchmarks.workloads.cli import Case, answer_case, compare, flare_case, hop_case, savings
from benchmarks.workloads.scripts import HopScript, Step, least_s, plain_s
from benchmarks.workloads.waiting import Oracle, WaitingModel, WaitingStore
from ralmspec_plugins import Continuous, Settings
from ralmspec_plugins.effects import Extend, FormQuery
from ralmspec_plugins.engine.simulation import Latencies, Simulation
from ralmspec_plugins.plain import plain
from ralmspec_plugins.types import Hits

CASES = {
    "flare": lambda: flare_case(0.02, 3),
    "iter_retgen": lambda: answer_case(0.02),
    "multi_hop": lambda: hop_case(3, 0.02),
}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write in hundredths of seconds."""
    monkeypatch.setattr(cli, "WRITE_S", 0.01)
    monkeypatch.setattr(cli, "ANSWER_S", 0.02)


def test_the_least_time_by_hand() -> None:
    """A turn, two hops and the answer, a = 1, s = 2: 1 + 2 (2 + 1) = 7 in the plain loop.

    All right: the second search starts at 2 and ends at 4. The first wrong: it ends at 3, the next
    turn at 4, its search at 6. With a guess of 0.5 each and all right: 1 + 2 (0.5 + 1) = 4, while
    the second search starts at 2.5 and ends at 4.5.
    """
    first = Step(1.0, None, True, 0.0)
    hops = {right: Step(0.0, 2.0, right, 1.0) for right in (True, False)}
    guessed = Step(0.0, 2.0, True, 1.0, guess_s=0.5)

    assert plain_s([first, hops[True], hops[False]]) == 7.0
    assert least_s([first, hops[True], hops[True]]) == 4.0
    assert least_s([first, hops[False], hops[True]]) == 6.0
    assert least_s([first, hops[False], hops[False]]) == 7.0
    assert least_s([first, guessed, guessed]) == 4.5


@pytest.mark.parametrize("kind", CASES)
def test_steps_are_those_of_the_run(kind: str) -> None:
    """As many searches as the run has, and other passages where the script says so."""
    case: Case = CASES[kind]()
    workload = case.make(WaitingModel(case.script, 0.0))
    answer = plain(workload, WaitingStore(case.script, 0.0), "question")
    steps = case.steps_of(answer, Oracle(case.script, 0.5))
    texts = [retrieved.hits[0].passage.text for retrieved in answer.retrieved]

    assert len(answer.retrieved) == sum(step.search_s is not None for step in steps) > 2
    if kind == "flare":
        again = [step for step in steps[1:] if step.write_s]
        assert len(again) == sum(one != other for one, other in pairwise(texts))
        assert 0 < len(again) < len(steps) - 1


@pytest.mark.parametrize("kind", CASES)
def test_rows_say_how_often_guesses_were_right(kind: str) -> None:
    """Runs are asserted equal inside; an oracle that is always right is accepted each time."""
    rows = list(compare([CASES[kind]()], (0.0, 1.0)))

    assert [0.0, 1.0] == [row["acceptance_rate"] for row in rows]
    assert rows[0]["bound_s"][0] > rows[1]["bound_s"][0] > 0.0


def test_savings_count_what_is_kept() -> None:
    """With theta 1 every sentence is searched, and with 0 none and all are kept."""
    never, always = (savings([flare_case(0.01, 3, theta=theta)], theta) for theta in (0.0, 1.0))

    assert (0.0, 1.0) == (never["searched"], never["kept"])
    assert always["searched"] == 1.0
    assert 0.0 < always["kept"] < 1.0
    assert never["formula"] > always["formula"] > 1.0


def test_published_rows_follow_the_formula() -> None:
    """Many hops and a deep window come near SpecHop's limit, and a hop alone is no faster."""
    rows = cli.published_rows(20, (1, 12), (8,))

    for one, many in zip(rows[::2], rows[1::2], strict=True):
        assert one["relative_latency"] >= 0.95 * one["unbounded"]
        assert many["relative_latency"] < one["relative_latency"] <= 1.0
        assert abs(many["relative_latency"] - many["unbounded"]) < 0.12


@pytest.mark.parametrize("right", [0.6, 0.9])
def test_flare_takes_hardly_longer_than_it_must(right: float) -> None:
    """In virtual time, with searches of four sentences: no search waits for others, or in vain.

    Of sentences that are looked ahead and kept, and others that are written again, neither tells
    how fast the model is beside a search.
    """
    taken = bound = 0.0
    for seed in range(8):
        case = replace(flare_case(1.0, seed), write_s=0.25)
        oracle = Oracle(case.script, right)
        workload = case.make(WaitingModel(case.script, 0.0))
        store = WaitingStore(case.script, 0.0)
        schedule = Continuous(lanes=8, min_acceptance_rate=0.0)
        settings = Settings(schedule=schedule, speculators=[oracle])
        latencies = Latencies(ask_s=_looking_ahead, extend_s=_again, search_s=lambda _: 1.0)
        prompt = f"question {seed}"
        answer = Simulation(workload, store, latencies, settings).run(prompt)
        expected = plain(workload, store, prompt)
        taken += answer.stats.wall_s
        bound += least_s(case.steps_of(expected, oracle))

        assert expected == answer
    assert bound > 30.0
    assert taken <= 1.05 * bound


def _looking_ahead(need: FormQuery) -> float:
    begun = need.state.hits is not None and not need.state.draft.finished
    return 0.25 if begun else 0.0


def _again(need: Extend) -> float:
    kept = need.carried is None or need.carried.sure or same(need.state.hits, need.hits)
    return 0.0 if kept else 0.25


def same(one: Hits, other: Hits) -> bool:
    return [hit.passage for hit in one] == [hit.passage for hit in other]


def test_a_wrong_guess_changes_what_is_asked() -> None:
    """The next query depends on what was put in."""
    script = HopScript(2)
    texts = {script.piece("question", f"</search>{found}", "").tokens[0].text for found in "ab"}

    assert len(texts) == 2


def test_the_command_writes_all_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row of each kind, and where they come from."""
    import typer

    monkeypatch.setattr(cli, "SENTENCES", 4)
    app = typer.Typer()
    app.command(cls=_Suite)(cli.workloads)
    out = tmp_path / "new" / "rows.json"
    result = CliRunner().invoke(app, ["--out", str(out), "--small"])
    content: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))

    assert result.exit_code == 0
    kinds = ("flare_savings", "flare", "iter_retgen", "multi_hop", "multi_hop_ablation")
    assert [1] * len(kinds) == [len(content[kind]) for kind in kinds]
    assert content["commit"] is None or content["commit"]
    assert result.output.count("share_of") == len(kinds)
