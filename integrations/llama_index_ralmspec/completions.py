"""The calls of LlamaIndex on this package's models, and their answers as its responses."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import aclosing, closing
from typing import Any

from llama_index.core.base.llms.generic_utils import (
    astream_completion_response_to_chat_response,
    completion_response_to_chat_response,
)
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
)
from llama_index.core.llms import CustomLLM
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from typing_extensions import override

from ralmspec_plugins.adapters.events import REPORT
from ralmspec_plugins.adapters.fingerprint import overrides_only
from ralmspec_plugins.adapters.local_model import taken_by
from ralmspec_plugins.engine.streams import AnswerStream, AsyncAnswerStream
from ralmspec_plugins.types import Answer


def response_of(answer: Answer, delta: str | None = None) -> CompletionResponse:
    """Return the host's response of a whole text, with token counts for its counters."""
    taken = taken_by(answer)
    return CompletionResponse(
        text=answer.text, delta=delta, raw={**taken, "usage": taken[REPORT]["usage"]}
    )


def responses_of(stream: AnswerStream) -> CompletionResponseGen:
    """Yield a stream's pieces with the text so far, and a last empty one with the report."""
    text = ""
    with closing(stream) as pieces:
        for piece in pieces:
            text += piece
            yield CompletionResponse(text=text, delta=piece)
        yield response_of(pieces.answer, delta="")


async def aresponses_of(stream: AsyncAnswerStream) -> CompletionResponseAsyncGen:
    """Yield a stream's pieces and the report on an event loop."""
    text = ""
    async with aclosing(stream) as pieces:
        async for piece in pieces:
            text += piece
            yield CompletionResponse(text=text, delta=piece)
        yield response_of(pieces.answer, delta="")


class AnsweringLLM(CustomLLM):
    """Base class of this package's models: the host's calls over four methods of its own.

    They receive the text to continue, and a call's arguments, which they check. A subclass that
    overrides a synchronous call of the host changes the asynchronous one, too, as in the host.
    """

    def __init__(self, **given: Any) -> None:
        """Set the fields, those of the host included."""
        super().__init__(**given)

    def _answer(self, shown: str, given: Mapping[str, Any]) -> Answer:
        raise NotImplementedError

    async def _aanswer(self, shown: str, given: Mapping[str, Any]) -> Answer:
        raise NotImplementedError

    def _answer_stream(self, shown: str, given: Mapping[str, Any]) -> AnswerStream:
        raise NotImplementedError

    async def _aanswer_stream(self, shown: str, given: Mapping[str, Any]) -> AsyncAnswerStream:
        raise NotImplementedError

    def _shown(self, prompt: str, *, formatted: bool) -> str:
        """Return the text to continue, which the host's own parts have formatted already."""
        assert self.completion_to_prompt is not None, "the host sets it"
        return prompt if formatted else self.completion_to_prompt(prompt)

    def _told(self, messages: Sequence[ChatMessage]) -> str:
        """Return messages formatted as one text."""
        assert self.messages_to_prompt is not None, "set at construction"
        return self.messages_to_prompt(messages)

    @llm_completion_callback()
    @override
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Continue a text."""
        shown = self._shown(prompt, formatted=formatted)
        return response_of(self._answer(shown, kwargs))

    @llm_completion_callback()
    @override
    async def acomplete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponse:
        """Continue a text without blocking the event loop."""
        if overrides_only(self, AnsweringLLM, "complete", "acomplete"):
            return await asyncio.to_thread(self.complete, prompt, formatted=formatted, **kwargs)
        shown = self._shown(prompt, formatted=formatted)
        return response_of(await self._aanswer(shown, kwargs))

    @llm_completion_callback()
    @override
    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseGen:
        """Yield the continuation of a text in pieces; the last one is empty and has `raw`."""
        return responses_of(self._answer_stream(self._shown(prompt, formatted=formatted), kwargs))

    @llm_completion_callback()
    @override
    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        """Yield the continuation of a text in pieces without blocking the event loop."""
        if overrides_only(self, AnsweringLLM, "stream_complete", "astream_complete"):
            completions: CompletionResponseAsyncGen = await super().astream_complete(
                prompt, formatted=formatted, **kwargs
            )
            return completions
        shown = self._shown(prompt, formatted=formatted)
        return aresponses_of(await self._aanswer_stream(shown, kwargs))

    @llm_chat_callback()
    @override
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer messages without blocking the event loop, unlike the host's default."""
        if overrides_only(self, AnsweringLLM, "chat", "achat"):
            return await asyncio.to_thread(self.chat, messages, **kwargs)
        response = await self.acomplete(self._told(messages), formatted=True, **kwargs)
        return completion_response_to_chat_response(response)

    @llm_chat_callback()
    @override
    async def astream_chat(
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> ChatResponseAsyncGen:
        """Yield the answer to messages in pieces without blocking the event loop."""
        if overrides_only(self, AnsweringLLM, "stream_chat", "astream_chat"):
            chats: ChatResponseAsyncGen = await super().astream_chat(messages, **kwargs)
            return chats
        responses = await self.astream_complete(self._told(messages), formatted=True, **kwargs)
        return astream_completion_response_to_chat_response(responses)
