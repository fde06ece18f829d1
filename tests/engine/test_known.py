"""What an engine has measured is known to those that are made with it."""

import asyncio
from typing import Any

import pytest

from ralmspec_plugins import AsyncEngine, Continuous, Engine, Settings
from ralmspec_plugins.scheduling.cost_model import Costs, Searched
from tests.test_loop import STEPS, Counting, Guesser, Numbered, hit

WRONG = Guesser({number: hit((number + 1) % STEPS) for number in range(STEPS)})
SETTINGS = Settings(schedule=Continuous(lanes=4, min_acceptance_rate=0.5), speculators=[WRONG])


def wasted(answer: Any) -> int:
    assert answer.text == "abcdefgh"
    assert answer.stats.guesses + answer.stats.wasted_segments > 0 or answer.stats.unguessed
    return int(answer.stats.wasted_segments)


def taught() -> Engine:
    """Return an engine that has seen that all guesses are wrong."""
    engine = Engine(Counting(), Numbered(), SETTINGS)
    for _ in range(8):
        engine.run("")
    return engine


def test_an_engine_without_one_begins_anew() -> None:
    """Its first guesses are tried; after some requests nothing more is written on any."""
    with Engine(Counting(), Numbered(), SETTINGS) as engine:
        first = wasted(engine.run(""))
    with taught() as engine:
        assert wasted(engine.run("")) == 0 < first


@pytest.mark.parametrize("kind", ["threads", "asyncio"])
def test_another_engine_knows_what_was_measured(kind: str) -> None:
    """From its first request on; and what it learns is known to the first one."""
    with taught() as known:
        before = len(known._session.costs._guesses)
        if kind == "threads":
            with Engine(Counting(), Numbered(), SETTINGS, known=known) as other:
                assert wasted(other.run("")) == 0
        else:

            async def run() -> Any:
                async with AsyncEngine(Counting(), Numbered(), SETTINGS, known=known) as other:
                    return await other.run("")

            assert wasted(asyncio.run(run())) == 0
        assert known._session.costs.guess_rate < 0.5
        assert before > 0


def test_a_batch_knows_it_too_and_measures_merged_searches_apart() -> None:
    """Its searches wait for each other, which says nothing about single ones."""
    with taught() as engine:
        curve = engine._session.costs.curve.points
        answers = engine.batch(["", "", ""])
        batch = engine._together.session

        assert [0, 0, 0] == [wasted(answer) for answer in answers]
        assert engine._session.costs.curve.points == curve
        assert batch.costs is not engine._session.costs
        assert batch.costs.load is engine._session.costs.load
        assert batch.rates is engine._session.rates


def test_a_copy_of_costs_learns_by_itself() -> None:
    """It begins with all that is known, and neither changes the other."""
    costs = Costs()
    costs.wrote(2.0)
    costs.searched(Searched(1, 4.0))
    costs.stopped(1.0)
    costs.guessed(0.5)
    for _ in range(9):
        costs.record_outcome(False)
    copied = costs.copy()
    names = ("step_s", "guess_rate", "stop_s", "_guess_s", "load")
    before = [getattr(costs, name) for name in names]

    assert before == [getattr(copied, name) for name in names]
    assert costs.curve.points == copied.curve.points == [(1, 4.0)]
    for _ in range(9):
        copied.wrote(9.0)
        copied.searched(Searched(2, 9.0))
        copied.stopped(9.0)
        copied.guessed(9.0)
        copied.record_outcome(True)
    assert before == [getattr(costs, name) for name in names]
    assert costs.curve.points == [(1, 4.0)]
    assert copied.guess_rate > costs.guess_rate
