"""Guesses made while a query is being encoded hide the encoding, however quick the search is."""

import asyncio
import time
from collections.abc import Sequence
from math import inf
from typing import Any

import pytest

from ralmspec_plugins import AsyncEngine, Continuous, Engine, OptimalStride, Settings
from ralmspec_plugins.guesses import NOT_WORTH_GUESSING
from ralmspec_plugins.plain import plain
from ralmspec_plugins.scheduling.cost_model import Costs, Searched
from ralmspec_plugins.scheduling.policy import SchedulerState
from ralmspec_plugins.types import Query
from tests.speculators.encoded_steps import STEPS, Far, Guesser, Numbered, both, simulated


@pytest.fixture(autouse=True)
def as_users_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo what tests/conftest.py sets, so that guessing has to pay."""
    monkeypatch.setattr(Costs, "SIDE_BY_SIDE_S", 0.003)
    monkeypatch.setattr(Costs, "WORTH_GUESSING", 0.05)
    monkeypatch.setattr(Costs, "WORTH_WRITING", 0.05)
    monkeypatch.setattr(Costs, "STOP_SHARE", 0.5)
    monkeypatch.setattr(Costs, "LONG_SEARCH", 2.0)


SLOW: dict[str, Any] = {"write_s": 1.0, "search_s": 0.04, "encode_s": 0.3}
PLAIN_S = STEPS * sum(SLOW.values())


@pytest.mark.parametrize("search_s", [0.0, 0.001, 0.04])
def test_an_encoding_is_hidden_where_the_search_is_quick(search_s: float) -> None:
    """A search of less than a twentieth of a step is not worth a guess; the encoding is."""
    answer = simulated([Guesser("text", 1.0, by_text=True)], **{**SLOW, "search_s": search_s})

    assert answer.stats.guesses >= STEPS - 2
    assert answer.stats.wall_s < 1.02 * STEPS * SLOW["write_s"] + SLOW["encode_s"] + search_s


def test_a_quick_search_alone_is_not() -> None:
    """Nor is anything guessed once the query is encoded."""
    late = Guesser("vector", 1.0)
    answer = simulated([late], **SLOW)

    assert answer.stats.wall_s == pytest.approx(PLAIN_S, rel=0.01)
    assert late.asked[True] <= 3
    assert answer.stats.unguessed == NOT_WORTH_GUESSING or answer.stats.guesses <= 3


def test_no_second_guess_is_asked_for() -> None:
    """One that would hide the search alone."""
    early, late = both(0.7, 1.0)
    answer = simulated([early, late], **SLOW)

    assert early.asked[False] >= STEPS - 4
    assert late.asked[True] <= 3
    assert answer.stats.replaced <= 1


def test_what_a_wrong_guess_costs_is_tried_out() -> None:
    """Half of a step is assumed before one was stopped, and that fades as guesses are right."""
    costs = measured(encode_s=0.15, step_s=1.0)
    worth = []
    for number in range(120):
        costs.record_outcome(accepted=number % 5 != 0)
        worth.append(costs.worth_writing(0.1, early=True))
    assert not any(worth[:10])
    assert worth[-1]
    costs.stopped(0.5)
    costs.record_outcome(accepted=False)
    assert not costs.worth_writing(0.1, early=True)


@pytest.mark.parametrize("schedule", [Continuous(lanes=8), OptimalStride()])
def test_wrong_guesses_cost_little(schedule: Any) -> None:
    """They end where stopping the segments would take more than is hidden."""
    wrong = Guesser("text", 0.0, by_text=True)
    answer = simulated([wrong], schedule, stop_s=0.5, **SLOW)

    assert answer.stats.wall_s < 1.03 * PLAIN_S
    assert wrong.asked[False] >= 1


@pytest.mark.parametrize("share", [0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize(
    ("encode_s", "lanes", "stop_s"),
    [(5.0, 1, 0.0), (10.0, 1, 0.0), (10.0, 1, 1.0), (2.0, 1, 0.05), (10.0, 2, 0.1)],
)
def test_a_wrong_guess_does_not_hold_the_last_lane(
    share: float, encode_s: float, lanes: int, stop_s: float
) -> None:
    """An encoding in a thread cannot be stopped, and the right query would wait for its end."""
    times = {"write_s": 1.0, "search_s": 0.01, "encode_s": encode_s}
    answer = simulated(
        [Guesser("text", share, by_text=True)],
        encode_lanes=lanes,
        stop_s=stop_s,
        stop_encode_s=inf,
        **times,
    )
    slowness = answer.stats.wall_s / (STEPS * sum(times.values()))

    assert slowness < 1.02
    assert share < 0.5 or stop_s == 1.0 or slowness < 0.97


def test_the_last_lane_is_taken_where_the_search_takes_longer_than_the_encoding() -> None:
    """What was begun behind a wrong guess has ended then. One that is awaited can be stopped."""
    costs = measured(encode_s=0.02, search_s=0.05)
    assert costs.worth_encoding_ahead(inf)
    slow = measured(encode_s=0.5, search_s=0.05)
    assert not slow.worth_encoding_ahead(inf)
    assert slow.worth_encoding_ahead(0.0)
    assert Costs().worth_encoding_ahead(inf)
    early, late = both(0.5, 1.0)
    answer = simulated([early, late], encode_s=0.5, encode_lanes=1)
    assert answer.stats.wall_s < STEPS * 0.575


def measured(*, encode_s: float, search_s: float = 0.001, step_s: float = 0.5) -> Costs:
    costs = Costs()
    for _ in range(3):
        costs.wrote(step_s, 0.0, 0.0)
        costs.searched(Searched(1, search_s))
        costs.encoded(encode_s, 8)
    return costs


def test_what_an_early_guess_hides() -> None:
    """The encoding, unless this process computes it."""
    costs = measured(encode_s=0.15)
    assert (costs.worth_guessing(), costs.worth_guessing(early=True)) == (False, True)
    assert not measured(encode_s=0.01).worth_guessing(early=True)
    assert costs.worth_prefetching()
    assert not measured(encode_s=0.0).worth_prefetching()

    for _ in range(8):
        costs.record_outcome(accepted=True)
    assert (costs.worth_writing(), costs.worth_writing(early=True)) == (False, True)
    assert costs.copy().worth_guessing(early=True)

    with costs.encoder.in_thread():
        until_s = time.thread_time() + 0.002
        while time.thread_time() < until_s:
            pass
    costs.encoded(0.15, 8)
    assert not costs.worth_guessing(early=True)
    assert not costs.worth_writing(early=True)


def test_a_schedule_asks_whether_the_guess_is_early() -> None:
    """And what it waits for before the second guess is used, too."""
    quick = SchedulerState(pending=0, searching=0, in_flight=0, ahead=0, stalled=False)
    early = SchedulerState(pending=0, searching=0, in_flight=0, ahead=0, stalled=False, early=True)
    for schedule in (Continuous(lanes=8), OptimalStride()):
        policy = schedule.begin(measured(encode_s=0.6))
        policy.record_outcome(accepted=True)
        assert (policy.may_write(quick), policy.may_write(early)) == (False, True)
        assert (policy.worth_guessing(), policy.worth_guessing(early=True)) == (False, True)
    costs = measured(encode_s=1.2)
    assert (costs.is_careful(), costs.is_careful(early=True)) == (True, False)


class Waiting(Far):
    """Encodes for 30 ms without computing; searches at once, or awaits both."""

    def encode(self, text: str) -> Query:
        time.sleep(0.03)
        return super().encode(text)


class Awaiting(Far):
    """The same, for an event loop."""

    async def aencode(self, text: str) -> Query:
        await asyncio.sleep(0.03)
        return self.encode(text)

    async def asearch(self, queries: Sequence[Query]) -> Any:
        return self.search(queries)


class Slow(Numbered):
    """Writes a segment in 10 ms."""

    def extend(self, state: Any, hits: Any, progress: Any) -> Any:
        time.sleep(0.01)
        return super().extend(state, hits, progress)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_both_engines_hide_a_waiting_encoder(asynchronous: bool) -> None:
    """Over a store that answers at once."""
    settings = Settings(
        schedule=Continuous(lanes=8), speculators=[Guesser("text", 1.0, by_text=True)]
    )
    if asynchronous:
        answer = asyncio.run(AsyncEngine(Slow(), Awaiting(), settings).run(""))
    else:
        with Engine(Slow(), Waiting(), settings) as engine:
            answer = engine.run("")

    assert answer == plain(Numbered(), Far(), "")
    assert answer.stats.guesses >= STEPS // 2
    assert answer.stats.accepted == answer.stats.guesses
