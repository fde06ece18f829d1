"""Drafts of a small model: a tree of its probabilities, whatever was drafted before."""

from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from ralmspec_plugins.decoding import (
    Decoding,
    DraftContext,
    DraftTarget,
    ModelDrafter,
    RagDrafter,
)
from ralmspec_plugins.errors import ConfigError, ModelError
from ralmspec_plugins.lm.huggingface import HuggingFaceLM, vocabulary_size
from ralmspec_plugins.lm.sampling import Greedy, Sampling
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.testing.models import tiny_gpt2, tiny_llama, tiny_tokenizer
from ralmspec_plugins.types import Request
from tests.decoding.drafters import FREE, EveryDraft
from tests.lm.reference import FRONTS, Tokenizer
from tests.selection import covering

SAMPLINGS = (
    Greedy(),
    Sampling(temperature=1.3, top_k=30),
    Sampling(temperature=0.8, top_p=0.9, repetition_penalty=1.1),
)


def _context(text: tuple[int, ...], front: tuple[int, ...] = (3, 4, 5, 6)) -> DraftContext:
    return DraftContext("request", (), front, text, 7)


def _eager(drafter: ModelDrafter) -> ModelDrafter:
    """Have every pass count as worth its cost."""
    drafter.least_gain = lambda _: 0.0  # type: ignore[method-assign]
    return drafter


def _trees(model: Any) -> dict[tuple[int, ...], float]:
    """Give each path that a model's best-first tree may have, by brute force over 2 tokens."""
    text = torch.tensor([[3, 4, 5, 6, 9]])
    first = model(text).logits[0, -1].softmax(-1).topk(3)
    values: dict[tuple[int, ...], float] = {}
    for token, chance in zip(first.indices.tolist(), first.values.tolist(), strict=True):
        values[token,] = chance
        longer = torch.cat([text, torch.tensor([[token]])], dim=1)
        second = model(longer).logits[0, -1].softmax(-1).topk(3)
        for behind, next_chance in zip(
            second.indices.tolist(), second.values.tolist(), strict=True
        ):
            values[token, behind] = chance * next_chance
    return values


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_the_most_probable_paths_are_drafted(make: Any) -> None:
    """The tree is that of all paths of two tokens, from single passes over each."""
    model = make().train(False)
    drafter = _eager(ModelDrafter(model, depth=2, breadth=3))
    tree = drafter.propose(_context((9,)), 12)
    paths = {
        tuple(tree.tokens[place] for place in tree.path(node)): tree.values[node]
        for node in range(len(tree))
    }
    with torch.inference_mode():
        expected = _trees(model)

    assert 12 == len(paths)
    assert paths.keys() == expected.keys()
    assert paths == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("breadth", [1, 3])
def test_what_was_drafted_before_leaves_no_trace(breadth: int) -> None:
    """Texts that grow, fall back and branch, behind two prompts: as a new drafter drafts."""
    model = tiny_llama().train(False)
    drafter = _eager(ModelDrafter(model, depth=3, breadth=breadth))
    rng, texts = Random(2), [(9,)]
    for _ in range(40):
        grown = rng.choice(texts[-4:])
        text = (*grown[: rng.randint(1, len(grown))], *(rng.randrange(300) for _ in range(2)))
        texts.append(text)
        context = _context(text, rng.choice([(3, 4), (5, 6, 7)]))
        tree = drafter.propose(context, 7)
        anew = _eager(ModelDrafter(model, depth=3, breadth=breadth)).propose(context, 7)

        assert tree.tokens
        assert (anew.tokens, anew.parents) == (tree.tokens, tree.parents)
        assert drafter.likeliest(context, 5)[0] == tree.tokens[0]
        assert (breadth == 1) == tree.is_chain


@pytest.mark.parametrize(("breadth", "sampling"), covering([1, 4], SAMPLINGS))
def test_a_model_that_drafts_for_itself_is_right(
    tokenizer: Tokenizer, sampling: Greedy | Sampling, breadth: int
) -> None:
    """It sees what the target sees, and draws with the same numbers: nearly all is accepted."""
    model = tiny_llama()
    drafter = _eager(ModelDrafter(model, tokenizer, breadth=breadth, depth=4))
    plain = HuggingFaceLM(model, tokenizer, sampling=sampling)
    decoding = Decoding(drafter=drafter, costs=FREE, most_retakes=1.0)
    fast = HuggingFaceLM(model, tokenizer, sampling=sampling, decoding=decoding)
    decoder: Any = fast.decoder
    decoder.budget = EveryDraft(FREE)
    written = []
    for seed in range(3):
        request = Request(prompt="The keeper counted the ships", max_tokens=40, seed=seed)
        for lm in (plain, fast):
            draft = lm.write(lm.begin(request), FRONTS[0], 25, Progress())
            written.append(lm.write(draft, FRONTS[1], 15, Progress()).tokens)

    assert written[::2] == written[1::2]
    assert all(len(tokens) > 20 for tokens in written)
    assert decoder.counts.accepted > 0.6 * sum(len(tokens) for tokens in written[::2])


def test_expansion_stops_where_it_would_not_pay() -> None:
    """A pass that costs as much as a target's is not worth half a token."""
    drafter = ModelDrafter(tiny_llama(), breadth=2)
    drafter._own_pass_s = 5.0
    tree = drafter.propose(replace(_context((9,)), pass_s=1.0), 12)

    assert {1} == set(tree.depths())


def test_a_prompt_of_its_own() -> None:
    """The drafter reads what it is given in front, and counts positions from there."""
    model = tiny_llama().train(False)
    own = _eager(ModelDrafter(model, depth=2, prompt=lambda context: context.front[-2:]))
    other = _eager(ModelDrafter(model, depth=2))

    assert own.propose(_context((9,)), 4) == other.propose(_context((9,), (5, 6)), 4)


def test_a_text_that_is_too_long_is_not_drafted_for() -> None:
    """Beyond its positions a model has nothing to say."""
    model = tiny_gpt2()
    drafter = ModelDrafter(model)
    length = model.config.max_position_embeddings

    assert not drafter.propose(_context((9,) * length), 4).tokens
    assert [] == drafter.likeliest(_context((9,) * length), 4)
    assert drafter.propose(_context((9,)), 4).tokens


def test_another_vocabulary_is_refused(tokenizer: Tokenizer) -> None:
    """Another number of tokens, or another tokenizer: said when the model is loaded."""
    model = tiny_llama()
    size = vocabulary_size(model)
    with pytest.raises(ConfigError, match=f"{size} tokens, the target {size + 1}"):
        ModelDrafter(model).bind(DraftTarget(lambda _: (), size + 1, tokenizer))
    other = ModelDrafter(model, tiny_tokenizer(bos=False))
    with pytest.raises(ConfigError, match="tokenizers differ"):
        HuggingFaceLM(model, tokenizer, decoding=Decoding(drafter=other, costs=FREE))


@pytest.mark.parametrize("kind", [ModelDrafter, RagDrafter])
def test_a_model_that_forgets_is_refused(kind: type[ModelDrafter | RagDrafter]) -> None:
    """Its cache cannot be cut back behind a draft."""
    config = MistralConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        sliding_window=4,
    )
    with pytest.raises(ModelError, match="full attention"):
        kind(MistralForCausalLM(config))


@pytest.mark.parametrize("name", ["depth", "breadth", "requests"])
def test_settings_out_of_range_are_refused(name: str) -> None:
    """Each message names the setting."""
    with pytest.raises(ConfigError, match=name):
        ModelDrafter(tiny_llama(), **{name: 0})  # type: ignore[arg-type]
