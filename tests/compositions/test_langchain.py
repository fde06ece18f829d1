"""LangChain's own compositions, drawn at random: the host's outcomes are ours."""

import os
from collections import Counter
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.globals import set_llm_cache
from langchain_core.runnables import RunnableLambda

from tests.compositions.draws import difference as said_of
from tests.compositions.langchain_parts import Composition, Heard, composition, outcomes

pytestmark = pytest.mark.filterwarnings("ignore")  # the hosts' own, of deprecated parts
QUICK, PART = 250, 250
FIRST = int(os.environ.get("RALMSPEC_COMPOSITION", "0"))  # begin with this seed


def difference(drawn: Composition) -> str | None:
    """Run both sides; say what differs, and how to run it again."""
    seen, heard = [], []
    for runnable in (drawn.host, drawn.ours):
        set_llm_cache(InMemoryCache() if drawn.cached else None)
        handler = Heard(inline=drawn.seed % 4 > 0)
        try:
            seen.append(outcomes(runnable, drawn, handler))
        finally:
            set_llm_cache(None)
        heard.append(handler.told if drawn.heard else [])
    close: Any = getattr(drawn.ours, "close", None)
    if close is not None:
        close()
    if seen[0] == seen[1] and heard[0] == heard[1]:
        return None
    about = (f"{drawn.way} of", *drawn.about)
    if seen[0] != seen[1]:
        return said_of(drawn.seed, about, "outcomes", *seen)
    return said_of(drawn.seed, about, "events", *heard)


def check(seeds: range) -> Counter[str]:
    """Run compositions; count what they contained."""
    counts: Counter[str] = Counter()
    for seed in seeds:
        drawn = composition(seed)
        said = difference(drawn)
        assert said is None, said
        counts["compositions"] += 1
        counts.update({drawn.way, *drawn.about})
        counts["events compared"] += drawn.heard
    return counts


def test_random_compositions_give_what_the_host_gives() -> None:
    """250 of them: texts, sources, exceptions, and events where both tell the same."""
    counts = check(range(FIRST, FIRST + QUICK))
    kinds = ("loop", "sources", "history-aware", "retrieval chain", "assigned", "astream", "queue")
    kinds += ("alone", "retriever layer", "retriever listeners")
    assert all(counts[kind] >= 5 for kind in (*kinds, "events compared")), counts


@pytest.mark.slow
@pytest.mark.parametrize("part", range(40))
def test_many_more_do(part: int) -> None:
    """10,000 more."""
    check(range(FIRST + QUICK + PART * part, FIRST + QUICK + PART * (part + 1)))


def test_a_failure_names_its_seed() -> None:
    """And that seed draws the same composition."""
    one, other = composition(7), composition(7)
    assert (one.about, one.way, one.values) == (other.about, other.way, other.values)
    wrong = Composition(**{**_fields(one), "ours": RunnableLambda(lambda _: "another")})
    said = difference(wrong)
    assert said is not None
    assert "seed 7" in said


def _fields(drawn: Composition) -> dict[str, Any]:
    return {name: getattr(drawn, name) for name in drawn.__dataclass_fields__}
