"""p^: which tokens are moved, by how much errors grow in it, and who is told of it."""

from random import Random
from typing import Any

import pytest
import torch

from ralmspec_plugins.adapters.speculative_model import speculative_model
from ralmspec_plugins.adapters.writing_options import LoadingOptions, WritingOptions
from ralmspec_plugins.decoding import Decoding, KnowledgeTransfer
from ralmspec_plugins.decoding.transfer import SmoothShift, TransferSegment
from ralmspec_plugins.lm.huggingface import HuggingFaceLM
from ralmspec_plugins.lm.sampling import Greedy, Sampling
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.testing.models import tiny_llama
from ralmspec_plugins.types import Request
from tests.decoding.drafters import FREE
from tests.decoding.rapid_pairs import SAMPLINGS, inner_of, log, question, small
from tests.lm.reference import Tokenizer

GUARDS = ("teacher", "target")


def _transfer(eta: float, guard: Any = "teacher") -> KnowledgeTransfer:
    return KnowledgeTransfer(teacher=small(), eta=eta, guard=guard)


def _transferring(tokenizer: Tokenizer, *, drafts: bool, **settings: Any) -> HuggingFaceLM:
    """Return a model that writes p^ of eta 10, token by token or with its teacher's drafts."""
    rag = small()
    decoding = Decoding(
        drafter=rag if drafts else (),
        transfer=KnowledgeTransfer(teacher=rag, eta=10.0),
        costs=FREE,
        most_retakes=1.0,
    )
    model = tiny_llama(context=1024)
    return HuggingFaceLM(model, tokenizer, passage_tokens=400, decoding=decoding, **settings)


def _drawn(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw logits, a teacher's, and errors of up to 1."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.randn(1, 9) * 3, torch.randn(1, 9) * 3, torch.rand(1, 9) * 2 - 1


@pytest.mark.parametrize("sampling", [Greedy(), Sampling(temperature=0.5)])
def test_only_likely_tokens_are_moved(sampling: Greedy | Sampling) -> None:
    """Worked: q is 0.7, 0.25 and 0.05; a tenth of 0.7 is above 0.05."""
    temperature = 0.5 if isinstance(sampling, Sampling) else 1.0
    p, q = torch.tensor([[0.2, 0.3, 0.5]]), torch.tensor([[0.7, 0.25, 0.05]])
    z, taught = (one.log() * temperature for one in (p, q))
    shift = _transfer(2.0).shift(sampling)
    assert shift is not None
    moved = (shift(z, taught) - z) / temperature

    assert torch.allclose(moved, torch.tensor([[1.0, -0.1, 0.0]]), atol=1e-6)


def test_the_paper_guards_by_p_hat_itself() -> None:
    """Worked: with eta 4, p^ of the last token is far below a tenth of the first one's."""
    p, q = torch.tensor([[0.2, 0.3, 0.5]]), torch.tensor([[0.7, 0.25, 0.05]])
    shift = _transfer(4.0, "target").shift(Sampling())
    assert shift is not None
    moved = shift(p.log(), q.log()) - p.log()

    assert torch.allclose(moved, torch.tensor([[2.0, -0.2, 0.0]]), atol=1e-6)


def test_without_transfer_nothing_is_moved(tokenizer: Tokenizer) -> None:
    """Eta 0 is plain: no teacher is asked, and its drafter may retrieve again."""
    transfer = _transfer(0.0)
    decoding = Decoding(drafter=(), transfer=transfer, costs=FREE, most_retakes=1.0)
    lm = HuggingFaceLM(tiny_llama(context=1024), tokenizer, decoding=decoding)
    plain = HuggingFaceLM(tiny_llama(context=1024), tokenizer)
    drafts = [
        one.write(one.begin(Request(prompt="ships", max_tokens=9)), [], 9, Progress())
        for one in (lm, plain)
    ]

    assert drafts[0].tokens == drafts[1].tokens
    assert 9 == len(drafts[0].tokens)
    assert not transfer.teacher.steady
    assert transfer.shift(Greedy()) is None
    assert {} == transfer.known_by()


@pytest.mark.parametrize("eta", [5.0, 40.0])
@pytest.mark.parametrize("guard", GUARDS)
def test_errors_grow_by_no_more_than_the_factor(eta: float, guard: str) -> None:
    """Of all logits within a bound, the moved ones are within the bound times the factor."""
    smooth = SmoothShift(_transfer(eta, guard), 1.0)
    largest, bound = 0.0, 1e-4
    for seed in range(300):
        z, taught, noise = _drawn(seed)
        found = (smooth(z + bound * noise, taught) - smooth(z, taught)).abs().max()
        ratio = float(found) / (bound * smooth.factor(z))
        largest = max(largest, ratio)

        assert ratio < 1.05  # the factor is that of the derivative
    assert largest > 0.3  # and no wild guess
    assert smooth.largest > 1.0 + 0.4 * eta  # of at most 1 + eta / 2


@pytest.mark.parametrize("bound", [1e-3, 3e-2])
def test_a_clear_guard_moves_the_same_tokens(bound: float) -> None:
    """For all logits within the bound; where it is not clear, it may matter."""
    transfer = _transfer(10.0, "target")
    shift = transfer.shift(Sampling())
    assert shift is not None
    unclear = changed = 0
    for seed in range(400):
        z, taught, noise = _drawn(seed)
        moved, ratios = transfer.moved(z, taught, 1.0)
        _, others = transfer.moved(z + bound / 12.0 * noise, taught, 1.0)
        flips = ((ratios >= 0.1) != (others >= 0.1)) & ((moved - z).abs() > bound)
        if transfer.is_clear(z, taught, Sampling(), bound):
            assert not bool(flips.any())
        else:
            unclear += 1
            changed += bool(flips.any())

    assert unclear > (0 if bound < 0.01 else 10)
    assert changed > 0 or bound < 0.01


def test_bounds_are_wider_where_p_is_more_peaked(tokenizer: Tokenizer) -> None:
    """The inner decoder is asked with the growth beyond what was measured; so is the guard."""
    transfer = _transfer(20.0)
    decoding = Decoding(drafter=(), transfer=transfer, costs=FREE, most_retakes=1.0)
    lm = HuggingFaceLM(tiny_llama(context=1024), tokenizer, decoding=decoding)
    asked: list[float] = []

    class Inner:
        drafts_accepted = decisions_retaken = 0

        def is_certain(self, tokens: Any, logits: Any, wider: float = 1.0) -> bool:
            asked.append(wider)
            return True

        def logprob_error(self) -> float:
            return 1.0

    segment = TransferSegment(lm.decoder, Inner(), None)  # type: ignore[arg-type]
    segment._teachers = torch.zeros(1, 2)
    known = inner_of(lm).known
    assert 1.0 <= known.growth < 11.0
    for logits in (torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 60.0]])):
        segment._logits = logits
        segment.is_certain((), logits)

    assert [pytest.approx(11.0 / known.growth), 1.0] == asked


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_log_probabilities_are_those_of_p_hat(
    tokenizer: Tokenizer, sampling: Greedy | Sampling
) -> None:
    """With drafts and without, within twice the bound."""
    found = []
    for drafts in (False, True):
        lm = _transferring(tokenizer, drafts=drafts, sampling=sampling).scored(thresholds=(0.2,))
        request = Request(prompt=question(Random(1)), max_tokens=16)
        draft = lm.write(lm.begin(request), [log(Random(1))], 16, Progress())
        found.append([one.logprob for one in lm.logprobs(draft)])

    assert 16 == len(found[0])
    assert found[0] == pytest.approx(found[1], abs=1e-2)
    assert [one > -1.6 for one in found[0]] == [one > -1.6 for one in found[1]]


def test_another_way_of_choosing_has_its_own_p_hat(tokenizer: Tokenizer) -> None:
    """A variant samples from p^ at its temperature, and drafts change nothing there either."""
    texts = []
    for drafts in (False, True):
        lm = _transferring(tokenizer, drafts=drafts)
        for sampling in (None, Sampling(temperature=0.7)):
            one = lm.variant(sampling=sampling)
            request = Request(prompt=question(Random(1)), max_tokens=16, seed=2)
            texts.append(one.write(one.begin(request), [log(Random(1))], 16, Progress()).tokens)

    assert texts[:2] == texts[2:]
    assert texts[0] != texts[1]
    assert 16 == len(texts[1])


def test_caches_of_hosts_tell_p_hat_from_p(tokenizer: Tokenizer) -> None:
    """What a text depends on includes the transfer, and of drafters nothing."""
    model, known = tiny_llama(context=1024), []
    for decoding in (
        Decoding(drafter=small()),
        Decoding(drafter=()),
        Decoding(drafter=(), transfer=_transfer(5.0)),
        Decoding(drafter=(), transfer=_transfer(10.0)),
    ):
        loading = LoadingOptions(tokenizer=tokenizer, decoding=decoding)
        known.append(speculative_model(model, loading, WritingOptions().sampling).known_by())

    assert known[0] == known[1]
    assert known[1] != known[2] != known[3]
    assert 5.0 == known[2]["transfer"]["eta"]
