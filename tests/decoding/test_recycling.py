"""Drafts from the model's own former logits."""

import pytest
import torch

from ralmspec_plugins.decoding import Decoding, DraftContext, DraftTarget, RecyclingDrafter
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.lm.huggingface import HuggingFaceLM
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.testing.models import tiny_llama
from ralmspec_plugins.types import Request
from tests.decoding.drafters import FREE
from tests.lm.reference import FRONTS, Tokenizer


def _context(text: tuple[int, ...], request: object = 0) -> DraftContext:
    return DraftContext(request, (), (1,), text)


def _logits(*rows: dict[int, float]) -> torch.Tensor:
    logits = torch.full((len(rows), 12), -30.0)
    for row, chances in zip(logits, rows, strict=True):
        for token, chance in chances.items():
            row[token] = torch.tensor(chance).log()
    return logits


def test_what_was_likely_behind_a_token_is_drafted_behind_it() -> None:
    """Rejected drafts teach as well: all rows of a pass are kept, the last ones count."""
    drafter = RecyclingDrafter(likeliest=2)
    drafter.observe(_context((5,)), (5, 6, 9), (-1, 0, 0), _logits({1: 1.0}, {7: 1.0}, {4: 1.0}))
    drafter.observe(_context((2, 5)), (5,), (-1,), _logits({6: 0.75, 9: 0.25}))
    tree = drafter.propose(_context((3, 5)), 9)

    assert {(5, 6), (5, 9)} <= {(5, token) for token in tree.tokens}
    assert (6, 7, 9, 4) == tree.tokens
    assert (-1, 0, -1, 2) == tree.parents
    assert tree.values == pytest.approx((0.75, 0.75, 0.25, 0.25))


def test_the_runner_up_is_drafted_at_the_next_place() -> None:
    """What was not chosen behind the token before stands among the root's children."""
    drafter = RecyclingDrafter()
    drafter.note(_context((2,)), 2, [(5, 0.6), (8, 0.3), (7, 0.1)])
    tree = drafter.propose(_context((2, 5)), 9)

    assert (8,) == tree.tokens
    assert 0 == tree.evidence[0].match


def test_requests_do_not_meet_unless_they_share() -> None:
    """A request's table is its own, and is forgotten at its end."""
    own, shared = RecyclingDrafter(), RecyclingDrafter(shared=True)
    for drafter in (own, shared):
        drafter.note(_context((5,), "mine"), 5, [(6, 0.9)])

    assert not own.propose(_context((5,), "theirs"), 4).tokens
    assert (6,) == own.propose(_context((5,), "mine"), 4).tokens
    assert (6,) == shared.propose(_context((5,), "theirs"), 4).tokens
    own.release("mine")
    assert not own.propose(_context((5,), "mine"), 4).tokens


def test_passes_wait_until_they_are_needed() -> None:
    """Many passes of two requests in turn, none read at once; what ended leaves nothing behind."""
    drafter, passes = RecyclingDrafter(), 40
    for at in range(passes):
        for request, token in (("mine", 6), ("theirs", 7)):
            logits = _logits({token: 1.0}, {token + at % 2: 1.0})
            drafter.observe(_context((5,), request), (5, at % 3), (-1, 0), logits)
            logits.fill_(0.0)  # it is valid only during the call

    assert (6, 8) == tuple(
        drafter.propose(_context((one,), request), 1).tokens[0]
        for one, request in ((5, "mine"), (0, "theirs"))
    )
    drafter.observe(_context((5,), "mine"), (5,), (-1,), _logits({6: 1.0}))
    drafter.release("mine")
    assert not drafter.propose(_context((5,), "mine"), 4).tokens
    assert (7,) == drafter.propose(_context((5,), "theirs"), 1).tokens


def test_no_more_tables_than_asked() -> None:
    """The table that was used longest ago goes first."""
    drafter = RecyclingDrafter(requests=2)
    for request in ("one", "two", "three"):
        drafter.note(_context((5,), request), 5, [(6, 0.9)])

    assert (6,) == drafter.propose(_context((5,), "three"), 4).tokens
    assert not drafter.propose(_context((5,), "one"), 4).tokens


def test_a_vocabulary_may_be_smaller_than_what_is_kept() -> None:
    """All of its tokens are kept then."""
    drafter = RecyclingDrafter(likeliest=40)
    drafter.bind(DraftTarget(lambda _: (), 12, None))
    drafter.observe(_context((5,)), (5,), (-1,), _logits({6: 1.0}))

    assert 6 == drafter.propose(_context((5,)), 1).tokens[0]


def test_a_model_teaches_it(tokenizer: Tokenizer) -> None:
    """Every pass of a real model is observed, and some of its drafts are accepted."""
    model = tiny_llama()
    decoding = Decoding(drafter=RecyclingDrafter(), costs=FREE)
    plain, fast = (
        HuggingFaceLM(model, tokenizer),
        HuggingFaceLM(model, tokenizer, decoding=decoding),
    )
    request = Request(prompt="The keeper counted the ships", max_tokens=64)
    texts = [lm.write(lm.begin(request), FRONTS[0], 64, Progress()).tokens for lm in (plain, fast)]

    assert texts[0]
    assert texts[0] == texts[1]
    assert fast.decoder.counts.accepted  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["likeliest", "requests"])
def test_settings_out_of_range_are_refused(name: str) -> None:
    """Each message names the setting."""
    with pytest.raises(ConfigError, match=name):
        RecyclingDrafter(**{name: 0})
