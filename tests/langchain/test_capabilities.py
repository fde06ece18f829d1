"""What is known of a model, and how one that does not fit is refused."""

from typing import Any

import pytest
from langchain_core.language_models import (
    BaseChatModel,
    BaseLLM,
    FakeListChatModel,
    FakeListLLM,
    GenericFakeChatModel,
)
from langchain_core.language_models.fake import FakeStreamingListLLM
from langchain_core.runnables import ConfigurableField, Runnable
from langchain_huggingface import ChatHuggingFace, HuggingFacePipeline
from langchain_openai import AzureChatOpenAI, ChatOpenAI, OpenAI
from langchain_ralmspec.capabilities import Abilities, abilities, unwrapped
from langchain_ralmspec.llm import HostLM, arguments_for
from pydantic import Field

from ralmspec_plugins.adapters.text_model import came_to_an_end
from ralmspec_plugins.adapters.text_state import TextDraft
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.types import Request
from tests.langchain.fake_models import WordChat, WordLLM

pytestmark = pytest.mark.filterwarnings(  # ChatHuggingFace looks whether it stands on one of them
    "ignore:.langchain-community. is being sunset:DeprecationWarning"
)


def known(llm: Runnable[Any, Any], **said: Any) -> Abilities:
    return abilities(unwrapped(llm), **said)


def foreign(base: type, module: str, name: str, **fields: Any) -> Any:
    """Make a model of a class that only looks like a provider's, by its qualified name."""
    body = {"__module__": module, "__annotations__": dict.fromkeys(fields, Any), **fields}
    return type(name, (base,), body)()


def openai_chat(**settings: Any) -> ChatOpenAI:
    return ChatOpenAI(base_url="http://127.0.0.1:9/v1", api_key="none", model="m", **settings)


class FakePipeline:
    """Enough of a pipeline to be wrapped."""

    task = "text-generation"

    class model:  # noqa: N801 as transformers calls it
        name_or_path = "none"


PIPELINE = HuggingFacePipeline(pipeline=FakePipeline())


class AskForTokens(WordLLM):
    """A model with another field for its bound."""

    max_new_tokens: int = 3


@pytest.mark.parametrize(
    ("llm", "expected"),
    [
        (WordLLM(), {"max_tokens": 4}),
        (OpenAI(api_key="none"), {"max_tokens": 4}),
        (openai_chat(), {"max_tokens": 4}),
        (openai_chat().bind(temperature=0).with_config(tags=["a"]), {"max_tokens": 4}),
        (
            WordLLM().configurable_fields(max_tokens=ConfigurableField(id="n")),
            {"max_tokens": 4},
        ),
        (PIPELINE, {"pipeline_kwargs": {"max_new_tokens": 4, "return_full_text": False}}),
        (
            foreign(
                WordLLM, "langchain_ollama.llms", "OllamaLLM", num_predict=None, temperature=0.5
            ),
            {"options": {"temperature": 0.5, "num_predict": 4}},
        ),
        (foreign(WordLLM, "langchain_community.llms.vllm", "VLLM"), {"max_tokens": 4}),
        (FakeListLLM(responses=["a"]), None),
        (FakeListChatModel(responses=["a"]), None),
    ],
    ids=lambda one: type(one).__name__,
)
def test_how_output_is_bounded(llm: Any, expected: dict[str, Any] | None) -> None:
    """By the class where it is special, else by the field that the model declares."""
    bound = known(llm).bound

    assert expected == (None if bound is None else bound(4))


def test_users_say_how_output_is_bounded() -> None:
    """By an argument's name, or by a function; what they say comes first."""
    by_name = known(FakeListLLM(responses=["a"]), bound="n_words").bound
    by_function = known(WordLLM(), bound=lambda tokens: {"options": {"n": tokens}}).bound

    assert by_name is not None
    assert by_function is not None
    assert [{"n_words": 4}, {"options": {"n": 4}}] == [by_name(4), by_function(4)]


def test_arguments_of_a_pipeline_are_kept_beside_the_bound() -> None:
    """A call's arguments take the place of bound ones: so both must be in them."""
    llm = PIPELINE.bind(pipeline_kwargs={"do_sample": False, "max_new_tokens": 99})
    inner = unwrapped(llm)
    draft = TextDraft(Request(prompt="Who?"))
    arguments = arguments_for(draft, "tokens", 4, None, inner, abilities(inner))
    expected = {"do_sample": False, "max_new_tokens": 4, "return_full_text": False}

    assert {"pipeline_kwargs": expected} == arguments


@pytest.mark.parametrize(
    ("module", "name", "mark"),
    [
        ("langchain_anthropic.chat_models", "ChatAnthropic", {}),
        ("langchain_mistralai.chat_models", "ChatMistralAI", {"prefix": True}),
        ("langchain_ollama.chat_models", "ChatOllama", {}),
    ],
)
def test_who_continues_a_message(module: str, name: str, mark: dict[str, Any]) -> None:
    """Known chat models, and their subclasses, are told with what they need."""
    llm = foreign(WordChat, module, name)
    lm = HostLM(llm)
    draft = lm.begin(Request(prompt="What?"))
    for _ in range(2):
        draft = lm.write(draft, [], 2, Progress())
    last = llm.calls[1]["messages"][-1]

    assert ("ai", mark) == (last.type, last.additional_kwargs)
    assert known(llm).side_by_side


def test_arguments_that_continue_a_message_join_the_models_own() -> None:
    """An `extra_body` of the model's or of a binding is not lost; the first call has none of it."""
    more = {"extra_body": {"continue_final_message": True, "add_generation_prompt": False}}

    class Bodied(WordChat):
        extra_body: dict[str, Any] = Field(default_factory=lambda: {"top_k": 1})

    for llm, own in ((Bodied(), {"top_k": 1}), (WordChat(), {"min_p": 0})):
        given = llm if own == {"top_k": 1} else llm.bind(extra_body=own)
        lm = HostLM(given, continuation=more)
        draft = lm.begin(Request(prompt="What?"))
        for _ in range(2):
            draft = lm.write(draft, [], 2, Progress())

        assert llm.calls[0].get("extra_body") in (None, {"min_p": 0})
        assert {**own, **more["extra_body"]} == llm.calls[1]["extra_body"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: HostLM(FakeListLLM(responses=["a"])),
            "maximum number of tokens is unknown.*bound=.*one_shot",
        ),
        (lambda: HostLM(FakeStreamingListLLM(responses=["a"])), "sentence_stop"),
        (lambda: HostLM(openai_chat()), "continue an assistant message.*continue_final_message"),
        (lambda: HostLM(openai_chat(), sentence_stop="."), "continuation='assistant'.*one_shot"),
        (
            lambda: HostLM(
                AzureChatOpenAI(azure_endpoint="http://a", api_key="b", api_version="c")
            ),
            "AzureChatOpenAI",
        ),
        (lambda: HostLM(WordChat()), "WordChat.*one_shot"),
        (lambda: HostLM(WordLLM().with_retry()), "RunnableRetry.*one_shot"),
        (lambda: HostLM(WordLLM().with_fallbacks([WordLLM()])), "RunnableWithFallbacks"),
        (lambda: HostLM(WordLLM() | str.upper), "RunnableSequence"),
        (lambda: HostLM(PIPELINE, sentence_stop="."), "does not support stop strings"),
        (
            lambda: HostLM(
                ChatHuggingFace(llm=PIPELINE, tokenizer=object(), model_id="none"),
            ),
            "ChatHuggingFace.*direct=True",
        ),
        (lambda: HostLM(WordLLM(), sentence_stop=""), "empty"),
        (lambda: HostLM(WordLLM(), whole=True, sentence_stop="."), "together"),
    ],
)
def test_what_cannot_write_in_steps_is_refused(make: Any, said: str) -> None:
    """When it is wrapped, and with what to do instead."""
    with pytest.raises(ConfigError, match=f"(?s){said}"):
        make()


def test_one_shot_needs_nothing() -> None:
    """Every model and runnable can answer in one call."""
    for llm in (
        FakeListLLM(responses=["a"]),
        GenericFakeChatModel(messages=iter(["a"])),
        openai_chat(),
        WordLLM().with_retry(),
        WordChat(),
        PIPELINE,
    ):
        assert HostLM(llm, whole=True).whole


def test_what_runs_beside_itself() -> None:
    """Models behind an API do, local pipelines and unknown ones do not, unless users say so."""
    assert known(openai_chat()).side_by_side
    assert known(openai_chat().bind(stop=["a"])).side_by_side
    assert not known(PIPELINE).side_by_side
    assert not known(WordLLM()).side_by_side
    assert HostLM(WordLLM(), side_by_side=True).side_by_side
    assert not HostLM(openai_chat(), continuation="assistant", side_by_side=False).side_by_side


@pytest.mark.parametrize(
    ("information", "expected"),
    [
        ({"finish_reason": "stop"}, True),
        ({"finish_reason": "length"}, False),
        ({"finish_reason": "MAX_TOKENS"}, False),
        ({"finish_reason": "STOP"}, True),
        ({"finish_reason": "tool_calls"}, True),
        ({"stop_reason": "end_turn"}, True),
        ({"stop_reason": "max_tokens"}, False),
        ({"done_reason": "length"}, False),
        ({"finish_reason": None}, None),
        ({"finish_reason": ""}, None),
        ({"finish_reason": "FINISH_REASON_UNSPECIFIED"}, None),
        ({}, None),
        (None, None),
    ],
    ids=str,
)
def test_why_a_model_ended(information: dict[str, Any] | None, expected: bool | None) -> None:
    """A bound that was reached is no end; what is not said is not guessed."""
    assert expected is came_to_an_end(information)


def test_the_fakes_are_models() -> None:
    """The checks above rest on LangChain's two kinds of model."""
    assert isinstance(WordLLM(), BaseLLM)
    assert isinstance(WordChat(), BaseChatModel)
