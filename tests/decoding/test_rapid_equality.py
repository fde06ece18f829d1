"""Behind a long context, too, whatever is drafted: the text is that of token-by-token decoding."""

from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch

from ralmspec_plugins.decoding import KnowledgeTransfer
from ralmspec_plugins.lm.huggingface import HuggingFaceLM
from ralmspec_plugins.lm.sampling import Greedy, Sampling
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.testing.models import tiny_llama
from ralmspec_plugins.types import Request
from tests.decoding.drafters import RULES, ScriptedDrafter
from tests.decoding.pairs import integers
from tests.decoding.rapid_pairs import ETAS, SAMPLINGS, LongPair, inner_of, log, question
from tests.lm.reference import Tokenizer
from tests.selection import covering

PROMPTS = 200
PRECISIONS = (torch.float32, torch.bfloat16)
GUARDS = ("teacher", "target")


def _check(
    tokenizer: Tokenizer,
    sampling: Greedy | Sampling,
    eta: float,
    dtype: torch.dtype,
    seeds: range,
    guard: str = "teacher",
) -> None:
    settings = {"exactness": "invariant"} if dtype is torch.bfloat16 else {}
    model = tiny_llama(dtype=dtype, context=1024)
    pair = LongPair.of(model, tokenizer, sampling, eta, guard=guard, **settings)
    written = []
    for seed in seeds:
        rng = Random(f"{seed}")
        request = Request(prompt=question(rng), max_tokens=24, seed=seed)
        counts = rng.choice([(24,), (9, 15), (1, 7, 16)])
        written.append(pair.check(request, [log(rng)], counts).tokens)
    counted = inner_of(pair.fast).counts

    assert all(len(tokens) == 24 for tokens in written)
    assert counted.drafts > 4 * len(seeds)
    # A random model, moved far, hardly agrees with itself: in two texts perhaps never.
    assert counted.accepted > 0 or eta > (20 if len(seeds) == PROMPTS else 0)


@pytest.mark.parametrize(
    ("sampling", "eta", "dtype"), covering(SAMPLINGS, ETAS, PRECISIONS, strength=1)
)
def test_drafts_of_a_retrieved_part_change_nothing(
    tokenizer: Tokenizer, sampling: Greedy | Sampling, eta: float, dtype: torch.dtype
) -> None:
    """Plain ids for eta 0, those of p^ token by token for others."""
    _check(tokenizer, sampling, eta, dtype, range(2))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("eta", ETAS)
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_drafts_of_a_retrieved_part_change_nothing_in_200_texts(
    tokenizer: Tokenizer, sampling: Greedy | Sampling, eta: float, dtype: torch.dtype
) -> None:
    """The same for 200 prompts of each kind."""
    _check(tokenizer, sampling, eta, dtype, range(PROMPTS))


@pytest.mark.parametrize(("guard", "sampling", "eta"), covering(GUARDS, SAMPLINGS, (5.0, 20.0)))
def test_open_choices_of_p_hat_are_taken_again(
    tokenizer: Tokenizer, guard: str, sampling: Greedy | Sampling, eta: float
) -> None:
    """A model whose wide passes are far off, drafts of all kinds, whichever tokens are moved."""
    drafter = ScriptedDrafter()
    model = integers(tokenizer)
    pair = LongPair.of(model, tokenizer, sampling, eta, guard=guard, drafter=drafter)
    decoder = inner_of(pair.fast)
    decoder.known = replace(decoder.known, trees=True)
    for seed in range(12):
        rng = Random(f"{guard} {seed}")
        drafter.forget()
        drafter.rule, drafter.rng = rng.choice(RULES), rng
        request = Request(prompt=question(rng), max_tokens=30, seed=seed)
        passages = [log(rng, 5)]
        draft = pair.plain.write(pair.plain.begin(request), passages, 30, Progress())
        drafter.know(pair.plain, draft)
        pair.check(request, passages, rng.choice([(30,), (4, 26)]))
    counts = decoder.counts

    assert counts.accepted > 20
    assert counts.retaken > 0


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize(("guard", "eta"), [("teacher", 10.0), ("target", 20.0)])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_p_hat_is_what_its_definition_says(
    tokenizer: Tokenizer, sampling: Greedy | Sampling, guard: Any, eta: float, dtype: torch.dtype
) -> None:
    """Each token is that of softmax(z/T + eta (q - p)), worked out apart from any decoder."""
    model = tiny_llama(dtype=dtype, context=1024)
    settings = {"exactness": "invariant"} if dtype is torch.bfloat16 else {}
    pair = LongPair.of(model, tokenizer, sampling, eta, guard=guard, **settings)
    rng = Random(4)
    request, passages = Request(prompt=question(rng), max_tokens=20, seed=5), [log(rng)]
    draft = pair.plain.begin(request)
    lm, rows = pair.plain, _both(pair.plain, draft, passages)
    expected: list[int] = []
    z, q = next(rows)
    while len(expected) < 20:
        expected.append(_chosen(lm, draft, z, q, eta, guard, tuple(expected)))
        z, q = rows.send(expected[-1])
    written = pair.plain.write(draft, passages, 20, Progress())
    plain = HuggingFaceLM(model, tokenizer, sampling=sampling, passage_tokens=400)
    without = plain.write(plain.begin(request), passages, 20, Progress())

    assert tuple(expected) == written.tokens
    assert without.tokens != written.tokens  # p^ is not p


def _both(lm: HuggingFaceLM, draft: Any, passages: Any) -> Any:
    """Yield the model's and the teacher's logits after each token that is sent."""
    transfer: KnowledgeTransfer = lm.decoder.transfer  # type: ignore[attr-defined]
    runner, reader = lm.decoder.runner, transfer.teacher.reader.runner
    run = runner.open(lm._lineage(draft.placed(passages)), ())
    teacher = reader.start(_prompt(lm, draft, passages))
    while True:
        token = yield run.logits, teacher.logits
        runner.feed(run, token)
        reader.feed(teacher, token)


def _prompt(lm: HuggingFaceLM, draft: Any, passages: Any) -> tuple[int, ...]:
    """Return the teacher's prompt: the three best chunks in order, with blank lines between."""
    from ralmspec_plugins.retrieval.encoders import HashingEncoder

    lineage, encoder = lm._lineage(draft.placed(passages)), HashingEncoder()
    head = draft.origin.head_tokens
    context = lineage.prefix.tokens[len(head) :]
    pieces = [context[at : at + 16] for at in range(0, len(context), 16)]

    def vector(tokens: Any) -> Any:
        return encoder(lm.tokenizer.decode(list(tokens), skip_special_tokens=True)).astype(float)

    query = vector(lineage.prompt)
    order = sorted(range(len(pieces)), key=lambda at: (-float(vector(pieces[at]) @ query), at))
    blank = tuple(lm.tokenizer.encode("\n\n", add_special_tokens=False))
    read = [pieces[at] + blank for at in sorted(order[:3])]
    return head + tuple(token for piece in read for token in piece) + lineage.prompt


def _chosen(
    lm: HuggingFaceLM, draft: Any, z: Any, q: Any, eta: float, guard: str, text: tuple[int, ...]
) -> int:
    sampling = lm.sampling
    temperature = sampling.temperature if isinstance(sampling, Sampling) else 1.0
    p, taught = ((one / temperature).softmax(-1) for one in (z, q))
    moved = z + eta * temperature * (taught - p)
    by = taught if guard == "teacher" else (moved / temperature).softmax(-1)
    logits = torch.where(by >= 0.1 * by.max(), moved, z)
    return lm._chooser.choose(logits, (), draft.origin.seed, len(text))
