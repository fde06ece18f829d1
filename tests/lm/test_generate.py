"""With one retrieval, the text is the one that transformers' own `generate` writes."""

from typing import Any

import pytest
import torch
from transformers import DynamicCache, PreTrainedModel

from ralmspec_plugins.lm.huggingface import HuggingFaceLM
from ralmspec_plugins.lm.kv_cache import cache_argument
from ralmspec_plugins.lm.sampling import Greedy
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.testing.models import tiny_llama
from ralmspec_plugins.types import Request
from tests.lm.reference import FRONTS, Models, Tokenizer

PENALTY = 1.3


@pytest.mark.parametrize("front", range(len(FRONTS)))
@pytest.mark.parametrize("greedy", [Greedy(), Greedy(repetition_penalty=PENALTY)], ids=repr)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_greedy_is_generate_on_the_prefix_cache(
    models: Models, tokenizer: Tokenizer, family: str, dtype: str, greedy: Greedy, front: int
) -> None:
    """Token for token in any precision, and without the prefix cache in float32."""
    lm = HuggingFaceLM(models[family, dtype], tokenizer, sampling=greedy)
    draft = lm.write(
        lm.begin(Request(prompt="The keeper", max_tokens=40)), FRONTS[front], 40, _go()
    )
    lineage = lm._lineage(draft)
    prefix, prompt = list(lineage.prefix.tokens), list(lineage.prompt)
    penalty = {"repetition_penalty": greedy.repetition_penalty}
    given = {cache_argument(lm.model): _cache(lm.model, prefix)}
    cached = _generate(lm.model, prefix, prompt, **given, **penalty)

    assert cached == list(draft.tokens)
    if dtype == "float32":
        assert _generate(lm.model, prefix, prompt, **penalty) == list(draft.tokens)


def test_end_of_sequence_is_where_generate_ends(tokenizer: Tokenizer) -> None:
    """The end token ends the text at any position in a segment and is no part of it."""
    model = tiny_llama()
    lm = HuggingFaceLM(model, tokenizer)
    free = lm.write(lm.begin(Request(prompt="The keeper", max_tokens=40)), FRONTS[0], 40, _go())
    end = next(
        token for i, token in enumerate(free.tokens) if i > 4 and token not in free.tokens[:i]
    )
    model.generation_config.eos_token_id = [end, 1]
    ending = HuggingFaceLM(model, tokenizer)
    draft = ending.begin(Request(prompt="The keeper", max_tokens=40))
    while not ending.finished(draft):
        draft = ending.write(draft, FRONTS[0], 4, _go())
    lineage = ending._lineage(draft)
    prefix, prompt = list(lineage.prefix.tokens), list(lineage.prompt)

    assert _generate(model, prefix, prompt) == list(draft.tokens)
    assert (draft.tokens[-1], draft.ending) == (end, "eos")
    assert tokenizer.decode(list(draft.tokens[:-1])) == ending.text(draft) == ending.settled(draft)
    assert ending.write(draft, FRONTS[1], 4, _go()) is draft


def test_length_is_kept_to(llama: PreTrainedModel, tokenizer: Tokenizer) -> None:
    """The last segment is cut to what `max_tokens` leaves."""
    lm = HuggingFaceLM(llama, tokenizer)
    draft = lm.begin(Request(prompt="The keeper", max_tokens=6))
    lengths = []
    while not lm.finished(draft):
        draft = lm.write(draft, FRONTS[0], 4, _go())
        lengths.append(len(draft.tokens))

    assert [4, 6] == lengths
    assert draft.ending == "length"


def _go() -> Progress:
    return Progress()


def _cache(model: PreTrainedModel, prefix: list[int]) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        given = {cache_argument(model): cache}
        model(input_ids=torch.tensor([prefix]), use_cache=True, **given)
    return cache


def _generate(
    model: PreTrainedModel, prefix: list[int], prompt: list[int], **settings: Any
) -> list[int]:
    ids = torch.tensor([prefix + prompt])
    written = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=40,
        pad_token_id=2,
        **settings,
    )
    return written[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("names", [("cache", "past_key_values"), ("cache_params",), ("cache",)])
def test_a_cache_is_passed_by_the_name_that_a_model_has(names: tuple[str, ...]) -> None:
    """The newest of those that it has: the others are aliases that warn."""
    scope: dict[str, Any] = {}
    exec(f"class Model:\n    def forward(self, input_ids, {', '.join(names)}): ...", scope)

    assert names[0] == cache_argument(scope["Model"]())
