"""What drafters propose depends on the text alone, whatever was drafted, dropped or seen before."""

import sys
from collections import Counter
from random import Random

import pytest

from ralmspec_plugins.decoding import (
    Decoding,
    DraftContext,
    DraftTarget,
    PassageDrafter,
    SuffixDrafter,
)
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.types import Passage


def _context(
    text: tuple[int, ...], front: tuple[int, ...] = (), request: object = 0
) -> DraftContext:
    return DraftContext(request, (front,), front, text)


def test_a_rolled_back_text_leaves_no_trace() -> None:
    """Texts that branch, grow and fall back, on several passages: each as if it were alone."""
    rng = Random(0)
    drafter = SuffixDrafter()
    fronts = [tuple(rng.randrange(4) for _ in range(size)) for size in (0, 5, 12)]
    texts = [(1,)]
    for _ in range(400):
        grown = rng.choice(texts[-6:])
        text = (*grown[: rng.randint(1, len(grown))], *(rng.randrange(4) for _ in range(3)))
        texts.append(text)
        context = _context(text, rng.choice(fronts))

        assert SuffixDrafter().propose(context, 9) == drafter.propose(context, 9)


def test_requests_do_not_meet() -> None:
    """What one request has in view is not drafted for another, and is forgotten at its end."""
    drafter = SuffixDrafter(requests=2)
    mine = drafter.propose(_context((7, 8), (7, 8, 9), "mine"), 4)
    theirs = drafter.propose(_context((7, 8), (1, 2), "theirs"), 4)
    drafter.release("mine")

    assert (9, 7, 8) == mine.tokens[:3]
    assert not theirs.tokens
    assert not drafter.propose(_context((7, 8), (1, 2), "mine"), 4).tokens


def test_a_match_is_as_long_as_asked() -> None:
    """A single token that stood before is not enough where two are asked."""
    context = _context((5, 8), (8, 9))

    assert (9, 5, 8) == SuffixDrafter().propose(context, 3).tokens
    assert not SuffixDrafter(least_match=2).propose(context, 3).tokens


def test_few_places_leave_room_for_shorter_endings() -> None:
    """1 2 went on with 3 once; 2 alone went on with 4 twice: both are drafted, 3 first."""
    tree = SuffixDrafter().propose(_context((1, 2), (2, 4, 5, 2, 4, 6, 1, 2, 3)), 12)
    roots = [token for token, parent in zip(tree.tokens, tree.parents, strict=True) if parent == -1]

    assert roots[:2] == [3, 4]
    assert list(tree.values) == sorted(tree.values, reverse=True) or len(tree) > 2


def test_a_text_that_repeats_itself_is_drafted_beyond_its_end() -> None:
    """Behind 1 2 3 1 2 3 1 comes 2 3, and then what came behind that; a new end has none."""
    drafter = SuffixDrafter()
    tree = drafter.propose(_context((1, 2, 3, 1, 2, 3, 1), (9,)), 8)

    assert (2, 3, 1, 2, 3, 1, 2, 3) == tree.tokens
    assert tree.is_chain
    assert {4} == {one.match for one in tree.evidence[:1]}
    assert min(one.match for one in tree.evidence) >= 4
    tree = SuffixDrafter(least_match=2).propose(_context((1, 2, 3, 1, 2), (9,)), 3)
    assert (3, 1, 2) == tree.tokens
    assert (8,) == SuffixDrafter().propose(_context((5, 7), (7, 8)), 1).tokens
    assert (8, 5, 7) == SuffixDrafter(least_match=2).propose(
        _context((7, 6), (7, 6, 8, 5)), 3
    ).tokens


def test_earlier_passages_are_copied_from() -> None:
    """A passage that stood in front before is drafted from; another request's is not."""
    drafter = PassageDrafter()
    drafter.propose(_context((1,), (7, 8, 9, 3), "mine"), 4)
    drafter.propose(_context((1,), (7, 8, 5), "theirs"), 4)

    assert (9, 3) == drafter.propose(_context((1, 7, 8), (4, 5), "mine"), 4).tokens


def test_a_source_is_copied_from() -> None:
    """Passages that retrieval holds are encoded a few at a time, each once."""
    encoded: list[str] = []

    def encode(passage: Passage) -> tuple[int, ...]:
        encoded.append(passage.id)
        return tuple(map(int, passage.text.split()))

    held = [Passage("a", "1 2 3"), Passage("b", "4 5 6"), Passage("c", "7 8 9")]
    drafter = PassageDrafter(lambda: held)
    drafter.bind(DraftTarget(encode, 99, None))
    for _ in range(3):
        drafter.propose(_context((0,)), 4)

    assert ["a", "b", "c"] == encoded
    assert (9,) == drafter.propose(_context((0, 7, 8)), 4).tokens
    assert (6,) == drafter.propose(_context((0, 4, 5)), 4).tokens


def test_the_oldest_passages_go_first() -> None:
    """Above its capacity a drafter keeps the half that was used last."""
    drafter = PassageDrafter(capacity=4)
    for number in range(0, 50, 10):
        drafter.propose(_context((1,), (number, number + 1, number + 2)), 4)

    assert not drafter.propose(_context((1, 0, 1), (99,)), 4).tokens
    assert (42,) == drafter.propose(_context((1, 40, 41), (99,)), 4).tokens


@pytest.mark.parametrize("name", ["least_match", "requests"])
@pytest.mark.parametrize("kind", [SuffixDrafter, PassageDrafter])
def test_settings_out_of_range_are_refused(kind: type, name: str) -> None:
    """Each message names the setting."""
    with pytest.raises(ConfigError, match=name):
        kind(**{name: 0})


@pytest.mark.parametrize(
    "settings",
    [
        {"exactness": "roughly"},
        {"most_drafts": 0},
        {"error_factor": 0.5},
        {"most_retakes": 2.0},
        {"calibration_s": 0.0},
        {"pass_rows": 7.5},
        {"drafter": "suffix"},
        {"drafter": 5},
        {"drafter": SuffixDrafter},
        {"drafter": [SuffixDrafter(), None]},
    ],
)
def test_decoding_out_of_range_is_refused(settings: dict[str, object]) -> None:
    """Each message names the setting."""
    with pytest.raises(ConfigError, match=next(iter(settings))):
        Decoding(**settings)  # type: ignore[arg-type]


def test_a_look_up_does_not_depend_on_the_context() -> None:
    """With 50,000 tokens in view a token takes the calls that it takes with 500, counted.

    On a quiet machine it took 0.02 ms of processor time, in drafts of 8.
    """
    rng = Random(1)
    calls = {size: _calls_a_token(rng, size) for size in (500, 50_000)}

    assert 0 < calls[50_000] < 2 * calls[500] < 400


def _calls_a_token(rng: Random, size: int) -> float:
    """Count the functions that run, of Python's and of C's, while a text is copied."""
    half = [rng.randrange(4000) for _ in range(size // 2)]
    front, drafter = tuple(half + half), SuffixDrafter()
    drafter.propose(_context((half[9],), front), 8)
    counted, drafted = Counter[str](), 0
    for end in range(11, 61):
        context = _context(tuple(half[9:end]), front)
        sys.setprofile(lambda _, event, __: counted.update([event]))
        tree = drafter.propose(context, 8)
        sys.setprofile(None)
        drafted += len(tree)
    assert drafted == 8 * 50
    return (counted["call"] + counted["c_call"]) / 50
