"""Speculation on tokens inside speculation on passages: the plain loop's answer, and the counts."""

import pytest

from ralmspec_plugins.config import Settings
from ralmspec_plugins.decoding import Decoding, PassageDrafter, SuffixDrafter, TokenTree
from ralmspec_plugins.engine.aio import AsyncEngine
from ralmspec_plugins.engine.simulation import Latencies, Simulation
from ralmspec_plugins.engine.threads import Engine
from ralmspec_plugins.lm.huggingface import HuggingFaceLM
from ralmspec_plugins.lm.sampling import Greedy, Sampling
from ralmspec_plugins.plain import plain
from ralmspec_plugins.scheduling.schedules import FixedStride
from ralmspec_plugins.testing import WordRetriever
from ralmspec_plugins.testing.models import tiny_llama
from ralmspec_plugins.types import Answer, Request
from ralmspec_plugins.workloads import Interval, OneShot
from tests.decoding.drafters import FREE, EveryDraft, ScriptedDrafter
from tests.lm.reference import Tokenizer

TEXTS = [
    "the ships that passed the island",
    "a storm sells the ships",
    "the keeper counted the storm",
    "a passage is put in front of the ships",
]


@pytest.mark.parametrize("interval", [1, 4, 16])
@pytest.mark.parametrize("sampling", [Greedy(), Sampling(temperature=0.05)], ids=repr)
def test_both_speculations_at_once(
    tokenizer: Tokenizer, interval: int, sampling: Greedy | Sampling
) -> None:
    """Passages are guessed, segments dropped, tokens drafted: the answer is the plain loop's."""
    model = tiny_llama()
    retriever = WordRetriever(TEXTS)
    drafters = (SuffixDrafter(), PassageDrafter())
    fast = HuggingFaceLM(
        model,
        tokenizer,
        sampling=sampling,
        decoding=Decoding(drafter=drafters, costs=FREE, most_retakes=1.0),
    )
    fast.decoder.budget = EveryDraft(FREE)
    slow = HuggingFaceLM(model, tokenizer, sampling=sampling)
    settings = Settings(schedule=FixedStride(stride=3, overlap=True))
    accepted = 0
    with Engine(Interval(fast, interval=interval), retriever, settings) as engine:
        for seed in range(2):
            prompt = "the ships that passed the ships that passed the"
            request = Request(prompt=prompt, max_tokens=32, seed=seed)
            expected = plain(Interval(slow, interval=interval), retriever, request)
            actual = engine.run(request)

            assert expected == actual
            accepted += actual.stats.drafts_accepted
    assert interval == 1 or accepted > 0


def test_what_it_took_is_in_the_statistics(tokenizer: Tokenizer) -> None:
    """Without drafts a pass gives a token, but for the passages' own; with drafts, more."""
    model = tiny_llama()
    prompt = "the ships that passed the ships that passed the ships that passed the"
    request = Request(prompt=prompt, max_tokens=40)
    found = []
    for decoding in (None, Decoding(drafter=SuffixDrafter(), costs=FREE)):
        lm = HuggingFaceLM(model, tokenizer, decoding=decoding)
        with Engine(OneShot(lm), WordRetriever(TEXTS)) as engine:
            found.append(engine.run(request))
    slow, fast = (answer.stats for answer in found)

    assert found[0] == found[1]
    assert (41, 40, 0, 0) == (
        slow.model_passes, slow.tokens_written, slow.drafts_accepted, slow.decisions_retaken,
    )  # fmt: skip
    assert slow.tokens_per_pass == 40 / 41
    assert fast.tokens_written == 40
    assert fast.model_passes + fast.drafts_accepted >= 41
    assert sum(span.passes for span in fast.timeline) == fast.model_passes
    assert fast.tokens_per_pass is not None


WAYS = ("plain", "run", "batch", "stream", "events", "arun", "abatch", "astream", "simulation")


async def _answer(way: str, lm: HuggingFaceLM, request: Request) -> Answer:
    """Answer a request in one of the ways."""
    workload, store = Interval(lm, interval=16), WordRetriever(TEXTS)
    if way == "plain":
        return plain(workload, store, request)
    if way == "simulation":
        return Simulation(workload, store, Latencies()).run(request)
    if way[0] == "a":
        async with AsyncEngine(workload, store) as engine:
            if way == "arun":
                return await engine.run(request)
            if way == "abatch":
                return (await engine.batch([request]))[0]
            stream = engine.stream(request)
            assert [piece async for piece in stream]
            return stream.answer
    with Engine(workload, store) as engine:
        if way == "run":
            return engine.run(request)
        if way == "batch":
            return engine.batch([request])[0]
        found = engine.stream(request) if way == "stream" else engine.events(request)
        assert list(found)
        return found.answer


@pytest.mark.parametrize("way", WAYS)
async def test_every_way_of_answering_counts_passes(tokenizer: Tokenizer, way: str) -> None:
    """Passes, tokens and drafts; where drafts are right there are more tokens a pass."""
    request = Request(prompt="The keeper counted the ships", max_tokens=32)
    model, drafter = tiny_llama(), ScriptedDrafter()
    slow = await _answer(way, HuggingFaceLM(model, tokenizer), request)
    text = slow.state.tokens
    drafter.rule = lambda _, __, budget: TokenTree.of([text[drafter.written :][:budget]])
    fast_lm = HuggingFaceLM(model, tokenizer, decoding=Decoding(drafter=drafter, costs=FREE))
    fast = await _answer(way, fast_lm, request)

    assert slow == fast
    assert slow.stats.drafts_accepted == slow.stats.decisions_retaken == 0
    assert 1 > (slow.stats.tokens_per_pass or 0) > 0.9
    assert (fast.stats.tokens_per_pass or 0) > 2
    assert fast.stats.drafts_accepted > 16
    assert 32 <= fast.stats.tokens_written
    for stats in (slow.stats, fast.stats):
        assert way == "plain" or stats.model_passes == sum(span.passes for span in stats.timeline)
