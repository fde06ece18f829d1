import pytest
from transformers import PreTrainedTokenizerFast

from ralmspec_plugins.testing.models import tiny_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()
