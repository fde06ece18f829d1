"""`ralmspec diagnose`: the formulas of the bounds, and what is said about them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ralmspec_plugins import Passage, Request
from ralmspec_plugins.diagnosis import (
    SIZES,
    SWITCH_INTERVAL_S,
    Bounds,
    batch_curve,
    step_times,
    switch_gains,
    verdict,
)
from ralmspec_plugins.engine.threads import Engine
from ralmspec_plugins.testing import WordRetriever
from tests.cli.conftest import Run, lines

FLAT = dict.fromkeys(SIZES, 0.4)  # a batch costs what one query costs
STEEP = {size: 0.4 * size for size in SIZES}  # a batch saves nothing


def test_bounds_on_a_hand_worked_case() -> None:
    """With N = 32, a = 1 and b(1) = 40.

    Plain 32 + 1280 = 1312; at best 32 + 40 = 72; with the first search guessed 31 + 40 = 71.
    """
    bounds = Bounds(32, 1.0, 40.0)

    assert (1312, 72, 71) == (bounds.plain_s, bounds.best_s, bounds.best_guessed_s)
    assert pytest.approx(18.22, abs=0.01) == bounds.speed_up
    assert pytest.approx(18.48, abs=0.01) == bounds.speed_up_guessed


def test_a_short_search_hides_behind_one_step() -> None:
    """With b(1) below a, the replica's bound is the writing alone: 3 a + max(a, b) = 4 a."""
    assert Bounds(4, 1.0, 0.5).best_guessed_s == 4.0


@pytest.mark.parametrize(
    ("bounds", "curve", "words"),
    [
        (Bounds(32, 1.0, 0.001), FLAT, ["cannot pay"]),
        (Bounds(1, 0.4, 0.4), FLAT, ["only with a replica", "2.0 times"]),
        (Bounds(32, 0.1, 0.4), FLAT, ["5.8", "".join(["16.0 times as fast"]), "--lanes 5"]),
        (Bounds(32, 0.1, 0.4), STEEP, ["one by one", "--lanes 5"]),
    ],
)
def test_the_verdict_is_in_plain_words(
    bounds: Bounds, curve: dict[int, float], words: list[str]
) -> None:
    """It says whether it can pay, how much, what batching is worth, and how many lanes."""
    said = verdict(replace(bounds, steps=bounds.steps), curve)
    expected = [word if word != "5.8" else f"{bounds.speed_up:.1f} times" for word in words]

    assert [word for word in expected if word not in said] == []


@pytest.mark.parametrize(
    ("gains", "recommended"),
    [
        ((), False),
        ((1.3, 1.2, 1.4), True),
        ((1.02, 1.03, 1.04), False),  # too little to be told from noise
        ((1.3, 0.9, 1.4), False),  # one pair says otherwise
    ],
)
def test_shorter_turns_are_recommended_where_they_gain(
    gains: tuple[float, ...], recommended: bool
) -> None:
    """With the option and the setting that give them."""
    said = verdict(Bounds(32, 0.1, 0.4), FLAT, gains)

    assert recommended is ("--switch-interval 0.5ms" in said)
    assert recommended is ("Settings(switch_interval_s=0.0005)" in said)


def test_switch_intervals_are_compared_in_pairs() -> None:
    """Five pairs, each interval first in turn; a ratio is Python's own over the short one."""
    asked: list[float | None] = []

    def run(interval_s: float | None) -> float:
        asked.append(interval_s)
        return 3.0 if interval_s is None else 2.0

    assert switch_gains(run) == (1.5,) * 5
    assert asked[:4] == [SWITCH_INTERVAL_S, None, None, SWITCH_INTERVAL_S]


def test_the_curve_is_measured_on_real_queries() -> None:
    """Each size is searched as an engine would: as wide as a verification."""
    retriever = WordRetriever(["red fox", "blue whale"])
    curve = batch_curve(retriever, [retriever.encode("fox"), retriever.encode("whale")], 2)

    assert list(SIZES) == list(curve)
    assert all(seconds > 0 for seconds in curve.values())
    assert {len(batch) for batch in retriever.searched} == set(SIZES)


class _Counter:
    """A language model that only counts."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def begin(self, request: Request) -> int:
        return 0

    def write(self, draft: int, passages: list[Passage], tokens: int, progress: Any) -> int:
        self.seen.append(passages[0].id)
        return draft + tokens

    def finished(self, draft: int) -> bool:
        return draft > 16

    def release(self, draft: int) -> None:
        self.seen.append("released")


def test_steps_are_measured_with_old_and_new_passages() -> None:
    """Each passage is new once, then the same once; an ended text ends the measurement."""
    lm: Any = _Counter()
    times = step_times(lm, Request(prompt="x"), [[Passage(name, "")] for name in "abcdef"], 4)

    assert ["a", "a", "b", "b", "c", "released"] == lm.seen
    assert times.same_s is not None
    assert times.changed_s is not None


def test_a_diagnosis_is_one_object(run: Run, kb: Path, model: Path) -> None:
    """All numbers and the verdict; a far store is labelled and found worth it."""
    options = ("--kb", kb, "--model", model, "--threads", 1, "--max-tokens", 16)
    result = run("diagnose", "The storm", *options, "--latency", "20ms")
    [record] = lines(result)

    assert result.exit_code == 0, result.output
    assert [str(size) for size in SIZES] == list(record["batch_s"])
    assert record["steps"] == 4
    assert record["deterministic"] is True
    assert record["speed_up"] > 1.2
    assert record["added_latency_s"] == 0.02
    assert len(record["switch_interval_gains"]) == 5
    assert "simulated remote store" in result.stderr


@pytest.mark.usefixtures("terminal")
def test_a_person_reads_tables(
    run: Run, kb: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the verdict below, also where a machine differs from itself."""
    monkeypatch.setenv("COLUMNS", "300")
    options = ("--kb", kb, "--model", model, "--threads", 1, "--max-tokens", 8)
    result = run("diagnose", "The storm", *options)

    assert result.exit_code == 0, result.output
    assert "N a + b(1)" in result.stdout
    assert "is deterministic" in result.stdout


def test_a_machine_that_differs_from_itself_is_told(
    run: Run, kb: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two plain runs with different answers make `deterministic` false."""
    genuine, runs = Engine.run, iter("abcdefghijkl")
    monkeypatch.setattr(Engine, "run", lambda *given: replace(genuine(*given), text=next(runs)))
    result = run("diagnose", "--kb", kb, "--model", model, "--max-tokens", 8, "--threads", 1)

    assert json.loads(result.stdout)["deterministic"] is False
