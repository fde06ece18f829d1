"""What is known of a model by its class, and how it is told how far to write."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    LLMMetadata,
    MessageRole,
    ThinkingBlock,
)
from llama_index.core.llms import LLM, MockLLM
from llama_index.core.llms.mock import MockFunctionCallingLLM
from llama_index.core.output_parsers.pydantic import PydanticOutputParser
from llama_index.llms.openai import OpenAI
from llama_index.llms.openai_like import OpenAILike
from llama_index_ralmspec.capabilities import Abilities, abilities, told, way_of
from llama_index_ralmspec.llm import HostLM, said_of, text_of, usage_of
from llama_index_ralmspec.prompts import continued

from ralmspec_plugins.adapters.fingerprint import class_names
from ralmspec_plugins.adapters.text_model import came_to_an_end
from ralmspec_plugins.adapters.text_state import Usage
from ralmspec_plugins.errors import ConfigError
from tests.llama_index.fake_llms import AsyncWordLLM, WordChat, WordLLM

OPENAI: Mapping[str, Any] = {"api_key": "none", "api_base": "http://localhost:1/v1", "model": "m"}


def like(module: str, name: str, base: type[LLM] = WordLLM, **fields: Any) -> LLM:
    """Make a model of a class with the name of one that is not installed."""
    annotations = {field: type(value) for field, value in fields.items()}
    kind = type(name, (base,), {"__module__": module, "__annotations__": annotations, **fields})
    return kind()  # type: ignore[no-any-return]


def known(llm: LLM, **settings: Any) -> Abilities:
    return abilities(llm, **settings)


def shown(llm: LLM, **how: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Give the settings that a call changes, and its arguments."""
    called, arguments = told(llm, way_of(llm, class_names(llm), how.pop("bound", None)), **how)
    changed = {
        name: value for name, value in called.__dict__.items() if value != llm.__dict__.get(name)
    }
    return changed, arguments


@pytest.mark.parametrize(
    ("llm", "changed", "arguments"),
    [
        (WordLLM(), {}, {"max_tokens": 4, "stop": ["x"]}),
        (MockLLM(max_tokens=9), {"max_tokens": 4}, {}),
        (
            OpenAILike(**OPENAI),
            {"max_tokens": 4, "additional_kwargs": {"stop": ["x"]}},
            {},
        ),
        (
            OpenAI(**OPENAI, max_tokens=4, additional_kwargs={"max_completion_tokens": 7, "n": 1}),
            {"additional_kwargs": {"n": 1, "stop": ["x"]}},
            {},
        ),
        (
            like("llama_index.llms.llama_cpp.base", "LlamaCPP", generate_kwargs={"max_tokens": 9}),
            {"generate_kwargs": {"max_tokens": 4, "stop": ["x"]}},
            {},
        ),
        (
            like(
                "llama_index.llms.ollama.base",
                "Ollama",
                additional_kwargs={"seed": 1},
                client="a connection",
            ),
            {"additional_kwargs": {"seed": 1, "num_predict": 4, "stop": ["x"]}},
            {},
        ),
        (
            like("llama_index.llms.anthropic.base", "Anthropic"),
            {},
            {"max_tokens": 4, "stop_sequences": ["x"]},
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, LLM) else "",
)
def test_a_bound_and_stops_are_told_by_class(
    llm: LLM, changed: dict[str, Any], arguments: dict[str, Any]
) -> None:
    """By arguments where they are heeded, by settings of a copy where those overrule them."""
    before = {name: value for name, value in llm.__dict__.items() if name != "callback_manager"}

    assert (changed, arguments) == shown(llm, tokens=4, stop=["x"])
    assert before == {name: llm.__dict__[name] for name in before}


def test_a_call_without_a_bound_changes_nothing() -> None:
    """The model itself is called, with no arguments."""
    for llm in (WordLLM(), MockLLM(max_tokens=9), OpenAILike(**OPENAI, max_tokens=7)):
        called, arguments = told(llm, way_of(llm, class_names(llm), None))

        assert called is llm
        assert arguments == {}


def test_a_stated_bound_stands_for_the_known_one() -> None:
    """As for models of OpenAI's that want another name; both together are refused there."""
    llm = OpenAILike(**OPENAI, max_tokens=9)
    changed, arguments = shown(llm, bound="max_completion_tokens", tokens=4)

    assert changed == {"max_tokens": None, "additional_kwargs": {"max_completion_tokens": 4}}
    assert arguments == {}
    assert shown(llm, bound="max_tokens", tokens=4) == ({"max_tokens": 4}, {})
    assert shown(WordLLM(), bound=lambda n: {"words": n // 2}, tokens=4) == ({}, {"words": 2})


def test_arguments_of_a_continuation_are_merged_with_the_models_own() -> None:
    """An `extra_body` of the user's stays in force beside that which continues."""
    llm = OpenAILike(**OPENAI, additional_kwargs={"extra_body": {"top_k": 3}})
    changed, _ = shown(llm, tokens=4, further={"extra_body": {"continue_final_message": True}})

    assert changed["additional_kwargs"] == {
        "extra_body": {"top_k": 3, "continue_final_message": True}
    }


@pytest.mark.parametrize(
    ("llm", "remote", "native"),
    [
        (OpenAILike(**OPENAI), True, True),
        (OpenAI(api_key="none"), True, True),
        (like("llama_index.llms.groq.base", "Groq"), True, False),
        (like("llama_index.llms.groq.base", "Groq", AsyncWordLLM), True, True),
        (MockLLM(max_tokens=1), False, False),
        (WordLLM(), False, False),
        (AsyncWordLLM(), False, True),
        (WordChat(), False, True),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, LLM) else str(value),
)
def test_where_a_models_calls_go(llm: LLM, remote: bool, native: bool) -> None:
    """To a server that takes several, or not; awaited, or holding up whoever waits."""
    assert (remote, native) == (known(llm).side_by_side, known(llm).native_async)
    assert known(llm, side_by_side=not remote).side_by_side is not remote


@pytest.mark.parametrize(
    ("llm", "settings", "named"),
    [
        (WordChat(), {}, "continuation="),
        (OpenAILike(**OPENAI, is_chat_model=True), {}, "continue_final_message"),
        (MockFunctionCallingLLM(), {}, "bound="),
        (MockLLM(max_tokens=1), {"sentence_stop": "."}, "does not support stop"),
        (WordLLM(output_parser=PydanticOutputParser(output_cls=LLMMetadata)), {}, "parses"),
        (WordLLM(), {"sentence_stop": ""}, "sentence_stop"),
        (WordLLM(), {"sentence_stop": ".", "whole": True}, "together"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, LLM) else str(value),
)
def test_a_model_that_cannot_write_so_is_refused(
    llm: LLM, settings: dict[str, Any], named: str
) -> None:
    """At once, and the message says what to do; whole answers can all write."""
    with pytest.raises(ConfigError, match=named):
        HostLM(llm, **settings)
    assert HostLM(llm, whole=True).whole


def test_models_that_are_known_to_continue_are_taken() -> None:
    """By class, by what they show of their messages, or because the user says so."""
    ollama = like("llama_index.llms.ollama.base", "Ollama", WordChat)
    prompted = WordLLM(chats=True)

    assert known(ollama).continuation == {}
    assert known(prompted).by_prompt
    assert not known(prompted, continuation="assistant").by_prompt
    assert known(WordChat(), continuation={"prefix": True}).continuation == {"prefix": True}


def reply(raw: Any = None, text: str = "yes", **more: Any) -> CompletionResponse:
    return CompletionResponse(text=text, raw=raw, **more)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"choices": [{"finish_reason": "length"}]}, False),
        ({"choices": [{"finish_reason": "stop"}]}, True),
        (SimpleNamespace(choices=[SimpleNamespace(finish_reason="stop")]), True),
        (SimpleNamespace(choices=[]), None),
        ({"stop_reason": "max_tokens"}, False),
        (SimpleNamespace(delta=SimpleNamespace(stop_reason="end_turn")), True),
        ({"done_reason": "length"}, False),
        ({"candidates": [{"finish_reason": "MAX_TOKENS"}]}, False),
        ({}, None),
        (None, None),
        ("a text", None),
    ],
    ids=str,
)
def test_why_a_model_ended_is_read_where_servers_say_it(raw: Any, expected: bool | None) -> None:
    """In a mapping or an object, of the reply or of its first choice."""
    assert expected is came_to_an_end(said_of(reply(raw)))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (reply(additional_kwargs={"prompt_tokens": 3, "completion_tokens": 4}), Usage(3, 4, 7)),
        (reply({"usage": {"input_tokens": 3, "output_tokens": 4}}), Usage(3, 4, 7)),
        (reply({"prompt_eval_count": 3, "eval_count": 4}), Usage(3, 4, 7)),
        (
            reply(SimpleNamespace(usage=SimpleNamespace(total_tokens=9, prompt_tokens=2))),
            Usage(2, 0, 9),
        ),
        (reply(SimpleNamespace(usage=None)), Usage()),
        (reply(), Usage()),
    ],
    ids=str,
)
def test_what_was_counted_is_read_where_servers_say_it(
    answer: CompletionResponse, expected: Usage
) -> None:
    """And nothing is guessed where they do not."""
    assert expected == usage_of(answer)


def test_of_a_message_the_text_counts() -> None:
    """What a model thought before is no part of its answer."""
    message = ChatMessage(role=MessageRole.ASSISTANT, content="yes")
    message.blocks.insert(0, ThinkingBlock(content="hm"))

    assert text_of(ChatResponse(message=message)) == "yes"
    assert text_of(ChatResponse(message=ChatMessage(role=MessageRole.ASSISTANT))) == ""


def test_a_text_is_put_behind_the_messages_or_into_the_last() -> None:
    """The prompt's own messages stay as they are: they are used again."""
    user = ChatMessage(role=MessageRole.USER, content="Who?")
    begun = ChatMessage(role=MessageRole.ASSISTANT, content="It")

    assert continued([user], "") == ([user], False)
    assert continued([user], " was") == (
        [user, ChatMessage(role=MessageRole.ASSISTANT, content=" was")],
        True,
    )
    messages, continues = continued([user, begun], " was")
    assert messages[-1].content == "It was"
    assert continues
    assert begun.content == "It"
    assert continued([user, begun], "")[1]


def test_metadata_say_whether_a_model_chats() -> None:
    """And not its class: one client serves models of both kinds."""
    assert known(OpenAILike(**OPENAI, is_chat_model=True), continuation="assistant").chat
    assert not known(OpenAILike(**OPENAI)).chat
    assert LLMMetadata().is_chat_model is False
