"""An agent that runs ahead of its tools shows what it shows without: over random agents."""

from collections import Counter
from typing import Any

import pytest

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


def check(drawn: World, plain: Outcome, ahead: Outcome) -> None:
    """Compare all that both have shown; the real tools and the model ran as often."""
    assert len(plain.shown) > 0
    assert len(plain.heard) > 0
    if plain.failed and drawn.brain.parallel > 1 and "deadly" in drawn.tools:
        assert ahead.failed, drawn  # which of the other parallel calls end before that, is a race
        return
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
    assert ahead.model_calls <= plain.model_calls - stats.committed + stats.calls_ahead, drawn
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
        totals["failed"] += plain.failed
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
