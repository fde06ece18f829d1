"""Models whose next word depends on all that stands before it, and so on every node."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    LLMMetadata,
    MessageRole,
)
from llama_index.core.llms import LLM, CustomLLM
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from pydantic import Field

from tests.words import words_after


class HostDownError(Exception):
    """What a host raises."""


class WordLLM(CustomLLM):
    """A model that completes texts: says why it ended, counts calls, fails where it is told to."""

    max_tokens: int = 24
    says_why: bool = True
    fails_on: str | None = None
    chats: bool = False
    calls: list[dict[str, Any]] = Field(default_factory=list)
    left_early: list[str] = Field(default_factory=list)  # streams that were closed

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(is_chat_model=self.chats, model_name="words")

    def written(self, prompt: str, kwargs: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
        self.calls.append({"prompt": prompt, **kwargs})
        if self.fails_on is not None and self.fails_on in prompt:
            raise HostDownError("the host is down")
        tokens = kwargs.get("max_tokens", self.max_tokens)
        words, why = words_after(prompt, tokens, kwargs.get("stop"))
        usage = {"prompt_tokens": 3, "completion_tokens": len(words)}
        raw = {"choices": [{"finish_reason": why}], "usage": usage} if self.says_why else {}
        return words, raw

    def pieces(self, prompt: str, kwargs: dict[str, Any]) -> Iterator[CompletionResponse]:
        words, raw = self.written(prompt, kwargs)
        shown = ""
        try:
            for word in words:
                shown += word
                yield CompletionResponse(text=shown, delta=word)
            yield CompletionResponse(text=shown, delta="", raw=raw)
        except GeneratorExit:
            self.left_early.append(prompt)
            raise

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        words, raw = self.written(prompt, kwargs)
        return CompletionResponse(text="".join(words), raw=raw)

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        return self.pieces(prompt, kwargs)


class AsyncWordLLM(WordLLM):
    """The same with asynchronous methods of its own, as a client of a server has them."""

    @llm_completion_callback()
    async def acomplete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponse:
        await asyncio.sleep(0)
        words, raw = self.written(prompt, kwargs)
        return CompletionResponse(text="".join(words), raw=raw)

    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        return self.apieces(prompt, kwargs)

    async def apieces(
        self, prompt: str, kwargs: dict[str, Any]
    ) -> AsyncIterator[CompletionResponse]:
        try:
            for reply in list(self.pieces(prompt, kwargs)):
                await asyncio.sleep(0)
                yield reply
        except (GeneratorExit, asyncio.CancelledError):
            self.left_early.append(prompt)
            raise


def turns(messages: Sequence[ChatMessage]) -> str:
    """Show a conversation as a text; an assistant's last message is left open."""
    lines = [f"<{message.role.value}>{message.content or ''}\n" for message in messages]
    if messages[-1].role == MessageRole.ASSISTANT:
        return "".join(lines)[:-1]
    return "".join(lines) + "<assistant>"


class WordChat(AsyncWordLLM):
    """A chat model that continues a trailing message of the assistant."""

    chats: bool = True

    def reply(self, words: str, raw: Any, delta: str | None = None) -> ChatResponse:
        message = ChatMessage(role=MessageRole.ASSISTANT, content=words)
        return ChatResponse(message=message, raw=raw, delta=delta)

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        words, raw = self.written(turns(messages), kwargs)
        return self.reply("".join(words), raw)

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        await asyncio.sleep(0)
        words, raw = self.written(turns(messages), kwargs)
        return self.reply("".join(words), raw)

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Any:
        pieces = self.pieces(turns(messages), kwargs)
        return (self.reply(one.text, one.raw, one.delta) for one in pieces)

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Any:
        pieces = self.apieces(turns(messages), kwargs)
        return (self.reply(one.text, one.raw, one.delta) async for one in pieces)


def models() -> dict[str, LLM]:
    """Make one of each kind."""
    return {
        "text": WordLLM(),
        "text, awaited": AsyncWordLLM(),
        "silent about its end": WordLLM(says_why=False),
        "chat": WordChat(),
        "chat by prompt": WordLLM(chats=True, messages_to_prompt=turns),
        "framed": WordLLM(
            system_prompt="Be brief.", completion_to_prompt=lambda prompt: f"[{prompt}]"
        ),
    }
