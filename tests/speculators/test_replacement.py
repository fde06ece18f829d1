"""An early guess gives way to a better one, once, when its query is encoded."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from ralmspec_plugins import (
    AsyncEngine,
    Continuous,
    Engine,
    FixedStride,
    OptimalStride,
    Settings,
)
from ralmspec_plugins.effects import Guessed, Notice, RolledBack
from ralmspec_plugins.engine.context import RequestContext
from ralmspec_plugins.plain import plain
from ralmspec_plugins.scheduling.cost_model import Contention, Costs, Searched
from ralmspec_plugins.scheduling.replacing import GuessReplacement
from ralmspec_plugins.speculators.ranking import SpeculatorRates
from ralmspec_plugins.types import Answer, Hits, Query
from tests.speculators.encoded_steps import STEPS, Far, Guesser, Numbered, both, simulated


class Keeping(Continuous):
    """The default schedule, but that a guess stays until it is verified."""

    def begin(self, costs: Costs) -> Any:
        policy = super().begin(costs)
        policy.replacement = None
        return policy


@pytest.mark.parametrize(
    ("share", "encode_s"), [(0.5, 0.02), (0.7, 0.02), (0.3, 0.15), (0.5, 0.15), (0.7, 0.15)]
)
def test_a_wrong_early_guess_is_replaced(share: float, encode_s: float) -> None:
    """It costs the time until its segment has stopped, not that of a search."""
    answer = simulated(both(share, 1.0), encode_s=encode_s)
    kept = simulated(both(share, 1.0), Keeping(lanes=8), encode_s=encode_s)
    late = simulated([Guesser("vector", 1.0)], encode_s=encode_s)

    assert answer.stats.replaced >= 5
    assert kept.stats.replaced == late.stats.replaced == 0
    assert answer.stats.wall_s < kept.stats.wall_s
    assert answer.stats.wall_s < 0.95 * late.stats.wall_s


def test_each_guess_is_replaced_at_most_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a query a segment is begun on two guesses at most, and dropped in between."""
    told: list[Notice] = []
    note = RequestContext.note

    def watched(self: RequestContext, notice: Notice) -> None:
        told.append(notice)
        note(self, notice)

    monkeypatch.setattr(RequestContext, "note", watched)
    answer = simulated(both(0.5, 0.9))
    guesses = Counter(event.query.text for event in told if isinstance(event, Guessed))
    dropped = sum(isinstance(event, RolledBack) for event in told)

    assert set(guesses.values()) == {1, 2}
    assert dropped >= answer.stats.replaced >= list(guesses.values()).count(2) > 5


def test_a_good_early_guess_is_kept() -> None:
    """Where the guess by the encoding is seldom right, it replaces hardly any other."""
    answer = simulated(both(0.9, 0.3))

    assert answer.stats.replaced <= 3
    assert answer.stats.guess_rate is not None
    assert answer.stats.guess_rate >= 0.8


def test_guesses_that_agree_stay() -> None:
    """The second guess says the same: nothing is dropped, and both are credited."""
    answer = simulated(both(1.0, 1.0))

    assert answer.stats.replaced == 0
    assert answer.stats.wasted_segments == 0


def test_early_guesses_are_made_although_late_ones_are_right_more_often() -> None:
    """They save the time of the encoding, and a wrong one is replaced."""
    early, late = both(0.5, 1.0)
    simulated([late, early], encode_s=0.02)

    assert early.asked[False] >= STEPS // 2
    assert early.asked[True] == 0


def test_early_guesses_that_cost_more_than_they_save_end() -> None:
    """A segment that stops slowly, a short encoding: 0.6 of a guess saves 2 ms, a stop costs 20."""
    early, late = both(0.6, 1.0)
    simulated([early, late], encode_s=0.002, stop_s=0.02)

    assert early.asked[False] <= STEPS // 2
    assert late.asked[True] >= STEPS // 2


def test_an_encoding_that_is_waited_for_is_no_contention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether searches slow the model down is seen from segments; a step has its encoding, too."""
    segments, steps = set(), set()
    wrote, append = Contention.wrote, Costs.wrote

    def watched(self: Contention, seconds: float, beside_s: float) -> None:
        segments.add(round(seconds, 3))
        wrote(self, seconds, beside_s)

    def watched_step(self: Costs, *given: Any) -> None:
        append(self, *given)
        steps.add(round(self._steps[-1], 3))

    monkeypatch.setattr(Contention, "wrote", watched)
    monkeypatch.setattr(Costs, "wrote", watched_step)
    simulated([Guesser("vector", 0.9)], encode_s=0.02)

    assert {0.025} == segments
    assert 0.045 in steps


@pytest.mark.parametrize("schedule", [FixedStride(stride=3), OptimalStride()])
def test_the_papers_schedules_keep_a_guess(schedule: Any) -> None:
    """Their rounds are those of the paper."""
    early, late = both(0.5, 1.0)
    answer = simulated([early, late], schedule)

    assert answer.stats.replaced == 0
    assert early.asked[False] > 0


def test_a_slow_speculator_replaces_nothing() -> None:
    """It would be called outside of the loop, beside the segment."""
    answer = simulated(both(0.5, 1.0, inline=False))

    assert answer.stats.replaced == 0
    assert answer.stats.accepted > 5


def test_what_is_dropped_counts_as_wasted() -> None:
    """Also against a bound, at which nothing is replaced any more."""
    free = simulated(both(0.5, 1.0)).stats
    bound = simulated(both(0.5, 1.0), max_wasted_tokens=3).stats

    assert free.wasted_tokens >= free.replaced > 3
    assert bound.wasted_tokens <= 3
    assert bound.limited_by == "max_wasted_tokens"


class Waiting(Far):
    """Its encoder and its store answer after some milliseconds."""

    def encode(self, text: str) -> Query:
        time.sleep(0.01)
        return super().encode(text)

    def search(self, queries: Sequence[Query]) -> list[Hits]:
        time.sleep(0.02)
        return super().search(queries)


def test_both_engines_replace_guesses() -> None:
    """In threads and on asyncio, with the plain answer."""
    settings = Settings(schedule=Continuous(lanes=8), speculators=both(0.5, 1.0))

    async def run() -> Answer:
        async with AsyncEngine(Numbered(), Waiting(), settings) as engine:
            return await engine.run("")

    with Engine(Numbered(), Waiting(), settings) as engine:
        answers = [engine.run(""), asyncio.run(run())]
    for answer in answers:
        assert answer == plain(Numbered(), Far(), "")
        assert answer.stats.replaced > 0


def costs_of(*, step_s: float, search_s: float, stop_s: float) -> Costs:
    costs = Costs()
    for _ in range(3):
        costs.wrote(step_s)
        costs.searched(Searched(1, search_s))
    costs.stopped(stop_s)
    return costs


def test_when_a_guess_is_worth_replacing() -> None:
    """By what either guess is expected to save."""
    costs = costs_of(step_s=0.025, search_s=0.05, stop_s=0.005)
    worth: Callable[..., bool] = GuessReplacement(costs, 0.1).worth_replacing

    assert worth(0.1, 0.9, 0.15, stops=True)
    assert not worth(0.9, 0.1, 0.15, stops=True)
    assert not worth(0.5, 0.5, 0.0, stops=True)
    assert worth(0.1, 0.3, 0.0, stops=True)
    assert not worth(0.1, 0.3, 0.15, stops=True)  # so much would be done again
    assert not worth(0.1, 0.1, 0.01, stops=False)
    unstoppable = GuessReplacement(costs_of(step_s=0.025, search_s=0.05, stop_s=0.06), 0.1)
    assert not unstoppable.worth_replacing(0.0, 1.0, 0.0, stops=True)
    assert unstoppable.worth_replacing(0.0, 1.0, 0.0, stops=False)
    assert not GuessReplacement(Costs(), 0.1).worth_replacing(0.0, 1.0, 0.0, stops=False)


def test_when_an_early_guess_is_worth_making() -> None:
    """By how often it is right, how long before the second one, and what stopping costs."""
    worth = GuessReplacement(
        costs_of(step_s=0.025, search_s=0.05, stop_s=0.005), 0.1
    ).worth_guessing_early

    assert worth(0.5, 1.0, 0.02)
    assert not worth(0.15, 1.0, 0.02)
    assert worth(0.15, 0.1, 0.02)  # the second one is seldom right
    assert worth(0.15, 1.0, 0.15)
    assert not worth(0.05, 1.0, float("inf"))
    assert GuessReplacement(Costs(), 0.1).worth_guessing_early(1.0, 1.0, float("inf"))


def test_the_chances_of_guesses_that_differ_are_learned() -> None:
    """First from how often each is right, then from who was right where they differed."""
    rates = SpeculatorRates()
    for number in range(60):
        rates.record_outcome(0, number % 2 == 0, 0.2)
        rates.record_outcome(1, number % 10 != 0, 0.05)
    first, second = rates.chances(0, 1)
    assert first < 0.15 < 0.7 < second < 0.9

    for _ in range(60):
        rates.record_difference(0, 1, (True, False))
    first, second = rates.chances(0, 1)
    assert second < 0.1 < 0.9 < first
    assert rates.chances(1, 0) != (first, second)  # of that pair nothing was seen


def test_how_far_a_guess_is_ahead() -> None:
    """The difference of the leads; unknown before both have guessed."""
    rates = SpeculatorRates()
    assert rates.ahead(0, 1) == (1.0, 1.0, float("inf"))
    rates.record_outcome(0, True, 0.2)
    assert rates.ahead(0, 1) == (1.0, 1.0, float("inf"))
    rates.record_outcome(1, True, 0.05)
    assert rates.ahead(0, 1) == (1.0, 1.0, pytest.approx(0.15))
