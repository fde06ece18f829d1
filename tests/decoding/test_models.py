"""Real architectures with random weights: trees, chains, and where neither can be had."""

import logging
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import PreTrainedModel

from benchmarks.decoding import exactness
from ralmspec_plugins.decoding import CostCurve, Decoding, SuffixDrafter, TokenTree
from ralmspec_plugins.decoding.decoder import SpeculativeDecoder
from ralmspec_plugins.decoding.token_tree import Evidence
from ralmspec_plugins.errors import ModelError
from ralmspec_plugins.lm.decoder import PlainDecoder
from ralmspec_plugins.lm.huggingface import HuggingFaceLM
from ralmspec_plugins.lm.sampling import Greedy, Sampling
from ralmspec_plugins.lm.state import Draft
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.testing.models import tiny_gpt2, tiny_llama
from ralmspec_plugins.types import Request
from tests.decoding.drafters import RULES, oracle, random_tree
from tests.decoding.pairs import Pair, operations
from tests.lm.reference import FRONTS, Tokenizer
from tests.selection import covering

SIZES = {
    "vocab_size": 384, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3,
    "max_position_embeddings": 512, "eos_token_id": None, "bos_token_id": None,
}  # fmt: skip


def _drawn(kind: str, **settings: object) -> PreTrainedModel:
    torch.manual_seed(1)
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **settings})
    model: PreTrainedModel = getattr(transformers, f"{kind}ForCausalLM")(config)
    return model


def _qwen() -> PreTrainedModel:
    return _drawn("Qwen2")


def _mistral() -> PreTrainedModel:
    return _drawn("Mistral", sliding_window=None)


def _sliding() -> PreTrainedModel:
    return _drawn("Mistral", sliding_window=8)


def _recurrent() -> PreTrainedModel:
    return _drawn("Lfm2", layer_types=["conv", "full_attention"])


def _mamba() -> PreTrainedModel:
    return _drawn("Mamba2", state_size=8, num_heads=4, head_dim=16, n_groups=1, chunk_size=16)


def _longrope(**settings: object) -> PreTrainedModel:
    """Beyond 128 positions all rows of a pass have other position embeddings."""
    scaling = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0] * 4,
        "long_factor": [3.0] * 4,
    }
    return _drawn(
        "Phi3",
        original_max_position_embeddings=128,
        rope_parameters=scaling,
        pad_token_id=None,
        **settings,
    )


TREES = (tiny_llama, tiny_gpt2, _qwen, _mistral)
CHAINS = (_sliding, _recurrent, _mamba)
SAMPLED = Sampling(temperature=0.9, top_k=40, top_p=0.95, repetition_penalty=1.1)


def _check(pair: Pair, cases: int) -> None:
    for seed in range(cases):
        pair.drafter.rng = rng = Random(seed)
        pair.drafter.rule = rng.choice((oracle, random_tree, *RULES))
        request = Request(prompt="The keeper counted", max_tokens=30, seed=seed)
        pair.check(request, operations(rng, 4))


@pytest.mark.parametrize(
    ("make", "attention", "sampling"), covering(TREES, ["sdpa", "eager"], [Greedy(), SAMPLED])
)
def test_trees(
    tokenizer: Tokenizer,
    make: Callable[[], PreTrainedModel],
    attention: str,
    sampling: Greedy | Sampling,
) -> None:
    """Full attention takes trees, and writes plain decoding's text."""
    model = make()
    model.set_attn_implementation(attention)
    pair = Pair.of(model, tokenizer, sampling)
    assert pair.fast.decoder.known.trees
    _check(pair, 3)
    assert pair.fast.decoder.counts.accepted > 10


@pytest.mark.parametrize("sampling", [Greedy(), SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("make", CHAINS)
def test_chains(
    tokenizer: Tokenizer, make: Callable[[], PreTrainedModel], sampling: Greedy | Sampling
) -> None:
    """Caches that cannot be cropped take chains; a rejected one is read again from a copy."""
    pair = Pair.of(make(), tokenizer, sampling)
    decoder = pair.fast.decoder
    assert not decoder.known.trees
    _check(pair, 4)
    assert decoder.counts.accepted > 10


@pytest.mark.parametrize("rule", [oracle, random_tree])
def test_no_pass_crosses_a_change_of_scale(
    tokenizer: Tokenizer, rule: Callable[..., TokenTree]
) -> None:
    """Where the length of a pass decides on the embeddings of its rows, drafts end before that."""
    pair = Pair.of(_longrope(), tokenizer, SAMPLED)
    pair.drafter.rule = rule
    for words in range(25, 37):
        request = Request(prompt="the ships " * words, max_tokens=60, seed=words)
        pair.check(request, [(0, 0, 2), (-1, 0, 40), (-1, 0, 18)])

    assert pair.plain._passes.scale_change == 128
    assert pair.fast.decoder.counts.accepted > 100


def test_a_change_of_scale_has_no_fixed_shape(
    tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    """A prompt in several passes would have both scales: one warning, and plain decoding."""
    with caplog.at_level(logging.WARNING):
        lm = HuggingFaceLM(_longrope(), tokenizer, decoding=Decoding(exactness="invariant"))

    assert isinstance(lm.decoder, PlainDecoder)
    assert "longrope" in caplog.text


def test_a_state_outside_of_the_cache_is_refused(tokenizer: Tokenizer) -> None:
    """Two texts that take turns on such a model would mix, drafts or not."""
    model = _drawn("RecurrentGemma", num_hidden_layers=3, lru_width=32, num_key_value_heads=1)

    with pytest.raises(ModelError, match="RecurrentGemmaForCausalLM keeps the state"):
        HuggingFaceLM(model, tokenizer)


@pytest.mark.parametrize("make", [tiny_llama, _sliding])
def test_open_choices_are_taken_again(
    tokenizer: Tokenizer, make: Callable[[], PreTrainedModel]
) -> None:
    """With a bound that leaves many choices open, plain passes decide them, and the text stays."""
    pair = Pair.of(make(), tokenizer, SAMPLED, error_factor=1e5)
    _check(pair, 4)
    assert pair.fast.decoder.counts.retaken > 10


def test_a_kind_of_attention_without_masks_takes_chains(tokenizer: Tokenizer) -> None:
    """Where a mask of ours would be refused or misread, drafts are chains."""
    model = tiny_llama()
    model.config._attn_implementation = "flash_attention_2"
    lm = HuggingFaceLM(model, tokenizer)
    assert not lm._passes.takes_trees


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_says_so_and_decodes_plainly(
    tokenizer: Tokenizer, dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning, when the model is loaded; then the text is plain decoding's."""
    model = tiny_llama(dtype=dtype)
    certified = Decoding(exactness="certified", costs=CostCurve((1,), (1.0,)))
    with caplog.at_level(logging.WARNING):
        fast = HuggingFaceLM(model, tokenizer, decoding=certified)
        plain = HuggingFaceLM(model, tokenizer)
        request = Request(prompt="The keeper", max_tokens=20)
        texts = [lm.write(lm.begin(request), FRONTS[0], 20, Progress()) for lm in (plain, fast)]

    assert isinstance(fast.decoder, PlainDecoder)
    assert texts[0] == texts[1]
    assert len(caplog.records) == 1
    assert "Float32" in caplog.text


def test_a_model_that_cannot_be_measured_decodes_plainly(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A model that fails on a pass over several rows is warned of once, and works."""
    from ralmspec_plugins.lm.kv_cache import ModelRunner

    def failing(*_: object) -> None:
        raise NotImplementedError("one token at a time")

    monkeypatch.setattr(ModelRunner, "read_rows", failing)
    with caplog.at_level(logging.WARNING):
        lm = HuggingFaceLM(tiny_llama(), tokenizer, decoding=Decoding())

    assert isinstance(lm.decoder, PlainDecoder)
    assert "one token at a time" in caplog.text


@pytest.mark.parametrize("exactness", ["certified", "invariant"])
@pytest.mark.parametrize("context", [16, 33, 40])
def test_a_model_of_few_positions_decodes_plainly(
    tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture, context: int, exactness: Any
) -> None:
    """Where there is no room to measure passes, one warning says so, and the text is right."""
    model = tiny_gpt2(context=context)
    settings = Decoding(exactness=exactness, calibration_s=0.01, most_retakes=1.0)
    with caplog.at_level(logging.WARNING):
        fast = HuggingFaceLM(model, tokenizer, decoding=settings)
    if exactness == "invariant":
        settings = replace(settings, drafter=())
        plain = HuggingFaceLM(model, tokenizer, decoding=settings)
    else:
        plain = HuggingFaceLM(model, tokenizer)
    request = Request(prompt="the", max_tokens=context - 3)
    texts = [one.write(one.begin(request), (), context - 3, Progress()) for one in (plain, fast)]

    assert texts[0] == texts[1]
    assert len(texts[0].tokens) == context - 3
    assert (context < 40) == isinstance(fast.decoder, PlainDecoder)
    assert (context < 40) == (f"{context} positions" in caplog.text)


def test_costs_are_measured(tokenizer: Tokenizer) -> None:
    """A curve begins with one row at cost 1, and no pass costs less."""
    lm = HuggingFaceLM(tiny_llama(context=128), tokenizer, decoding=Decoding(calibration_s=0.2))
    decoder = lm.decoder

    assert isinstance(decoder, SpeculativeDecoder)
    assert decoder.budget.costs.rows[:3] == (1, 2, 3)
    assert min(decoder.budget.costs.costs) == 1.0


def test_a_prefilled_cache_is_gone_on_with(tokenizer: Tokenizer) -> None:
    """Where a segment begins with all but one token in the cache, nothing is read twice."""
    pair = Pair.of(tiny_llama(), tokenizer, Greedy())
    pair.drafter.rule = oracle
    pair.check(Request(prompt="The keeper counted", max_tokens=40), [(0, 0, 9), (1, 0, 20)])


def _whole(lm: HuggingFaceLM, request: Request) -> Draft:
    return lm.write(lm.begin(request), FRONTS[2], request.max_tokens, Progress())


@pytest.mark.parametrize("name", [*exactness.SHAPES, "demo"])
@pytest.mark.parametrize("tokens", [60, pytest.param(10_500, marks=pytest.mark.slow)])
def test_long_texts_are_equal(name: str, tokens: int) -> None:
    """10,500 tokens of each of five models, greedy and drawn; hardly a choice is taken again."""
    counted = exactness.compare(exactness.subject(name), tokens, 20 if tokens < 100 else 350)

    assert counted["tokens"] >= tokens
    assert counted["different"] == 0
    assert counted["accepted"] > tokens / 2
    assert tokens < 1000 or counted["retake_rate"] < 0.02


EVIDENCE = (Evidence("odd", 3, float("nan")),)
RUBBISH = {
    "no tree": lambda: [5, 6],
    "nothing": lambda: None,
    "words": lambda: TokenTree(("a", "b"), (-1, 0)),  # type: ignore[arg-type]
    "halves": lambda: TokenTree((1.5,), (-1,)),  # type: ignore[arg-type]
    "siblings": lambda: TokenTree((5, 5), (-1, -1)),
    "circle": lambda: TokenTree((5, 6), (1, 0)),
    "value": lambda: TokenTree((5,), (-1,), (float("nan"),)),
    "evidence": lambda: TokenTree((5,), (-1,), evidence=("odd",)),  # type: ignore[arg-type]
    "share": lambda: TokenTree((5,), (-1,), evidence=EVIDENCE),
}


@pytest.mark.parametrize("rubbish", RUBBISH.values(), ids=RUBBISH)
def test_a_drafter_that_returns_no_tree_of_tokens_is_reported_once(
    tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture, rubbish: Callable[[], TokenTree]
) -> None:
    """As if it had raised: the text is plain decoding's, the drafts of others stay."""

    class Odd(SuffixDrafter):
        def propose(self, context: object, budget: int) -> TokenTree:
            return rubbish()

        def release(self, request: object) -> None:
            raise RuntimeError("planted")

    model = tiny_llama()
    drafters = [Odd(), SuffixDrafter()]
    settings = Decoding(drafter=drafters, costs=CostCurve((1, 64), (1.0, 1.0)))
    lm, plain = (HuggingFaceLM(model, tokenizer, decoding=one) for one in (settings, None))
    request = Request(prompt="the ships the ships the ships", max_tokens=40)
    with caplog.at_level(logging.WARNING):
        drafts = [one.begin(request) for one in (plain, lm)]
        texts = [
            one.write(draft, (), 40, Progress())
            for one, draft in zip((plain, lm), drafts, strict=True)
        ]
        lm.release(drafts[1])

    assert texts[0] == texts[1]
    assert [record.message for record in caplog.records] == ["Odd failed; its drafts are left out"]
    assert lm.decoder.counts.drafts > 0


def test_tokens_of_numpy_are_tokens(tokenizer: Tokenizer) -> None:
    """What numpy counts with is an integer, too; Python's stand in the tree."""
    tree = TokenTree(tuple(np.array([5, 6])), tuple(np.array([-1, 0])))

    assert tree == TokenTree((5, 6), (-1, 0))
    assert {int} == set(map(type, (*tree.tokens, *tree.parents)))


def test_a_pass_has_no_more_drafts_than_set(tokenizer: Tokenizer) -> None:
    """Several drafters, one of them generous: the most promising drafts are taken."""

    class Generous(SuffixDrafter):
        def propose(self, context: object, budget: int) -> TokenTree:
            return TokenTree.of([[token] for token in range(90)])

    drafters = [Generous(), SuffixDrafter()]
    settings = Decoding(drafter=drafters, most_drafts=5, costs=CostCurve((1, 99), (1.0, 1.0)))
    lm = HuggingFaceLM(tiny_llama(), tokenizer, decoding=settings)
    request = Request(prompt="the ships the ships the ships", max_tokens=40)
    lm.write(lm.begin(request), (), 40, Progress())
    counts = lm.decoder.counts

    assert 1 < counts.drafts / counts.passes <= 5


def test_a_drafter_that_raises_is_reported_once(
    tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    """Its drafts are left out; those of others stay."""

    class Broken(SuffixDrafter):
        def propose(self, context: object, budget: int) -> object:
            raise RuntimeError("planted")

    model = tiny_llama()
    settings = Decoding(drafter=[Broken(), SuffixDrafter()], costs=CostCurve((1, 9), (1.0, 1.0)))
    lm = HuggingFaceLM(model, tokenizer, decoding=settings)
    plain = HuggingFaceLM(model, tokenizer)
    request = Request(prompt="the ships the ships the ships", max_tokens=40)
    with caplog.at_level(logging.WARNING):
        texts = [one.write(one.begin(request), (), 40, Progress()) for one in (plain, lm)]

    assert texts[0] == texts[1]
    assert [record.message for record in caplog.records] == [
        "Broken failed; its drafts are left out"
    ]
    assert lm.decoder.counts.drafts > 0
