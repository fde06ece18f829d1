"""A drafter that reads a retrieved part of a long context: what it reads, and when it pays."""

import logging
from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch

from ralmspec_plugins.decoding import (
    Accepted,
    CostCurve,
    Decoding,
    DraftContext,
    DraftTarget,
    Effort,
    KnowledgeTransfer,
    RagDrafter,
)
from ralmspec_plugins.decoding.budget import Budget
from ralmspec_plugins.decoding.prompt_reading import PromptReading
from ralmspec_plugins.errors import ConfigError, ContextOverflowError, InputError, ModelError
from ralmspec_plugins.lm.huggingface import HuggingFaceLM
from ralmspec_plugins.lm.kv_cache import ModelRunner
from ralmspec_plugins.lm.sampling import Greedy, Sampling
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.testing.models import tiny_llama, tiny_tokenizer
from ralmspec_plugins.types import Request
from tests.decoding.drafters import FREE, EveryDraft
from tests.decoding.pairs import integers
from tests.decoding.rapid_pairs import inner_of, log, question, small
from tests.lm.reference import Tokenizer


def _bound(tokenizer: Tokenizer, drafter: RagDrafter, model: Any = None) -> RagDrafter:
    model = model or drafter.reader.model
    drafter.bind(DraftTarget(lambda _: (), 384, tokenizer, model))
    return drafter


def _context(tokenizer: Tokenizer, text: tuple[int, ...], seed: int = 1) -> DraftContext:
    rng = Random(seed)
    long = tuple(tokenizer.encode(log(rng).text))
    asked = tuple(tokenizer.encode(question(rng)))
    return DraftContext(f"request {seed}", (long,), (0, *long, *asked), text, 7)


@pytest.mark.parametrize("singly", [True, False])
def test_what_was_read_before_leaves_no_trace(tokenizer: Tokenizer, singly: bool) -> None:
    """Texts that grow, shrink and branch; one by one, to the last bit as read anew."""
    model = integers(tokenizer) if singly else tiny_llama().train(False)
    runner: Any = ModelRunner(model, 0)
    rng, reading = Random(3), PromptReading(runner, (3, 4, 5))
    text: tuple[int, ...] = ()
    for number in range(60):
        text = (
            *text[: rng.randint(0, len(text))],
            *(rng.randrange(300) for _ in range(rng.randint(0, 5))),
        )
        mixed = singly and number % 3 == 0  # what is not read singly is not relied upon later
        logits = reading.after(text, singly=singly and not mixed)
        anew = runner.start((3, 4, 5))
        for token in text:
            runner.feed(anew, token)
        if singly and not mixed:
            assert torch.equal(anew.logits, logits)
        else:
            assert mixed or torch.allclose(anew.logits, logits, atol=1e-4)


def test_it_drafts_what_its_model_would_write(tokenizer: Tokenizer) -> None:
    """A chain of the likeliest tokens behind head, chunks and question."""
    model = tiny_llama(context=1024).train(False)
    drafter = _bound(tokenizer, small(model, depth=3))
    drafter._step = lambda *_: 0.0  # type: ignore[method-assign] every step pays
    context = _context(tokenizer, (9,))
    tree = drafter.propose(context, 8)
    chunks = drafter.chunks_in_use(context)
    blank = tuple(tokenizer.encode("\n\n"))
    question_tokens = context.front[1 + len(context.passages[0]) :]
    prompt = [0, *(t for chunk in chunks for t in chunk.tokens + blank), *question_tokens, 9]
    expected = []
    for _ in range(3):
        expected.append(int(model(torch.tensor([prompt + expected])).logits[0, -1].argmax()))

    assert tuple(expected) == tree.tokens
    assert tree.is_chain
    assert 3 == len(chunks)
    for chunk in chunks:
        assert chunk.tokens == context.passages[0][chunk.start : chunk.start + 16]


def test_a_template_of_its_own(tokenizer: Tokenizer) -> None:
    """It gets the chunks' texts and the question's."""
    seen: list[Any] = []

    def template(chunks: Any, asked: str) -> str:
        seen.append((chunks, asked))
        return "Retrieved: " + " ... ".join(chunks) + asked

    drafter = _bound(tokenizer, small(tiny_llama(context=1024), template=template))
    context = _context(tokenizer, (9,))
    drafter.begin(context)
    [(chunks, asked)] = seen
    prompt = drafter._requests[context.request].prompt

    assert 3 == len(chunks)
    assert asked == question(Random(1)) or asked.startswith("How many ships passed")
    assert prompt[0] == tokenizer.bos_token_id
    assert tokenizer.decode(prompt[1:]) == template(chunks, asked)


def test_requests_share_the_index_of_a_context(tokenizer: Tokenizer) -> None:
    """Chunks are encoded once; another context has its own."""
    counted: list[str] = []

    def encoder(text: str) -> Any:
        counted.append(text)
        return [1.0, len(text) % 7]

    drafter = _bound(tokenizer, small(tiny_llama(context=1024), encoder=encoder))
    first = _context(tokenizer, (9,))
    drafter.begin(first)
    once = len(counted)
    drafter.begin(replace(first, request="another"))
    again = len(counted)
    drafter.begin(_context(tokenizer, (9,), seed=2))

    assert once > 10
    assert once + 1 == again  # the question
    assert len(counted) > again + 10


@pytest.mark.parametrize("sampling", [Greedy(), Sampling(temperature=1.1)])
def test_the_weights_are_shared(tokenizer: Tokenizer, sampling: Greedy | Sampling) -> None:
    """Without a model of its own the target itself drafts; what it reads whole, it gets right."""
    model = tiny_llama(context=1024)
    drafter = small(least_tokens=10_000)  # all of the context
    lm = HuggingFaceLM(
        model,
        tokenizer,
        sampling=sampling,
        passage_tokens=400,
        decoding=Decoding(drafter=drafter, costs=FREE, most_retakes=1.0),
    )
    inner_of(lm).budget = EveryDraft(FREE)
    drafter.separator = ""
    progress = Progress()
    draft = lm.begin(Request(prompt=question(Random(1)), max_tokens=40))
    draft = lm.write(draft, [log(Random(1))], 40, progress)

    assert drafter.reader.model is model
    assert 40 == len(draft.tokens)
    assert progress.model_passes < 24
    assert progress.drafts_accepted >= 20


# When it begins, and when it does not.


CURVE = CostCurve((1, 16), (1.0, 1.5), 0.01)


@pytest.mark.parametrize(
    ("step", "start_s", "left", "pays"),
    [
        (0.1, 0.0, 100, True),
        (0.1, 0.3, 100, True),
        (0.1, 0.9, 100, False),  # 100 tokens take a second: too few are left
        (0.1, 0.9, 1000, True),
        (0.7, 0.0, 100, False),  # a gain of 4 %, which may be an error of measurement
        (1.0, 0.0, 100, False),  # a step as long as a pass never pays
    ],
)
def test_drafting_begins_where_it_is_expected_to_pay(
    step: float, start_s: float, left: int, pays: bool
) -> None:
    """By the steps' cost, what it takes to begin, and the tokens that are left."""
    assert pays == Budget(CURVE).pays("rapid", Effort(start_s, step * 0.01), left, 10)


def test_what_did_not_pay_is_tried_now_and_then() -> None:
    """Every eighth time, to learn of a change; where it cannot pay, never."""
    from ralmspec_plugins.decoding.token_tree import Evidence, TokenTree

    budget = Budget(CURVE)
    wrong = TokenTree((5,), (-1,), (0.9,), (Evidence("rapid", 8, 0.9),))
    for _ in range(60):
        budget.learn(wrong, [6])
    tried = [budget.pays("rapid", Effort(0.0, 0.001), 100, 10) for _ in range(16)]
    hopeless = [budget.pays("rapid", Effort(0.0, 0.02), 100, 10) for _ in range(16)]

    assert [False] * 7 + [True] + [False] * 7 + [True] == tried
    assert [False] * 16 == hopeless


def test_a_drafter_that_does_not_pay_reads_nothing(tokenizer: Tokenizer) -> None:
    """The context is short, and the drafter as large as the target: no chunk is encoded."""
    encoded: list[str] = []

    def encoder(text: str) -> Any:
        encoded.append(text)
        return [1.0]

    drafter = small(encoder=encoder, least_tokens=10_000)
    costs = CostCurve((1, 8), (1.0, 1.2), 1e-4)
    lm = HuggingFaceLM(
        tiny_llama(context=1024),
        tokenizer,
        passage_tokens=400,
        decoding=Decoding(drafter=drafter, costs=costs, most_retakes=1.0),
    )
    progress = Progress()
    draft = lm.begin(Request(prompt="How many?", max_tokens=10))
    lm.write(draft, [log(Random(1))], 10, progress)

    assert [] == encoded
    assert 0 == progress.drafts_accepted
    assert 10 <= progress.model_passes


def test_passes_behind_a_long_context_are_timed_there(tokenizer: Tokenizer) -> None:
    """Once for each doubling; the run is as it was before, and so is the count of its passes."""
    lm = HuggingFaceLM(
        tiny_llama(context=4096), tokenizer, passage_tokens=4000, decoding=Decoding()
    )
    plain = HuggingFaceLM(tiny_llama(context=4096), tokenizer, passage_tokens=4000)
    decoder = inner_of(lm)
    request = Request(prompt=question(Random(1)), max_tokens=6)
    texts = []
    for lines in (60, 60, 130):
        passages = [log(Random(1), lines)]
        drafts = [one.write(one.begin(request), passages, 6, Progress()) for one in (lm, plain)]
        texts.append(drafts)

    assert [11, 12] == sorted(decoder._budgets)
    for budget in decoder._budgets.values():
        assert budget.costs.pass_s is not None
        assert budget.costs.rows[:3] == (1, 2, 3)
    assert all(fast == slow and len(fast.tokens) == 6 for fast, slow in texts)


# Chunks that are retrieved again.


def _judged(drafter: RagDrafter, context: DraftContext, right: int) -> None:
    """Draft for a text, and have so many of the drafts be right."""
    tree = drafter.propose(context, 6)
    assert len(tree) == 6
    drafter.update(Accepted(context, tree, tuple(range(right))))


def _fallen(tokenizer: Tokenizer, pass_s: float | None, left: int) -> tuple[Any, ...]:
    """Return the chunks before and after acceptance fell, while the text spoke of the storm."""
    drafter = _bound(tokenizer, small(tiny_llama(context=2048), question_tokens=12))
    drafter._step = lambda *_: 0.0  # type: ignore[method-assign]
    context = _context(tokenizer, (9,))
    for _ in range(6):
        _judged(drafter, context, 6)
    before = drafter.chunks_in_use(context)
    words = " ".join(["keeper of the storm"] * 12)
    moved = replace(context, text=tuple(tokenizer.encode(words)), pass_s=pass_s, left=left)
    for _ in range(30):
        _judged(drafter, moved, 0)
    drafter.propose(moved, 6)
    return before, drafter.chunks_in_use(context)


def test_chunks_are_retrieved_again_where_acceptance_falls(tokenizer: Tokenizer) -> None:
    """With the end of the text, and only if what was lost is worth a prefill."""
    before, after = _fallen(tokenizer, 10.0, 1000)
    kept, still = _fallen(tokenizer, 1e-9, 1000)

    assert before
    assert before != after
    assert before == kept == still


def test_a_teacher_does_not_retrieve_again(tokenizer: Tokenizer) -> None:
    """Its distribution is a function of prompt and text."""
    drafter = _bound(tokenizer, small(tiny_llama(context=2048)))
    drafter._step = lambda *_: 0.0  # type: ignore[method-assign]
    drafter.hold_steady()
    context = replace(_context(tokenizer, (9,)), pass_s=10.0, left=1000)
    before = drafter.chunks_in_use(context)
    for right in (6,) * 6 + (0,) * 60:
        _judged(drafter, context, right)

    assert before == drafter.chunks_in_use(context)


# Bad input.


def _lm(tokenizer: Tokenizer, eta: float, drafter: RagDrafter, **given: Any) -> HuggingFaceLM:
    transfer = KnowledgeTransfer(teacher=drafter, eta=eta) if eta else None
    return HuggingFaceLM(
        tiny_llama(context=1024),
        tokenizer,
        passage_tokens=900,
        decoding=Decoding(drafter=drafter, transfer=transfer, costs=FREE, most_retakes=1.0),
        **given,
    )


def _failing(text: str) -> Any:
    raise RuntimeError("planted")


BAD: tuple[tuple[dict[str, Any], type[Exception], str], ...] = (
    ({"threshold": 0.99}, InputError, "threshold 0.99"),
    ({"encoder": _failing}, ModelError, "planted"),
    ({"model": tiny_llama(context=40), "least_tokens": 48}, ContextOverflowError, "room for"),
)


@pytest.mark.parametrize(("given", "kind", "said"), BAD)
def test_without_transfer_what_fails_is_left_out(
    tokenizer: Tokenizer,
    caplog: pytest.LogCaptureFixture,
    given: dict[str, Any],
    kind: type[Exception],
    said: str,
) -> None:
    """The text is plain decoding's, and one warning tells why nothing is drafted."""
    lm = _lm(tokenizer, 0.0, small(**given))
    plain = HuggingFaceLM(tiny_llama(context=1024), tokenizer, passage_tokens=900)
    request, passages = Request(prompt=question(Random(1)), max_tokens=12), [log(Random(1))]
    with caplog.at_level(logging.WARNING):
        drafts = [one.write(one.begin(request), passages, 12, Progress()) for one in (lm, plain)]

    assert drafts[0].tokens == drafts[1].tokens
    assert 12 == len(drafts[0].tokens)
    [told] = [record for record in caplog.records if "RagDrafter failed" in record.message]
    assert said in str(told.exc_info)


@pytest.mark.parametrize(("given", "kind", "said"), BAD)
def test_with_transfer_what_fails_is_an_error(
    tokenizer: Tokenizer, given: dict[str, Any], kind: type[Exception], said: str
) -> None:
    """Without a teacher there is no p^: it is not replaced by p in silence."""
    lm = _lm(tokenizer, 10.0, small(**given))
    request = Request(prompt=question(Random(1)), max_tokens=12)
    with pytest.raises(kind, match=said):
        lm.write(lm.begin(request), [log(Random(1))], 12, Progress())


@pytest.mark.parametrize("eta", [0.0, 10.0])
def test_a_context_beyond_the_positions_is_an_error(tokenizer: Tokenizer, eta: float) -> None:
    """The target's, whatever the drafter could read of it."""
    lm = _lm(tokenizer, eta, small())
    with pytest.raises(ContextOverflowError, match="context is 1024"):
        lm.write(lm.begin(Request(prompt="?")), [log(Random(1), 99)] * 2, 12, Progress())


def test_a_teacher_without_positions_for_the_text_is_an_error(tokenizer: Tokenizer) -> None:
    """It is said how many it has."""
    drafter = small(tiny_llama(context=128), least_tokens=64)
    lm = _lm(tokenizer, 10.0, drafter)
    request = Request(prompt=question(Random(1)), max_tokens=120)
    with pytest.raises(ContextOverflowError, match="128 positions"):
        lm.write(lm.begin(request), [log(Random(1))], 120, Progress())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"eta": -1.0}, "eta must be at least 0"),
        ({"eta": float("nan")}, "eta must be at least 0"),
        ({"eta": 1.0, "share": 2.0}, "share"),
        ({"eta": 1.0, "guard": "both"}, "guard"),
        ({"eta": 1.0, "teacher": object()}, "teacher must be a RagDrafter"),
    ],
)
def test_settings_of_a_transfer_are_checked(given: dict[str, Any], said: str) -> None:
    """Each message names the setting."""
    with pytest.raises(ConfigError, match=said):
        KnowledgeTransfer(**{"teacher": RagDrafter(), **given})


@pytest.mark.parametrize("eta", [0.0, 10.0])
def test_another_vocabulary_is_refused(tokenizer: Tokenizer, eta: float) -> None:
    """As drafter and as teacher, when the model is loaded."""
    with pytest.raises(ConfigError, match="tokenizers differ"):
        _lm(tokenizer, eta, small(tiny_llama(), tokenizer=tiny_tokenizer(bos=False)))
    larger = tiny_llama()
    larger.config.vocab_size = 385
    with pytest.raises(ConfigError, match="385 tokens, the target 384"):
        _lm(tokenizer, eta, small(larger))


def test_one_drafter_shares_the_weights_of_one_model(tokenizer: Tokenizer) -> None:
    """Of another one it says so, and unbound it has none."""
    drafter = small()
    with pytest.raises(ConfigError, match="without a model of its own"):
        drafter.reader  # noqa: B018
    _bound(tokenizer, drafter, tiny_llama())
    with pytest.raises(ConfigError, match="another model"):
        _bound(tokenizer, drafter, tiny_llama())


@pytest.mark.parametrize("name", ["depth", "requests", "question_tokens", "chunk_tokens"])
def test_settings_out_of_range_are_refused(name: str) -> None:
    """Each message names the setting."""
    with pytest.raises(ConfigError, match=name):
        RagDrafter(**{name: 0})  # type: ignore[arg-type]


def test_requests_are_released(tokenizer: Tokenizer) -> None:
    """With the draft's caches go the drafter's; the least recently used go first."""
    drafter = small(requests=2)
    lm = _lm(tokenizer, 10.0, drafter)
    drafts = []
    for seed in range(3):
        request = Request(prompt=question(Random(seed)), max_tokens=4)
        drafts.append(lm.write(lm.begin(request), [log(Random(seed))], 4, Progress()))
    held = len(drafter._requests)
    lm.release(drafts[-1])

    assert (2, 1) == (held, len(drafter._requests))


def test_a_prompt_without_passages_is_divided(tokenizer: Tokenizer) -> None:
    """The last tokens are the question, what precedes them is the context."""
    drafter = small(question_tokens=10)
    lm = _lm(tokenizer, 0.0, drafter)
    plain = HuggingFaceLM(tiny_llama(context=1024), tokenizer)
    request = Request(prompt=log(Random(3)).text + "\n\n" + question(Random(3)), max_tokens=12)
    both = [one.write(one.begin(request), [], 12, Progress()) for one in (lm, plain)]
    [known] = drafter._requests.values()

    assert both[0].tokens == both[1].tokens
    assert 10 == len(known.parts.question)
    assert (tokenizer.bos_token_id,) == known.parts.head
    assert known.context.front == known.parts.head + known.parts.context + known.parts.question
    assert 3 == len(known.chunks)


def test_an_empty_context_is_explained(tokenizer: Tokenizer) -> None:
    """A prompt that is all question has nothing to retrieve from."""
    lm = _lm(tokenizer, 10.0, small())
    with pytest.raises(InputError, match="no context to retrieve from"):
        lm.write(lm.begin(Request(prompt="ships")), [], 4, Progress())
