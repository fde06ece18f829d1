"""Log-probabilities with drafts: near plain decoding's, and on the same side of thresholds."""

import math
from collections.abc import Callable
from random import Random

import pytest
from transformers import PreTrainedModel

from ralmspec_plugins.lm.sampling import Greedy, Sampling
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.testing.models import tiny_gpt2, tiny_llama
from ralmspec_plugins.types import Request
from tests.decoding.drafters import RULES
from tests.decoding.pairs import Pair, integers
from tests.lm.reference import FRONTS, Tokenizer

SAMPLED = Sampling(temperature=1.4, top_p=0.8)


def _requests(count: int) -> list[Request]:
    return [Request(prompt="The keeper", max_tokens=40, seed=seed) for seed in range(count)]


@pytest.mark.parametrize("sampling", [Greedy(), SAMPLED], ids=repr)
def test_thresholds_are_decided_as_by_plain_passes(
    tokenizer: Tokenizer, sampling: Greedy | Sampling
) -> None:
    """Thresholds that some tokens meet exactly: whatever is drafted, each falls on plain's side."""
    pair = Pair.of(integers(tokenizer), tokenizer, sampling)
    without, drafted, met = 0, 0, 0
    for request in _requests(12):
        free = pair.plain.scored()
        whole = free.write(free.begin(request), FRONTS[0], 40, Progress())
        pair.drafter.know(pair.plain, whole)
        probabilities = [math.exp(one.logprob) for one in free.logprobs(whole)]
        pair.drafter.rng = rng = Random(request.seed)
        pair.drafter.rule = rng.choice(RULES)
        thresholds = tuple(rng.sample(probabilities, 3))
        plain, fast = pair.plain.scored(thresholds), pair.fast.scored(thresholds)
        slow = plain.write(plain.begin(request), FRONTS[0], 40, Progress())
        quick = fast.write(fast.begin(request), FRONTS[0], 40, Progress())
        error = 2.0 * pair.fast.decoder.known.error.value

        assert slow == quick
        for one, other in zip(plain.logprobs(slow), fast.logprobs(quick), strict=True):
            assert one.text == other.text
            assert abs(one.logprob - other.logprob) <= error
            sides = [
                [math.exp(found.logprob) > threshold for threshold in thresholds]
                for found in (one, other)
            ]
            assert sides[0] == sides[1]
            met += any(abs(one.logprob - math.log(threshold)) < error for threshold in thresholds)
            drafted += one.logprob != other.logprob
        before = pair.fast.decoder.counts.retaken
        pair.fast.write(pair.fast.begin(request), FRONTS[0], 40, Progress())
        without += pair.fast.decoder.counts.retaken - before
    assert met > 30
    assert drafted > 30  # of the others, which need not be equal
    assert pair.fast.decoder.counts.retaken > 2 * without + 10


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_they_are_near_in_float32(
    tokenizer: Tokenizer, make: Callable[[], PreTrainedModel]
) -> None:
    """Within twice the measured bound, which is far below what anybody reads off."""
    pair = Pair.of(make(), tokenizer, Sampling(temperature=0.9))
    plain, fast = pair.plain.scored((0.8, 0.4)), pair.fast.scored((0.8, 0.4))
    largest, accepted = 0.0, 0
    for request in _requests(4):
        slow = plain.write(plain.begin(request), FRONTS[0], 40, Progress())
        pair.drafter.know(pair.plain, slow)
        pair.drafter.rule = RULES[1]
        progress = Progress()
        quick = fast.write(fast.begin(request), FRONTS[0], 40, progress)
        accepted += progress.drafts_accepted
        pairs = zip(plain.logprobs(slow), fast.logprobs(quick), strict=True)
        largest = max(largest, *(abs(one.logprob - other.logprob) for one, other in pairs))

    assert accepted > 40
    assert 0.0 < largest <= 2.0 * pair.fast.decoder.known.error.value < 1e-2
