"""A scored model's drafts hold the log-probability of each token, and what it added to the text."""

from itertools import pairwise
from random import Random

import pytest
import torch

from ralmspec_plugins.errors import ConfigError, InputError
from ralmspec_plugins.lm.huggingface import HuggingFaceLM
from ralmspec_plugins.lm.sampling import Greedy, Sampling
from ralmspec_plugins.protocols import Progress, scored_model
from ralmspec_plugins.types import Request
from ralmspec_plugins.workloads import Interval
from tests.lm.reference import FRONTS, Models, Recorder, Tokenizer

SAMPLED = Sampling(temperature=0.7, top_k=9, repetition_penalty=1.3)


@pytest.mark.parametrize("sampling", [Greedy(), SAMPLED], ids=repr)
def test_they_are_the_models_own(
    models: Models, tokenizer: Tokenizer, sampling: Greedy | Sampling
) -> None:
    """Of each token, over segments with other passages: by the logits before any processing."""
    plain = HuggingFaceLM(models["llama", "float32"], tokenizer, sampling=sampling)
    lm = scored_model(plain)
    recorder = Recorder(lm)
    for seed in range(3):
        recorder.seen.clear()
        request = Request(prompt="The keeper counted", max_tokens=20, seed=seed)
        draft, unscored = lm.begin(request), plain.begin(request)
        for front, tokens in ((0, 7), (1, 5), (0, 9)):
            draft = lm.write(draft, FRONTS[front], tokens, Progress())
            unscored = plain.write(unscored, FRONTS[front], tokens, Progress())
        expected = [
            torch.log_softmax(recorder.seen[position][0].double(), -1)[token].item()
            for position, token in enumerate(draft.tokens)
        ]

        assert len(draft.tokens) == 20
        assert expected == [one.logprob for one in lm.logprobs(draft)]
        assert draft == unscored
        assert (20, 0) == (len(draft.scores), len(unscored.scores))


def test_their_texts_are_the_text(models: Models, tokenizer: Tokenizer) -> None:
    """Whatever ends a text, and wherever a character is made of several tokens."""
    lm = HuggingFaceLM(models["llama", "float32"], tokenizer, sampling=SAMPLED).scored()
    endings, empty = set(), 0
    for seed in range(60):
        rng = Random(seed)
        lm._eos = frozenset(rng.sample(range(384), 8)) if rng.random() < 0.4 else frozenset()
        stop = rng.choice([(), ("e",), ("th", " s")])
        request = Request(prompt="The é", max_tokens=rng.randint(1, 24), seed=seed, stop=stop)
        draft, known = lm.begin(request), [0]
        progress = Progress(lambda state, known=known: known.append(len(state.transcript.text)))
        while not draft.finished:
            draft = lm.write(draft, FRONTS[0], rng.randint(1, 9), progress)
            found = lm.logprobs(draft)
            assert lm.text(draft) == "".join(one.text for one in found)
            assert len(draft.tokens) == len(found)
        added = [end - start for start, end in pairwise(known)]
        assert draft.ending == "stop" or added == [len(one.text) for one in found]
        empty += sum(not one.text for one in found)
        endings.add(draft.ending)

    assert endings == {"eos", "stop", "length"}
    assert empty > 10


def test_a_draft_written_without_has_none(models: Models, tokenizer: Tokenizer) -> None:
    """The message says how many tokens are without, and what to do."""
    lm = HuggingFaceLM(models["llama", "float32"], tokenizer)
    draft = lm.write(lm.begin(Request(prompt="The")), FRONTS[0], 3, Progress())
    draft = lm.scored().write(draft, FRONTS[0], 2, Progress())

    with pytest.raises(InputError, match=r"of 5 tokens 2 have.*scored"):
        lm.logprobs(draft)


def test_caches_and_requests_are_shared(models: Models, tokenizer: Tokenizer) -> None:
    """One model under two names: no passage is read twice, and no request has another's caches."""
    lm = HuggingFaceLM(models["llama", "float32"], tokenizer)
    scored = lm.scored((0.5,))
    drafts = [one.begin(Request(prompt="The keeper")) for one in (lm, scored, lm)]

    assert len({draft.origin.owner for draft in drafts}) == 3
    assert scored.caches is lm.caches
    Interval(scored)  # it has what a workload needs


def test_what_has_none_is_refused() -> None:
    """The message names the model, what it lacks, and what has it; a threshold is checked."""

    class Silent:
        pass

    with pytest.raises(ConfigError, match=r"Silent gives no log-probabilities.*HuggingFaceLM"):
        scored_model(Silent())  # type: ignore[arg-type]
    for threshold in (0.0, -1.0, 1.5, float("nan")):
        with pytest.raises(ConfigError, match="thresholds must be above 0 and at most 1"):
            scored_model(Silent(), (0.5, threshold))  # type: ignore[arg-type]
