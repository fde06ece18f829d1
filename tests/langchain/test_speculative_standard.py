"""LangChain's own standard tests for chat models, over a local model with a drafter."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_ralmspec import SpeculativeChatModel
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from ralmspec_plugins.decoding import SuffixDrafter
from ralmspec_plugins.lm import HuggingFaceLM
from ralmspec_plugins.testing.models import tiny_llama
from tests.drafted_models import chat_tokenizer, drafting


@pytest.fixture(scope="module")
def lm() -> HuggingFaceLM:
    """One model for all tests: the suites make a chat model of it many times."""
    return HuggingFaceLM(tiny_llama(), chat_tokenizer(), decoding=drafting(SuffixDrafter()))


@pytest.fixture
def benchmark() -> Callable[[Callable[[], None]], None]:
    """Run what the suite would time; nothing is measured here."""
    return lambda run: run()


@pytest.fixture
def vcr() -> SimpleNamespace:
    """Stand for recorded answers of a provider: a local model needs none."""
    return SimpleNamespace(responses=[None])


@pytest.fixture
def snapshot() -> None:
    """Stand for the snapshot of a serialised model, which this one has not."""


class _OfOurs:
    """What both suites ask: no tools, no structured output."""

    has_tool_calling = False
    has_structured_output = False

    @pytest.fixture(autouse=True)
    def _given(self, lm: HuggingFaceLM) -> None:
        self._lm = lm

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return SpeculativeChatModel

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": self._lm}

    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        return {"temperature": 0, "max_tokens": 40, "stop": []}


class TestUnit(_OfOurs, ChatModelUnitTests):  # type: ignore[misc]
    """The unit tests."""


class TestIntegration(_OfOurs, ChatModelIntegrationTests):  # type: ignore[misc]
    """The integration tests."""
