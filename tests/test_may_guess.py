"""`Settings.may_guess`: from when it says no, nothing is begun that stands on a guess."""

import random
from dataclasses import replace

import pytest

from ralmspec_plugins import Engine, Request, SharedPassageCache
from ralmspec_plugins.config import Settings
from ralmspec_plugins.plain import plain
from ralmspec_plugins.protocols import Progress, speculative
from ralmspec_plugins.types import Hits
from tests.drivers import drive, plainly
from tests.test_equality import random_settings
from tests.test_loop import STEPS, Counting
from tests.worlds import WorldRetriever, random_world, simple_world


def test_the_answer_is_the_plain_one_whenever_it_says_no() -> None:
    """Whatever it says at each time, and in whatever order work finishes."""
    for seed in range(150):
        world, dice = random_world(seed), random.Random(seed)
        often = dice.random()
        settings = replace(
            random_settings(world, dice),
            may_guess=lambda dice=dice, often=often: dice.random() < often,
        )
        outcome, _ = drive(world, settings, seed)

        assert plainly(world) == outcome, seed


class Noticing(Counting):
    """Says no from its n-th segment on, and notes which segments were written on guesses."""

    def __init__(self, at: int) -> None:
        super().__init__(heeds=False)
        self._at = at
        self.ahead: list[bool] = []

    def extend(self, state: str, hits: Hits, progress: Progress) -> str:
        self.ahead.append(speculative.get())
        return super().extend(state, hits, progress)

    def may_guess(self) -> bool:
        return len(self.ahead) < self._at


def test_nothing_is_begun_on_a_guess_from_then_on() -> None:
    """Within the request that runs, and in the next ones."""
    world = simple_world(0)
    for at in (0, 1, 2, 4):
        retriever, pool = WorldRetriever(world), SharedPassageCache()
        for _ in range(2):
            workload = Noticing(at)
            settings = Settings(pool=pool, may_guess=workload.may_guess)
            with Engine(workload, retriever, settings) as engine:
                answer = engine.run("go")

            expected = plain(workload, retriever, Request(prompt="go"))
            assert expected.text == answer.text
            seen = workload.ahead[: len(workload.ahead) - STEPS]  # without the plain loop's
            assert not any(seen[at:])
        assert at < 2 or any(seen)
        assert at or answer.stats.unguessed == "may_guess returned False"


def test_an_error_in_it_is_no_answers(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is written on guesses then, and the log says so."""

    def failing() -> bool:
        raise ValueError("nobody knows")

    world = simple_world(0)
    retriever, workload = WorldRetriever(world), Noticing(at=10**9)
    with Engine(workload, retriever, Settings(may_guess=failing)) as engine:
        answer = engine.run("go")

    expected = plain(Noticing(at=10**9), retriever, Request(prompt="go"))
    assert (answer.text, answer.retrieved) == (expected.text, expected.retrieved)
    assert workload.ahead
    assert not any(workload.ahead)
    assert "failing" in caplog.text
