"""LlamaIndex' own compositions, drawn at random: the host's outcomes are ours."""

import os
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from tests.compositions.draws import difference as said_of
from tests.compositions.llama_index_parts import Composition, Outcome, composition, outcome

pytestmark = pytest.mark.filterwarnings("ignore")  # the hosts' own, of deprecated parts
SEEN = 21  # a seed with answers, prompts, tokens and events
FIRST = int(os.environ.get("RALMSPEC_COMPOSITION", "0"))  # begin with this seed


def difference(drawn: Composition, counts: Counter[str]) -> str | None:
    """Run both sides; say what differs, and how to run it again."""
    host = outcome(drawn.host, drawn, ours=False)
    ours = outcome(drawn.ours, drawn, ours=True)
    for one in drawn.closes:
        one.close()
    counts.update(ours.counts)
    counts["asked"] += len(host.answers)
    counts["raised"] += len(host.answers) - host.counts["answers"]
    counts["events"] += len(host.told)
    counts["prompts"] += len(host.prompts)
    counts["as often"] += drawn.as_often and bool(host.prompts)
    if host.answers != ours.answers:
        return said_of(drawn.seed, drawn.about, "answers", host.answers, ours.answers)
    unwritten = Counter(host.prompts) - Counter(ours.prompts)
    if unwritten or (drawn.as_often and host.prompts != ours.prompts):
        return said_of(drawn.seed, drawn.about, "prompts", host.prompts, ours.prompts)
    if (drawn.as_often and host.tokens != ours.tokens) or host.tokens > ours.tokens:
        return said_of(drawn.seed, drawn.about, "tokens", [host.tokens], [ours.tokens])
    untold = Counter(host.told) - Counter(ours.told)
    return said_of(drawn.seed, drawn.about, "events", [untold], []) if untold else None


def check(seeds: range) -> Counter[str]:
    """Run compositions; count what they contained."""
    counts: Counter[str] = Counter()
    for seed in seeds:
        drawn = composition(seed)
        said = difference(drawn, counts)
        assert said is None, said
        counts["compositions"] += 1
        counts.update({drawn.way, *drawn.about})
    return counts


KINDS = (
    *("engine", "loop", "around", "chat", "our retriever", "from args", "from index"),
    *("vectors", "black box", "bm25", "fusion", "auto-merging", "recursive", "list"),
    *("compact", "refine", "tree_summarize", "accumulate", "no_text", "streaming", "filled in"),
)


def test_random_compositions_give_what_the_host_gives() -> None:
    """250 of them: answers, exceptions, prompts, counts of tokens, and the host's events."""
    counts = check(range(FIRST, FIRST + 250))
    assert all(counts[kind] >= 4 for kind in KINDS), counts
    _assert_not_empty(counts)


def _assert_not_empty(counts: Counter[str]) -> None:
    """Most answers have a text and sources, and many were written on guesses, right and wrong."""
    assert counts["answers"] > 0.75 * counts["asked"], counts
    assert counts["with text"] > 0.85 * counts["answers"], counts
    assert counts["with sources"] > 0.85 * counts["answers"], counts
    assert counts["raised"] > 0.05 * counts["asked"], counts
    assert counts["guessed"] > 0.05 * counts["answers"], counts
    assert 0.2 < counts["guessed wrong"] / counts["guessed"] < 0.9, counts
    assert counts["prompts"] > counts["asked"], counts
    assert counts["events"] > 10 * counts["compositions"], counts
    assert counts["as often"] > 0.1 * counts["compositions"], counts


@pytest.mark.slow
@pytest.mark.parametrize("part", range(40))
def test_many_more_do(part: int) -> None:
    """10,000 in all."""
    _assert_not_empty(check(range(1000 + 250 * part, 1250 + 250 * part)))


@pytest.mark.parametrize(
    ("what", "planted"),
    [
        ("answers", {"answers": [("Response", "another text")]}),
        ("prompts", {"prompts": []}),
        ("tokens", {"tokens": -1}),
        ("events", {"told": []}),
    ],
)
def test_a_failure_names_its_seed(
    what: str, planted: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And that seed draws the same composition."""
    one, other = composition(SEEN), composition(SEEN)
    assert (one.about, one.way, one.values) == (other.about, other.way, other.values)

    true = outcome

    def planting(engine: Any, drawn: Composition, *, ours: bool) -> Outcome:
        made = true(engine, drawn, ours=ours)
        return replace(made, **planted) if ours else made

    monkeypatch.setattr(f"{__name__}.outcome", planting)
    said = difference(one, Counter())
    assert said is not None
    assert f"seed {SEEN}: other {what}" in said
