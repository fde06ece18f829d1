import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ralmspec_plugins.testing.models import tiny_gpt2, tiny_llama, tiny_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


@pytest.fixture(scope="session")
def llama() -> PreTrainedModel:
    return tiny_llama(context=64)


@pytest.fixture(scope="session")
def gpt2() -> PreTrainedModel:
    return tiny_gpt2(context=64)
