"""The promise with a real model: speculation never changes a token, in any precision."""

import pytest
import torch
from transformers import PreTrainedModel

from ralmspec_plugins.config import Settings
from ralmspec_plugins.engine.threads import Engine
from ralmspec_plugins.lm.huggingface import HuggingFaceLM
from ralmspec_plugins.lm.sampling import Greedy, Sampling
from ralmspec_plugins.plain import plain
from ralmspec_plugins.scheduling.schedules import Continuous, FixedStride
from ralmspec_plugins.testing import WordRetriever
from ralmspec_plugins.testing.models import tiny_llama, tiny_tokenizer
from ralmspec_plugins.types import Hits, Query, Request
from ralmspec_plugins.workloads import Interval, OneShot

REQUEST = Request(prompt="The keeper counted ships", max_tokens=32, seed=3, stop=("storm is",))


class TurningRetriever(WordRetriever):
    """Its best passage depends on every letter of the query, so it changes often."""

    def score(self, query: Query, passage: object) -> float:
        return float((sum(query.text.encode()) * (7 + int(passage.id[1:]))) % 11)


class StaleSpeculator:
    """Guesses what the last search returned: now right, now wrong."""

    inline = True

    def __init__(self) -> None:
        self._last: Hits | None = None

    def guess(self, query: Query) -> Hits | None:
        return self._last

    def learn(self, query: Query, hits: Hits) -> None:
        self._last = hits


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_llama(dtype=torch.bfloat16)


@pytest.mark.parametrize("cache_bytes", [0, 2**30])
@pytest.mark.parametrize("sampling", [Greedy(), Sampling(temperature=0.8)], ids=repr)
@pytest.mark.parametrize("schedule", [Continuous(), FixedStride(stride=3)], ids=repr)
def test_speculation_changes_no_token(
    model: PreTrainedModel,
    schedule: Continuous | FixedStride,
    sampling: Greedy | Sampling,
    cache_bytes: int,
) -> None:
    """The engine's answer, tokens included, is the plain loop's, though guesses are often wrong."""
    retriever = TurningRetriever(["ships sail the sea", "a storm is near", "the señor pays 25 €"])
    lm = HuggingFaceLM(model, tiny_tokenizer(), sampling=sampling, cache_bytes=cache_bytes)
    expected = plain(Interval(lm), retriever, REQUEST)
    settings = Settings(schedule=schedule, speculators=[StaleSpeculator()])
    with Engine(Interval(lm), retriever, settings) as engine:
        answer = engine.run(REQUEST)

    assert expected == answer
    assert expected.state.tokens == answer.state.tokens
    assert len({step.hits for step in answer.retrieved}) > 1


def test_a_one_shot_answer_streams(model: PreTrainedModel) -> None:
    """It comes in pieces that add up to the plain answer."""
    lm = HuggingFaceLM(model, tiny_tokenizer())
    retriever = WordRetriever(["ships sail the sea", "a storm is near"])
    expected = plain(OneShot(lm), retriever, REQUEST)
    with Engine(OneShot(lm), retriever) as engine:
        pieces = list(engine.stream(REQUEST))

    assert expected.text == "".join(pieces)
    assert len(pieces) > 3
