"""A model's drafts and retrieved ones in one tree."""

import dataclasses
import logging
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from ralmspec_plugins.decoding import (
    Accepted,
    CorpusDrafter,
    Decoding,
    DraftContext,
    FusedDrafter,
    ModelDrafter,
    RecyclingDrafter,
    SuffixDrafter,
    TokenCorpus,
    TokenTree,
)
from ralmspec_plugins.decoding.token_tree import Evidence
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.lm.huggingface import HuggingFaceLM
from ralmspec_plugins.lm.sampling import Greedy, Sampling
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.testing.models import tiny_gpt2, tiny_llama
from ralmspec_plugins.types import Request
from tests.decoding.drafters import FREE
from tests.lm.reference import FRONTS, Tokenizer

CONTEXT = DraftContext("request", (), (1,), (2,))


class _Fixed:
    """Drafts one tree; says which tokens are likely."""

    def __init__(self, tree: TokenTree, likely: Sequence[int] = (), source: str = "") -> None:
        self.tree, self.likely, self.source = tree, list(likely), source
        self.threads: list[str] = []

    def propose(self, context: DraftContext, budget: int) -> TokenTree:
        self.threads.append(threading.current_thread().name)
        return self.tree

    def likeliest(self, context: DraftContext, count: int) -> list[int]:
        return self.likely[:count]

    def update(self, accepted: Accepted) -> None:
        pass


class _Raising(_Fixed):
    def propose(self, context: DraftContext, budget: int) -> TokenTree:
        raise RuntimeError("planted")


MODEL = TokenTree((5, 6), (-1, 0), (0.9, 0.6))
FOUND = TokenTree(
    (7, 8, 5, 9),
    (-1, 0, -1, 2),
    (0.5, 0.4, 0.3, 0.2),
    tuple(Evidence("corpus", match) for match in (3, 4, 3, 4)),
)


def test_both_are_one_tree() -> None:
    """A path of both has the larger value; the most valued fill the budget."""
    tree = FusedDrafter(_Fixed(MODEL), _Fixed(FOUND)).propose(CONTEXT, 5)

    assert (5, 6, 7, 8, 9) == tree.tokens
    assert (-1, 0, -1, 2, 0) == tree.parents
    assert (0.9, 0.6, 0.5, 0.4, 0.2) == tree.values
    assert 3 == len(FusedDrafter(_Fixed(MODEL), _Fixed(FOUND)).propose(CONTEXT, 3))


@pytest.mark.parametrize(
    ("likely", "trusted", "expected"),
    [([5, 3], None, {5, 6, 9}), ([5, 7], None, {5, 6, 7, 8, 9}), ([5], 3, {5, 6, 7, 8, 9})],
)
def test_what_a_model_finds_unlikely_goes(
    likely: list[int], trusted: int | None, expected: set[int]
) -> None:
    """Unless it is among the k_p likeliest tokens, or a long match vouches for it."""
    drafter = FusedDrafter(
        _Fixed(MODEL, likely), _Fixed(FOUND), top_tokens=2, trusted_match=trusted
    )

    assert expected == set(drafter.propose(CONTEXT, 9).tokens)


def test_a_source_that_is_wrong_loses_weight() -> None:
    """Its values fall to the part that comes true; another's stay."""
    tree = TokenTree(
        (7, 5), (-1, -1), (0.9, 0.5), (Evidence("corpus", 3), Evidence("model", 8, 0.5))
    )
    drafter = FusedDrafter(_Fixed(MODEL, source="model"), _Fixed(FOUND, source="corpus"))
    before = drafter.propose(CONTEXT, 9)
    for _ in range(300):
        drafter.update(Accepted(CONTEXT, tree, (1,)))
    after = drafter.propose(CONTEXT, 9)

    assert 7 in before.tokens
    assert after.values[after.tokens.index(7)] < 0.1 * before.values[before.tokens.index(7)]
    assert after.values[after.tokens.index(5)] >= before.values[before.tokens.index(5)]


def test_retrieval_runs_beside_the_model() -> None:
    """In a thread of its own, unless that is switched off."""
    for parallel in (True, False):
        model, store = _Fixed(MODEL), _Fixed(FOUND)
        FusedDrafter(model, store, parallel=parallel).propose(CONTEXT, 4)

        assert parallel == (model.threads != store.threads)


@pytest.mark.parametrize(
    ("cost", "asked"), [(0.05, True), (0.5, False)], ids=["cheap model", "dear model"]
)
def test_a_model_is_left_out_where_little_is_left_to_gain(cost: float, asked: bool) -> None:
    """Worked: retrieval is sure of the next token to 0.8, so a model may gain 0.2 of a pass."""
    model = _Priced(MODEL)
    model.cost = cost
    drafter = FusedDrafter(model, _Fixed(TokenTree((7, 8), (-1, 0), (0.8, 0.7))), parallel=False)
    tree = drafter.propose(CONTEXT, 8)

    assert asked == bool(model.threads)
    assert (len(tree) > 2) == asked
    assert tree.tokens


def test_a_source_that_does_not_pay_is_seldom_asked() -> None:
    """Its drafts are wrong, and cost many passes; where a weight is given, it is asked always.

    Worked: the first draft already costs more than any gain; then one in eight has the source.
    """
    context = dataclasses.replace(CONTEXT, pass_s=1e-12)
    asked = []
    for weight in (None, 1.0):
        store = _Fixed(FOUND, source="corpus")
        drafter = FusedDrafter(_Fixed(MODEL), store, parallel=False, weight=weight)
        for _ in range(80):
            drafter.update(Accepted(context, drafter.propose(context, 9), ()))
        asked.append(len(store.threads))

    assert [10, 80] == asked


class _Priced(_Fixed):
    """A model whose pass has a cost, in passes of the target."""

    cost: float

    def least_gain(self, context: DraftContext) -> float:
        return self.cost


def test_a_part_that_raises_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """The others' drafts stay, and it is reported once."""
    drafter = FusedDrafter(_Fixed(MODEL), _Raising(FOUND))
    with caplog.at_level(logging.WARNING):
        trees = [drafter.propose(CONTEXT, 4) for _ in range(3)]

    assert [(5, 6)] * 3 == [tree.tokens for tree in trees]
    assert 1 == len(caplog.records)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_tokens": 0}, "top_tokens"),
        ({"trusted_match": 0}, "trusted_match"),
        ({"weight": 0.0}, "weight"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    """Each message names the setting."""
    with pytest.raises(ConfigError, match=message):
        FusedDrafter(_Fixed(MODEL), _Fixed(FOUND), **settings)


def test_parts_that_do_not_fit_are_refused() -> None:
    """Nothing that retrieves; a model that cannot say what is likely."""
    with pytest.raises(ConfigError, match="at least one"):
        FusedDrafter(_Fixed(MODEL))
    with pytest.raises(ConfigError, match="SuffixDrafter has none"):
        FusedDrafter(SuffixDrafter(), SuffixDrafter(), top_tokens=3)


@pytest.mark.parametrize("sampling", [Greedy(), Sampling(temperature=0.9, top_k=20)])
def test_every_drafter_writes_the_same_text(
    tokenizer: Tokenizer, sampling: Greedy | Sampling
) -> None:
    """All drafters at once, on a real model, behind passages that change."""
    model = tiny_llama()
    texts = [tokenizer.encode("the ships that passed the island", add_special_tokens=False)]
    fused = FusedDrafter(
        ModelDrafter(tiny_gpt2(), depth=3),
        SuffixDrafter(),
        CorpusDrafter(TokenCorpus.of(texts)),
        RecyclingDrafter(shared=True),
        top_tokens=20,
        trusted_match=5,
    )
    plain = HuggingFaceLM(model, tokenizer, sampling=sampling)
    decoding = Decoding(drafter=fused, costs=FREE, most_retakes=1.0)
    fast = HuggingFaceLM(model, tokenizer, sampling=sampling, decoding=decoding)
    decoder: Any = fast.decoder
    for seed in range(6):
        request = Request(prompt="The keeper counted the ships", max_tokens=50, seed=seed)
        written = []
        for lm in (plain, fast):
            draft = lm.begin(request)
            for front in (0, 1, 0, 2):
                draft = lm.write(draft, FRONTS[front], 11, Progress())
            written.append(draft.tokens)

        assert written[0]
        assert written[0] == written[1]
    assert decoder.counts.accepted
