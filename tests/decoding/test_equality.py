"""Whatever is drafted, the text is plain decoding's: tokens, ends, caches, what follows."""

from dataclasses import replace
from random import Random

import pytest

from ralmspec_plugins.types import Request
from tests.decoding.drafters import RULES
from tests.decoding.pairs import SAMPLINGS, Pair, integers, operations
from tests.lm.reference import Tokenizer

PART = 25  # cases of each way of sampling by default; all of them are `slow`
ALL = 2000 // len(SAMPLINGS)
STOPS = ((), (), ("the",), (" pa", "é"), (", s",))


def _check(tokenizer: Tokenizer, number: int, seeds: range) -> None:
    pair = Pair.of(integers(tokenizer), tokenizer, SAMPLINGS[number])
    decoder = pair.fast.decoder
    measured, decoder.known = decoder.known, replace(decoder.known, trees=True)
    for seed in seeds:
        rng = Random(f"{number} {seed}")
        pair.drafter.rule, pair.drafter.rng = rng.choice(RULES), rng
        if rng.random() < 0.2:
            pair.plain._eos = pair.fast._eos = frozenset({int(rng.choice(_likely(pair)))})
        else:
            pair.plain._eos = pair.fast._eos = frozenset()
        request = Request(
            prompt=rng.choice(["The keeper", "A storm sells the ships that"]),
            max_tokens=rng.choice([1, 2, 12, 40, 40, 40]),
            seed=seed,
            stop=rng.choice(STOPS),
        )
        try:
            pair.check(request, operations(rng, 8))
        except AssertionError as problem:
            raise AssertionError(
                f"case {number} {seed} ({pair.drafter.rule.__name__})"
            ) from problem
    counts = decoder.counts
    assert measured.trees
    assert counts.accepted > len(seeds)
    assert counts.retaken > len(seeds) // 10
    assert counts.drafts > counts.accepted


def _likely(pair: Pair) -> list[int]:
    likely: list[int] = pair.plain.model._likely.tolist()
    return likely


@pytest.mark.parametrize("number", range(len(SAMPLINGS)))
def test_speculation_never_changes_a_text(tokenizer: Tokenizer, number: int) -> None:
    """Random drafters, greedy and sampled, with ends and rollbacks; many choices are open."""
    _check(tokenizer, number, range(PART))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(SAMPLINGS)))
def test_speculation_never_changes_a_text_in_2000_cases(tokenizer: Tokenizer, number: int) -> None:
    """The rest of the same cases."""
    _check(tokenizer, number, range(PART, ALL + 1))
