"""The promise for FLARE, Iter-RetGen and multi-hop: speculation never changes the answer."""

import asyncio
import contextlib
import itertools
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ralmspec_plugins import AsyncEngine, Engine, Latencies, Settings, Simulation
from ralmspec_plugins.types import Answer
from tests.drivers import Outcome, drive, plainly
from tests.model_worlds import KINDS, ModelWorld, features, model_worlds, random_model_world
from tests.test_equality import check_stream, random_settings
from tests.worlds import WorldError

FEW, MANY = 200, 4000
SHARES = {  # of all worlds, a third of which is of each kind
    "wrong guess changed the text": 0.17,
    "wrong guess changed a later query": 0.16,
    "error on a dropped branch": 0.05,
    "error in a dropped look-ahead": 0.008,
    "error on a true branch": 0.04,
    "query cancelled": 0.02,
    "sure sentence": 0.10,
    "unsure sentence": 0.15,
    "passages unchanged": 0.10,
    "rewritten": 0.25,
    "hop": 0.10,
    "empty query": 0.02,
    "unclosed tag": 0.01,
    "stop string in a tag": 0.001,
    "answer tag": 0.01,
}


def _compare(count: int) -> Counter[str]:
    """Hold this many random worlds against the plain loop; return what happened in them."""
    tally: Counter[str] = Counter()

    @settings(
        max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(world=model_worlds, order=st.integers(0, 2**63))
    def speculative_equals_plain(world: ModelWorld, order: int) -> None:
        dice = random.Random(order)
        setting = random_settings(world, dice)
        expected = plainly(world)
        actual, seen = drive(world, setting, order, haste=dice.choice((0.0, 0.0, 0.1, 0.5)))

        assert expected == actual
        check_stream(seen, expected.text)
        if seen.answer is not None:
            assert seen.answer.retrieved == tuple(seen.committed)
        tally["worlds"] += 1
        tally["wrong guess changed the text"] += seen.changed_text
        tally["wrong guess changed a later query"] += seen.changed_query
        tally["error on a dropped branch"] += any(e != expected.error for e in seen.errors)
        tally["error in a dropped look-ahead"] += any(
            error != expected.error for error in seen.query_errors
        )
        tally["error on a true branch"] += expected.error is not None
        tally["query cancelled"] += seen.cancelled_queries > 0
        for feature in features(world):
            tally[feature] += 1

    speculative_equals_plain()
    assert tally["worlds"] >= count
    return tally


def test_speculation_never_changes_the_answer() -> None:
    """Whatever runs ahead, and in whatever order it finishes; and most things do happen."""
    tally = _compare(FEW)

    assert {"wrong guess changed a later query", "rewritten", "hop"} <= tally.keys()


@pytest.mark.slow
def test_speculation_never_changes_the_answer_in_many_worlds(
    record_property: Callable[[str, object], None],
) -> None:
    """The same, with asserted shares of worlds in which each thing happened."""
    tally = _compare(MANY)
    record_property("worlds", dict(tally))
    shares = {name: tally[name] / tally["worlds"] for name in SHARES}

    assert {name: share for name, share in shares.items() if share < SHARES[name]} == {}


def _in_threads(world: ModelWorld, setting: Settings) -> Answer:
    with Engine(world.workload, world.retriever, setting) as engine:
        return engine.run(world.request)


def _in_tasks(world: ModelWorld, setting: Settings) -> Answer:
    async def main() -> Answer:
        async with AsyncEngine(world.workload, world.retriever, setting) as engine:
            return await engine.run(world.request)

    return asyncio.run(main())


def _in_virtual_time(world: ModelWorld, setting: Settings) -> Answer:
    latencies = Latencies(ask_s=1.0, extend_s=1.0, search_s=lambda _: 3.0)
    return Simulation(world.workload, world.retriever, latencies, setting).run(world.request)


def _streamed(world: ModelWorld, setting: Settings) -> str:
    with Engine(world.workload, world.retriever, setting) as engine:
        return "".join(engine.stream(world.request))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("run", [_in_threads, _in_tasks, _in_virtual_time, _streamed])
def test_engines_answer_as_the_plain_loop(run: Callable[..., Any], kind: str) -> None:
    """Text, sources of each step and exceptions in threads, tasks, virtual time, and streams."""
    compared = {True: 0, False: 0}  # by whether the plain loop fails
    for seed in itertools.count():
        world = random_model_world(seed)
        if world.kind != kind:
            continue
        expected = plainly(world).without_events()
        fails = expected.error is not None
        if compared[fails] < (2 if fails else 20):
            compared[fails] += fails or bool(expected.text)
            _check(run, world, random_settings(world, random.Random(seed)), expected)
        elif compared[not fails] >= (20 if fails else 2):
            break
    assert compared == {True: 2, False: 20}


def _check(
    run: Callable[..., Any], world: ModelWorld, setting: Settings, expected: Outcome
) -> None:
    if expected.error is not None:
        with pytest.raises(WorldError) as raised:
            run(world, setting)
        assert expected.error == repr(raised.value)
        return
    answer = run(world, setting)
    if isinstance(answer, str):
        assert expected.text == answer
    else:
        assert expected == Outcome.of(answer)


def test_every_kind_asks_and_writes() -> None:
    """What is compared is not empty."""
    written: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for seed in range(200):
        world = random_model_world(seed)
        with contextlib.suppress(WorldError):
            outcome = plainly(world)
            written[world.kind] += bool(outcome.text)
            asked[world.kind] += len(outcome.retrieved)

    assert all(written[kind] >= 30 and asked[kind] >= 50 for kind in KINDS)
