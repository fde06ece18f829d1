import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from ralmspec_plugins.lm.fingerprint import model_fingerprint, tokenizer_fingerprint
from ralmspec_plugins.testing.models import tiny_gpt2, tiny_llama, tiny_tokenizer


def test_a_tokenizer_keeps_its_name(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """Saved and loaded, used with padding and truncation, or given a padding token."""
    expected = tokenizer_fingerprint(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)

    assert expected == tokenizer_fingerprint(loaded)
    loaded.pad_token = loaded.eos_token
    loaded(["one", "two words"], padding=True, truncation=True, max_length=4)
    assert expected == tokenizer_fingerprint(loaded)


def test_another_tokenizer_has_another_name(tokenizer: PreTrainedTokenizerFast) -> None:
    """A token more, or another first token, is noticed."""
    more = copy.deepcopy(tokenizer)
    more.add_tokens(["lighthouse"])
    names = [tokenizer_fingerprint(some) for some in (tokenizer, more, tiny_tokenizer(bos=False))]

    assert 3 == len(set(names))


def test_a_model_keeps_its_name(tmp_path: Path) -> None:
    """Saved and loaded, in float32 and in bfloat16."""
    model = tiny_llama()
    expected = model_fingerprint(model)
    model.save_pretrained(tmp_path)
    for precision in (torch.float32, torch.bfloat16):
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=precision)

        assert expected == model_fingerprint(loaded)


def _trained(model: Any) -> Any:
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.01)
    return model


@pytest.mark.parametrize(
    "other",
    [
        lambda: tiny_llama(seed=1),
        lambda: tiny_llama(layers=1),
        lambda: tiny_llama(hidden=64),
        lambda: _trained(tiny_llama()),
        tiny_gpt2,
    ],
    ids=["seed", "layers", "hidden", "trained", "kind"],
)
def test_another_model_has_another_name(other: Any) -> None:
    """Other weights, shapes or kinds are noticed."""
    assert model_fingerprint(tiny_llama()) != model_fingerprint(other())
