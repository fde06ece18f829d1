"""Invariant mode: equal to the bit however tokens are cut into passes, in any precision."""

import logging
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from ralmspec_plugins.decoding import Decoding, SuffixDrafter
from ralmspec_plugins.decoding import fixed_shape as shapes
from ralmspec_plugins.decoding.decoder import SpeculativeDecoder
from ralmspec_plugins.decoding.fixed_shape import FixedShapeRunner, probe
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.lm.decoder import PlainDecoder
from ralmspec_plugins.lm.huggingface import HuggingFaceLM, vocabulary_size
from ralmspec_plugins.lm.sampling import Greedy, Sampling
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.testing.models import tiny_gpt2, tiny_llama
from ralmspec_plugins.types import Request
from tests.decoding.drafters import FREE, RULES, EveryDraft, ScriptedDrafter, oracle
from tests.decoding.test_models import SAMPLED, _mistral, _qwen, _recurrent, _sliding
from tests.lm.reference import FRONTS, Tokenizer

Make = Callable[[], PreTrainedModel]
MODELS: tuple[Make, ...] = (tiny_llama, tiny_gpt2, _qwen, _mistral)
PRECISIONS = (torch.float32, torch.bfloat16)


@pytest.fixture(autouse=True)
def _short_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of some dozen tokens cross borders of buckets."""
    init: Any = FixedShapeRunner.__init__

    def short(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **{"first_bucket": 32, **kwargs})

    monkeypatch.setattr(FixedShapeRunner, "__init__", short)


def _lms(
    model: PreTrainedModel, tokenizer: Tokenizer, sampling: Greedy | Sampling
) -> tuple[HuggingFaceLM, HuggingFaceLM, ScriptedDrafter]:
    """Make one that writes a token a pass, and one that drafts."""
    drafter = ScriptedDrafter()
    made = [
        HuggingFaceLM(
            model,
            tokenizer,
            sampling=sampling,
            decoding=Decoding(drafter=one, exactness="invariant", costs=FREE, calibration_s=0.01),
        )
        for one in ((), drafter)
    ]
    for lm in made:
        assert isinstance(lm.decoder, SpeculativeDecoder)
        assert isinstance(lm.decoder.runner, FixedShapeRunner)
        lm.decoder.budget = EveryDraft(FREE)
    return made[0], made[1], drafter


def _check(
    model: PreTrainedModel, tokenizer: Tokenizer, sampling: Greedy | Sampling, cases: int
) -> tuple[int, int]:
    """Write segments behind passages that change, with both; count tokens and accepted drafts."""
    plain, fast, drafter = _lms(model, tokenizer, sampling)
    tokens = 0
    for seed in range(cases):
        rng = Random(seed)
        drafter.rule, drafter.rng = rng.choice((oracle, *RULES)), rng
        drafter.forget()
        request = Request(prompt="The keeper counted", max_tokens=60, seed=seed)
        before, same = plain.begin(request), fast.begin(request)
        for _ in range(4):
            front, count = FRONTS[rng.choice([0, 0, 1, 2])], rng.choice([2, 7, 16])
            if before.finished:
                break
            after = plain.write(before, front, count, Progress())
            drafter.know(plain, after)
            actual = fast.write(same, front, count, Progress())

            assert after == actual
            tokens += len(after.tokens) - len(before.tokens)
            before, same = after, actual
            if rng.random() < 0.3 and before.tokens:  # a segment that is rolled back
                fast.write(same, FRONTS[0], 5, Progress())
        plain.release(before)
        fast.release(same)
    decoder: Any = fast.decoder
    assert 0 == decoder.counts.retaken
    return tokens, decoder.counts.accepted


@pytest.mark.parametrize("sampling", [Greedy(), SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize(("make", "precision"), [*zip(MODELS, PRECISIONS * 2, strict=True)])
def test_drafts_never_change_a_text(
    tokenizer: Tokenizer, make: Make, precision: torch.dtype, sampling: Greedy | Sampling
) -> None:
    """Over borders of buckets, with rollbacks; nothing is taken again."""
    tokens, accepted = _check(make().to(precision), tokenizer, sampling, 4)

    assert tokens > 50
    assert accepted > tokens // 8


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_20000_tokens(
    tokenizer: Tokenizer, precision: torch.dtype, attention: str, threads: int
) -> None:
    """Four architectures, greedy and sampled, with one and two threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        total = 0
        for make in MODELS:
            model = make().to(precision)
            model.set_attn_implementation(attention)
            for sampling in (Greedy(), SAMPLED):
                total += _check(model, tokenizer, sampling, 10)[0]
    finally:
        torch.set_num_threads(before)
    assert total > 2500  # of each of the eight ways


@pytest.mark.parametrize("make", MODELS)
def test_the_probe_passes_for_full_attention(make: Make) -> None:
    """In 16 bit; with a growing cache the same rows differ."""
    model = make().to(torch.bfloat16)

    assert 0 == probe(FixedShapeRunner(model, 0, rows=6), vocabulary_size(model), rounds=1)


def test_the_probe_notices_rows_that_are_not_independent(monkeypatch: pytest.MonkeyPatch) -> None:
    """One last bit of one logit, in the rows behind the first."""
    model = tiny_llama().to(torch.bfloat16)
    runner = FixedShapeRunner(model, 0, rows=6)
    whole = FixedShapeRunner._fixed_pass

    def dependent(self: Any, cache: Any, tokens: Any, rows: int) -> torch.Tensor:
        logits = whole(self, cache, tokens, rows)
        with torch.inference_mode():
            logits[1:, 0] = torch.nextafter(logits[1:, 0], torch.tensor(torch.inf))
        return logits

    monkeypatch.setattr(FixedShapeRunner, "_fixed_pass", dependent)

    assert probe(runner, vocabulary_size(model)) > 0


def test_what_cannot_be_invariant_decodes_plainly(
    tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sliding windows, recurrent states, and a machine whose rows depend on each other."""
    asked = Decoding(exactness="invariant")
    for make in (_sliding, _recurrent):
        with caplog.at_level(logging.WARNING):
            lm = HuggingFaceLM(make(), tokenizer, decoding=asked)
        assert isinstance(lm.decoder, PlainDecoder)
        assert "full attention" in caplog.text
        caplog.clear()
    monkeypatch.setattr("ralmspec_plugins.decoding.decoder.probe", lambda *_: 3)
    with caplog.at_level(logging.WARNING):
        lm = HuggingFaceLM(tiny_llama(), tokenizer, decoding=asked)
    assert isinstance(lm.decoder, PlainDecoder)
    assert "3 rows" in caplog.text


@pytest.mark.parametrize(("cost", "invariant"), [(1.2, True), (1.9, False)])
def test_16_bit_is_invariant_where_that_is_cheap(
    tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    cost: float,
    invariant: bool,
) -> None:
    """Without being asked for; in float32 choices are certified."""
    monkeypatch.setattr(
        "ralmspec_plugins.decoding.decoder.measure_fixed_cost", lambda *_: (cost, 0.01)
    )
    with caplog.at_level(logging.WARNING):
        lm = HuggingFaceLM(
            tiny_llama().to(torch.bfloat16), tokenizer, decoding=Decoding(drafter=SuffixDrafter())
        )
    certified: Any = HuggingFaceLM(tiny_llama(), tokenizer, decoding=Decoding(costs=FREE))

    assert invariant == isinstance(lm.decoder.runner, FixedShapeRunner)
    assert invariant == ("costs 1.90" not in caplog.text)
    assert not certified.decoder.known.exact


def test_other_sampling_takes_the_same_passes(tokenizer: Tokenizer) -> None:
    """A variant shares the runner and its caches, and stays exact."""
    plain, fast, _ = _lms(tiny_llama().to(torch.bfloat16), tokenizer, Greedy())
    request = Request(prompt="The keeper counted", max_tokens=20, seed=3)
    texts = []
    for lm in (plain, fast):
        other: Any = lm.variant(sampling=SAMPLED)
        assert other.decoder.known.exact
        assert other.decoder.runner is lm.decoder.runner
        texts.append(other.write(other.begin(request), FRONTS[0], 20, Progress()).tokens)

    assert texts[0]
    assert texts[0] == texts[1]


def test_a_context_may_be_filled_to_its_last_position(tokenizer: Tokenizer) -> None:
    """Rows without a token stand behind it, and no position is made up for them."""
    model = tiny_gpt2().to(torch.bfloat16)
    context = model.config.max_position_embeddings
    plain, fast, drafter = _lms(model, tokenizer, Greedy())
    drafter.rule = oracle
    request = Request(prompt="The keeper counted " * 3, max_tokens=context)
    drafts = [lm.begin(request) for lm in (plain, fast)]
    lineage = plain._lineage(drafts[0].placed(()))
    room = context - len(lineage.prefix.tokens) - len(lineage.prompt)
    drafts[0] = plain.write(drafts[0], (), room, Progress())
    drafter.know(plain, drafts[0])
    drafts[1] = fast.write(drafts[1], (), room, Progress())

    assert room == len(drafts[0].tokens)
    assert drafts[0] == drafts[1]


@pytest.mark.parametrize("rows", [1, 65])
def test_rows_out_of_range_are_refused(rows: int) -> None:
    """The message names the setting."""
    with pytest.raises(ConfigError, match="pass_rows"):
        Decoding(pass_rows=rows)


def test_buckets() -> None:
    """A position's bucket depends on nothing else."""
    runner = FixedShapeRunner(tiny_llama(), 0, rows=4, first_bucket=shapes.FIRST_BUCKET)

    assert [256, 256, 512, 1024] == [runner.bucket(at) for at in (0, 255, 256, 512)]
    assert [[0, 1], [2, 3, 4]] == [list(one) for one in runner._parts(254, range(5), 4)]
