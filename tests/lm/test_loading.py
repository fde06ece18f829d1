"""Loading says what is wrong, and importing the package loads no torch."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from transformers import BertConfig, BertModel, PreTrainedModel

import ralmspec_plugins.lm
from ralmspec_plugins.errors import ConfigError, InputError, ModelError
from ralmspec_plugins.lm import HuggingFaceLM, Sampling
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.testing.models import tiny_llama
from ralmspec_plugins.types import Passage, Request
from tests.lm.reference import Tokenizer

REQUEST = Request(prompt="The keeper", max_tokens=12)


@pytest.fixture
def saved(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    tiny_llama().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_saved_model_writes_the_same(saved: Path, tokenizer: Tokenizer) -> None:
    """A directory that `save_pretrained` wrote is enough, in another precision too."""
    passages = [Passage("1", "A ship.")]
    lm = HuggingFaceLM(tiny_llama(), tokenizer)
    loaded = HuggingFaceLM.from_pretrained(saved)
    half = HuggingFaceLM.from_pretrained(
        str(saved), dtype=torch.bfloat16, device="cpu", sampling=Sampling(top_k=5)
    )
    expected = lm.write(lm.begin(REQUEST), passages, 12, Progress())

    assert expected == loaded.write(loaded.begin(REQUEST), passages, 12, Progress())
    assert (loaded.model.dtype, half.model.dtype) == (torch.float32, torch.bfloat16)
    assert not loaded.model.training


def test_what_is_no_model_is_named(tmp_path: Path) -> None:
    """An empty directory, none at all, a file, a damaged or unknown configuration."""
    (tmp_path / "file").write_text("text")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "config.json").write_text('{"model_type": "no such thing"}')
    for path, message in [
        (tmp_path, "no config.json"),
        (tmp_path / "absent", "no directory"),
        (tmp_path / "file", "is a file"),
        (tmp_path / "damaged", "cannot be loaded"),
    ]:
        with pytest.raises(ModelError, match=message):
            HuggingFaceLM.from_pretrained(path)


def test_a_device_that_is_not_there_is_named(saved: Path) -> None:
    """Before weights are read."""
    with pytest.raises(ConfigError, match=r"cannot use the device 'cuda:77'.*driver"):
        HuggingFaceLM.from_pretrained(saved, device="cuda:77")
    with pytest.raises(ConfigError, match="cannot use the device 'gpu'"):
        HuggingFaceLM.from_pretrained("nowhere", device="gpu")


def test_an_encoder_decoder_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Only a causal model can continue a text."""
    config = transformers.T5Config(vocab_size=384, d_model=8, d_ff=8, num_layers=1, num_heads=1)
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="causal"):
        HuggingFaceLM.from_pretrained(tmp_path)


def test_importing_the_package_loads_no_torch() -> None:
    """Settings and templates are there at once; torch comes with `HuggingFaceLM`."""
    code = (
        "import sys, ralmspec_plugins.lm as lm, ralmspec_plugins.workloads\n"
        "lm.Sampling(), lm.PassageTemplate()\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_a_missing_extra_names_the_command() -> None:
    """Without torch the error says what to install."""
    code = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "from ralmspec_plugins.errors import MissingExtraError\n"
        "try:\n"
        "    from ralmspec_plugins.lm import HuggingFaceLM\n"
        "except MissingExtraError as error:\n"
        "    assert 'ralmspec-plugins[hf]' in str(error)\n"
        "else:\n"
        "    raise SystemExit(1)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_public_names() -> None:
    """The list that the package promises; others are told apart from it."""
    names = ["Draft", "Greedy", "HuggingFaceLM", "PassageTemplate", "Sampling"]

    assert names == ralmspec_plugins.lm.__all__
    assert all(hasattr(ralmspec_plugins.lm, name) for name in names)
    with pytest.raises(AttributeError, match="nothing"):
        _ = ralmspec_plugins.lm.nothing


def test_an_encoder_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """A BERT has no causal head; its weights are not made up."""
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    BertModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)

    with pytest.raises(ModelError, match="no weights for"):
        HuggingFaceLM.from_pretrained(tmp_path)


def test_half_a_character_is_refused(llama: PreTrainedModel, tokenizer: Tokenizer) -> None:
    """A lone surrogate is a clear error, not the tokenizer's."""
    with pytest.raises(InputError, match="no valid text"):
        HuggingFaceLM(llama, tokenizer).begin(Request(prompt="half \ud83d"))
