"""The promise over a real model: 56 requests, token ids bit for bit, with rollbacks forced."""

import itertools
import time
from collections.abc import Sequence

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from ralmspec_plugins import (  # noqa: E402
    Answer,
    Continuous,
    Engine,
    FixedStride,
    Hits,
    OptimalStride,
    Query,
    Request,
    Settings,
    plain,
)
from ralmspec_plugins.lm.huggingface import HuggingFaceLM  # noqa: E402
from ralmspec_plugins.lm.sampling import Greedy, Sampling  # noqa: E402
from ralmspec_plugins.testing.models import tiny_llama, tiny_tokenizer  # noqa: E402
from ralmspec_plugins.workloads import Interval  # noqa: E402
from tests.selection import covering  # noqa: E402
from tests.workloads.test_with_a_model import StaleSpeculator, TurningRetriever  # noqa: E402

TEXTS = [
    "ships sail the sea",
    "a storm is near",
    "the señor pays 25 €",
    "the keeper counted the ships",
    "light over the harbour",
]
PROMPTS = ["The keeper", "A storm", "Ships and storms", "25 €", "Señor", "The sea is", "Harbour"]
SCHEDULES = itertools.cycle(
    [
        FixedStride(stride=3),
        Continuous(window=3, lanes=2),
        FixedStride(stride=5, overlap=True),
        OptimalStride(),
        FixedStride(stride=4),
        Continuous(),
    ]
)


class SlowRetriever(TurningRetriever):
    """Takes long enough for running ahead to pay on every schedule."""

    def search_wide(self, queries: Sequence[Query], width: int) -> list[Hits]:
        time.sleep(0.004)
        return super().search_wide(queries, width)


@pytest.mark.parametrize(
    ("dtype", "sampling", "k"),
    covering(
        [torch.float32, torch.bfloat16],
        [Greedy(), Sampling(temperature=0.9, top_k=20)],
        [1, 2],
        strength=2,
    ),
)
def test_no_token_differs(dtype: torch.dtype, sampling: Greedy | Sampling, k: int) -> None:
    """Seven requests each: text, tokens, record and cache history are the plain loop's."""
    lm = HuggingFaceLM(tiny_llama(dtype=dtype), tiny_tokenizer(), sampling=sampling)
    retriever = SlowRetriever(TEXTS, k=k)
    rolled_back = 0
    for seed, prompt in enumerate(PROMPTS):
        request = Request(prompt=prompt, max_tokens=20, seed=seed)
        expected = plain(Interval(lm), retriever, request)
        settings = Settings(schedule=next(SCHEDULES), speculators=[StaleSpeculator()])
        with Engine(Interval(lm), retriever, settings) as engine:
            actual = engine.run(request)

        assert expected == actual
        assert history(expected) == history(actual)
        rolled_back += actual.stats.wasted_segments > 0
    assert rolled_back >= 3


def history(answer: Answer) -> tuple[object, ...]:
    """Give what the next token would depend on."""
    draft = answer.state
    return draft.tokens, draft.passages, draft.prefilled_at, draft.ending
