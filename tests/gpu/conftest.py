"""Each test runs on torch's CPU device, and on a CUDA device where there is one."""

import os
from collections.abc import Iterator

import pytest
from transformers import PreTrainedTokenizerFast

from ralmspec_plugins.testing.models import tiny_tokenizer

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used

import torch

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return str(request.param)


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Have torch refuse an operation whose result depends on more than its operands."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()
