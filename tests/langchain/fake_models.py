"""Models whose next word depends on all that stands before it, and so on every document."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

from langchain_core.language_models import BaseChatModel, BaseLLM
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import (
    ChatGeneration,
    ChatGenerationChunk,
    ChatResult,
    Generation,
    GenerationChunk,
    LLMResult,
)
from pydantic import Field

from tests.words import words_after


class HostDownError(Exception):
    """What a host raises."""


class WordLLM(BaseLLM):
    """A string model: says why it ended, counts its calls, fails where it is told to."""

    max_tokens: int = 24
    says_why: bool = True
    fails_on: str | None = None
    calls: list[dict[str, Any]] = Field(default_factory=list)
    left_early: list[str] = Field(default_factory=list)  # streams that were closed

    @property
    def _llm_type(self) -> str:
        return "words"

    def _words(
        self, prompt: str, stop: list[str] | None, kwargs: dict[str, Any]
    ) -> tuple[list[str], dict[str, Any] | None]:
        self.calls.append({"prompt": prompt, "stop": stop, **kwargs})
        if self.fails_on is not None and self.fails_on in prompt:
            raise HostDownError("the host is down")
        written, why = words_after(prompt, kwargs.get("max_tokens", self.max_tokens), stop)
        return written, {"finish_reason": why} if self.says_why else None

    def _generate(
        self, prompts: list[str], stop: list[str] | None = None, run_manager: Any = None, **kw: Any
    ) -> LLMResult:
        generations = []
        for prompt in prompts:
            written, info = self._words(prompt, stop, kw)
            generations.append([Generation(text="".join(written), generation_info=info)])
        return LLMResult(generations=generations)

    async def _agenerate(
        self, prompts: list[str], stop: list[str] | None = None, run_manager: Any = None, **kw: Any
    ) -> LLMResult:
        await asyncio.sleep(0)
        return self._generate(prompts, stop, **kw)

    def _stream(
        self, prompt: str, stop: list[str] | None = None, run_manager: Any = None, **kw: Any
    ) -> Iterator[GenerationChunk]:
        written, info = self._words(prompt, stop, kw)
        try:
            for word in written:
                if run_manager:
                    run_manager.on_llm_new_token(word)
                yield GenerationChunk(text=word)
            yield GenerationChunk(text="", generation_info=info)
        except GeneratorExit:
            self.left_early.append(prompt)
            raise

    async def _astream(
        self, prompt: str, stop: list[str] | None = None, run_manager: Any = None, **kw: Any
    ) -> AsyncIterator[GenerationChunk]:
        written, info = self._words(prompt, stop, kw)
        try:
            for word in written:
                await asyncio.sleep(0)
                yield GenerationChunk(text=word)
            yield GenerationChunk(text="", generation_info=info)
        except (GeneratorExit, asyncio.CancelledError):
            self.left_early.append(prompt)
            raise


class ThreadedWordLLM(WordLLM):
    """The same, without asynchronous methods of its own."""

    _agenerate = BaseLLM._agenerate
    _astream = BaseLLM._astream


def turns(messages: list[BaseMessage]) -> str:
    """Show a conversation as a text; an assistant's last message is left open."""
    lines = [f"<{message.type}>{message.text}\n" for message in messages]
    if messages[-1].type == "ai":
        return "".join(lines)[:-1]
    return "".join(lines) + "<ai>"


class WordChat(BaseChatModel):
    """A chat model that continues a trailing message of the assistant."""

    max_tokens: int = 24
    calls: list[dict[str, Any]] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "chat words"

    def _words(
        self, messages: list[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any]
    ) -> tuple[list[str], str]:
        self.calls.append({"messages": messages, "stop": stop, **kwargs})
        tokens = kwargs.get("max_tokens", self.max_tokens)
        return words_after(turns(messages), tokens, stop)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: Any = None,
        **kw: Any,
    ) -> ChatResult:
        written, why = self._words(messages, stop, kw)
        message = AIMessage(
            content=[{"type": "text", "text": word} for word in written],
            response_metadata={"finish_reason": why, "model_name": "words"},
            usage_metadata={
                "input_tokens": 3,
                "output_tokens": len(written),
                "total_tokens": 3 + len(written),
            },
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: Any = None,
        **kw: Any,
    ) -> ChatResult:
        await asyncio.sleep(0)
        return self._generate(messages, stop, **kw)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: Any = None,
        **kw: Any,
    ) -> Iterator[ChatGenerationChunk]:
        written, why = self._words(messages, stop, kw)
        for word in written:
            yield ChatGenerationChunk(message=AIMessageChunk(content=word))
        last = AIMessageChunk(
            content="", response_metadata={"finish_reason": why}, chunk_position="last"
        )
        yield ChatGenerationChunk(message=last)
