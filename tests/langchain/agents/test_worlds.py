"""An agent that runs ahead of its tools shows what it shows without: over random agents."""

import re
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from langgraph.types import StateSnapshot

from tests.langchain.agents.worlds import Outcome, World, both, world


def difference(one: Any, other: Any, path: str = "") -> str | None:
    """Return the first place at which two traces differ."""
    if one == other:
        return None
    if isinstance(one, list) and isinstance(other, list):
        for position, (left, right) in enumerate(zip(one, other, strict=False)):
            if found := difference(left, right, f"{path}[{position}]"):
                return found
        return None if len(one) == len(other) else f"{path} has {len(one)} and {len(other)} items"
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        for key in one:
            if found := difference(one[key], other[key], f"{path}.{key}"):
                return found
        return None
    return f"{path}: {one!r:.300} is not {other!r:.300}"


def without_race(outcome: Outcome) -> Outcome:
    """Return an outcome without what differs between runs of the plain agent, too.

    When one of several parallel calls raises, the host cancels those that still run: which these
    are, and whose error is raised, is a race.
    """
    return replace(
        outcome,
        errors=[re.sub("no .* ever", "no ANY ever", one) for one in outcome.errors],
        shown=[],
        history=[without_tasks(one) for one in outcome.history],
        heard=[one for one in outcome.heard if not one[0].startswith("tool")],
    )


def without_tasks(snapshot: list[Any]) -> list[Any]:
    """Return a checkpoint without the results and errors of the step that follows it."""
    place = 1 + StateSnapshot._fields.index("tasks")  # behind the name of the class
    return [*snapshot[:place], *snapshot[place + 1 :]]


def check(drawn: World, plain: Outcome, ahead: Outcome) -> None:
    """Compare all that both have shown; the real tools and the model ran as often."""
    assert len(plain.history) > 0
    assert len(plain.heard) > 0
    asynchronous = any("does not support sync" in error for error in plain.errors)
    raises = asynchronous or (bool(plain.errors) and "deadly" in drawn.tools)
    if raises and drawn.brain.parallel > 1:
        plain, ahead = without_race(plain), without_race(ahead)
    assert difference(plain.errors, ahead.errors) is None, drawn
    assert difference(plain.history, ahead.history) is None, drawn
    assert difference(plain.shown, ahead.shown) is None, drawn
    assert difference(plain.heard, ahead.heard) is None, drawn
    stats = ahead.stats
    if drawn.brain.parallel == 1 and drawn.depth == 1:
        assert plain.tools == ahead.tools, drawn
    elif drawn.depth == 1:  # the host begins parallel calls in any order: it looks at its tracer
        assert Counter(plain.tools) == Counter(ahead.tools), drawn
    else:
        unused = stats.tools_ahead - stats.tools_committed
        assert not Counter(plain.tools) - Counter(ahead.tools), drawn
        assert len(ahead.tools) <= len(plain.tools) + unused, drawn
    most = plain.model_calls - stats.committed + stats.calls_ahead
    if drawn.brain.failing:
        most += stats.failed  # the host makes these again
    assert ahead.model_calls <= most, drawn
    if drawn.wasted_share is not None:
        calls = stats.model_calls - stats.committed + stats.calls_ahead
        assert stats.dropped <= drawn.wasted_share * calls, drawn
    if drawn.limit is not None:
        runs = 12  # turns, and resumptions of them
        assert stats.dropped <= drawn.limit * runs, drawn


async def compare(seeds: range) -> Counter[str]:
    """Compare over many worlds; return what happened in them."""
    totals: Counter[str] = Counter()
    for seed in seeds:
        drawn = world(seed)
        plain, ahead = await both(drawn)
        check(drawn, plain, ahead)
        totals["worlds"] += 1
        totals["calls"] += len(plain.tools)
        totals["interrupted"] += plain.interrupted
        totals["failed"] += bool(plain.errors)
        totals["deep"] += ahead.stats.tools_committed
        totals["right"] += ahead.stats.right
        totals["wrong"] += ahead.stats.guesses - ahead.stats.right
        totals["committed"] += ahead.stats.committed
        totals["dropped"] += ahead.stats.dropped
        totals["busy"] += ahead.stats.busy
    return totals


@pytest.mark.parametrize("part", range(2))
async def test_an_agent_ahead_of_its_tools_shows_the_same(part: int) -> None:
    """State, streams in every mode, events, checkpoints, usage: equal but for ids and times."""
    totals = await compare(range(24 * part, 24 * part + 24))

    assert 24 == totals["worlds"]
    assert totals["calls"] > 30
    assert totals["committed"] >= 2
    assert totals["dropped"] >= 2
    assert totals["wrong"] >= 2
    assert totals["busy"] >= 1


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
async def test_many_agents_ahead_of_their_tools_show_the_same(part: int) -> None:
    """The same over 2,000 agents."""
    totals = await compare(range(1000 + 200 * part, 1000 + 200 * part + 200))

    assert 200 == totals["worlds"]
    assert totals["committed"] >= 50
    assert totals["dropped"] >= 50
    assert min(totals["interrupted"], totals["failed"], totals["deep"]) >= 5
