import pytest
import torch
from transformers import PreTrainedModel

from ralmspec_plugins.testing.models import tiny_gpt2, tiny_llama, tiny_tokenizer
from tests.lm.reference import Models, Tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return tiny_tokenizer()


@pytest.fixture(scope="session")
def llama() -> PreTrainedModel:
    return tiny_llama()


@pytest.fixture(scope="session")
def models() -> Models:
    """Every tiny model in every precision, by name."""
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    llamas = {("llama", name): tiny_llama(dtype=dtype) for name, dtype in dtypes.items()}
    gpts = {("gpt2", name): tiny_gpt2(dtype=dtype) for name, dtype in dtypes.items()}
    return {**llamas, **gpts}
