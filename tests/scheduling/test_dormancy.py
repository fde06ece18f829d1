"""Where guessing pays off for no request, most are answered plainly."""

import asyncio
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from ralmspec_plugins import AsyncEngine, Engine, QueryCache, Settings
from ralmspec_plugins.engine.base import BaseEngine
from ralmspec_plugins.engine.context import RequestContext
from ralmspec_plugins.plain import plain
from ralmspec_plugins.scheduling.cost_model import Costs
from ralmspec_plugins.scheduling.dormancy import ENOUGH, PAUSE_S, SHORT_S, Dormancy
from ralmspec_plugins.testing import EchoWorkload, WordRetriever
from ralmspec_plugins.types import Answer

PROMPT = "fox whale cat"
TEXTS = ["red fox", "blue whale", "grey cat"]


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def dormant(clock: Clock) -> Dormancy:
    dormancy = Dormancy(clock)
    for _ in range(ENOUGH):
        assert not dormancy.begins()
        dormancy.ended(paid=False, wall_s=0.01)
    return dormancy


def test_requests_begin_plainly_after_enough_that_did_not_pay() -> None:
    """But for one from time to time."""
    clock = Clock()
    dormancy = dormant(clock)

    assert [dormancy.begins() for _ in range(4)] == [False, True, True, True]
    clock.now_s = PAUSE_S
    assert [dormancy.begins() for _ in range(3)] == [False, True, True]


@pytest.mark.parametrize(
    ("paid", "wall_s"), [(True, 0.01), (False, 2 * SHORT_S)], ids=["paid", "long"]
)
def test_one_request_ends_it(paid: bool, wall_s: float) -> None:
    """One for which a guess paid off, or that took long."""
    dormancy = dormant(Clock())
    assert [dormancy.begins() for _ in range(2)] == [False, True]
    dormancy.ended(paid=paid, wall_s=wall_s)

    assert not any(dormancy.begins() for _ in range(4))


def in_threads(engine: Any) -> Answer:
    answer: Answer = engine.run(PROMPT)
    return answer


def in_batches(engine: Any) -> Answer:
    [answer] = engine.batch([PROMPT])
    return answer  # type: ignore[no-any-return]


def streamed(engine: Any) -> Answer:
    with closing(engine.stream(PROMPT)) as stream:
        assert "".join(stream) == stream.answer.text
        return stream.answer  # type: ignore[no-any-return]


def computing(engine: BaseEngine[Any, Any]) -> None:
    """Have the engine know that searches are computed here, in a millisecond."""
    for session in (engine._session, engine._together.session):
        session.costs.store.observe(0.001, 0.001)


@pytest.fixture
def plainly(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Note of each request whether it was answered plainly; guessing does not pay off."""
    monkeypatch.setattr(Costs, "worth_guessing", lambda _, **__: False)
    seen: list[bool] = []
    create = RequestContext.__init__

    def watched(self: RequestContext, *given: Any, **named: Any) -> None:
        create(self, *given, **named)
        seen.append(self.plain)

    monkeypatch.setattr(RequestContext, "__init__", watched)
    return seen


@pytest.mark.parametrize("run", [in_threads, in_batches, streamed])
def test_an_engine_sleeps_over_a_quick_store(
    run: Callable[[Any], Answer], plainly: list[bool]
) -> None:
    """Its answers stay the same, and say why nothing was guessed."""
    expected = plain(EchoWorkload(), WordRetriever(TEXTS), PROMPT)
    with Engine(EchoWorkload(), WordRetriever(TEXTS)) as engine:
        computing(engine)
        answers = [run(engine) for _ in range(ENOUGH + 6)]

    assert all(answer == expected for answer in answers)
    assert answers[-1].stats.searches == 3
    assert {"guessing would not have paid off"} == {one.stats.unguessed for one in answers}
    assert not any(plainly[: ENOUGH + 1])
    assert any(plainly)


def test_so_does_one_on_an_event_loop(plainly: list[bool]) -> None:
    """As on threads."""
    expected = plain(EchoWorkload(), WordRetriever(TEXTS), PROMPT)

    async def run() -> list[Answer]:
        async with AsyncEngine(EchoWorkload(), WordRetriever(TEXTS)) as engine:
            computing(engine)
            return [await engine.run(PROMPT) for _ in range(ENOUGH + 6)]

    assert all(answer == expected for answer in asyncio.run(run()))
    assert any(plainly)


def test_a_memo_keeps_it_awake(plainly: list[bool]) -> None:
    """It saves searches without any guess."""
    with Engine(EchoWorkload(), WordRetriever(TEXTS), Settings(memo=QueryCache())) as engine:
        computing(engine)
        answers = [engine.run(f"{PROMPT} {TEXTS[n % 3]} {n}") for n in range(ENOUGH + 6)]

    assert sum(answer.stats.remembered for answer in answers) > ENOUGH
    assert not any(plainly)


def test_a_store_that_waits_keeps_it_awake(plainly: list[bool]) -> None:
    """Its searches may become slow at any time."""
    with Engine(EchoWorkload(), WordRetriever(TEXTS)) as engine:
        for _ in range(ENOUGH + 6):
            engine._session.costs.store._since = 10**6
            engine.run(PROMPT)

    assert not any(plainly)
