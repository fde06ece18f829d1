"""One call of a host's model, by any of its four methods, and what is read from its output."""

from collections.abc import Mapping
from contextlib import aclosing, closing
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.globals import get_llm_cache
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import LLMResult
from langchain_core.prompt_values import PromptValue, StringPromptValue
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import ensure_config, merge_configs

from langchain_ralmspec.models import Unwrapped
from ralmspec_plugins.adapters.events import aclosable, closable
from ralmspec_plugins.adapters.text_model import Show, came_to_an_end
from ralmspec_plugins.adapters.text_state import Usage, Written
from ralmspec_plugins.protocols import Progress


@dataclass(frozen=True, slots=True)
class HostCall:
    """A call of a host's model: what it is given, and with which settings.

    Args:
        llm: the model as the user gave it, wrappers included.
        inner: what stands inside of the wrappers, where that is a model that gives a bare
            text, which does not say why it ended.
        value: what it is given.
        arguments: how far it is to write, where to stop.
        config: the host's own; None takes over what is around this call.
        recording: of the events of this call, for the draft that it writes.
    """

    llm: Runnable[Any, Any]
    inner: Unwrapped | None
    value: Any
    arguments: Mapping[str, Any]
    config: RunnableConfig | None = None
    recording: Any = None

    def invoke(self) -> Written:
        """Call it and wait."""
        end, config = self._listening()
        output = self.llm.invoke(self.value, config, **self.arguments)
        if (again := self._cached(end)) is not None:
            end.read(again.model.generate_prompt([_prompt(self.value)], **again.arguments))
        return self._written(output, end)

    async def ainvoke(self) -> Written:
        """Call it and await it."""
        end, config = self._listening()
        output = await self.llm.ainvoke(self.value, config, **self.arguments)
        if (again := self._cached(end)) is not None:
            prompts = [_prompt(self.value)]
            end.read(await again.model.agenerate_prompt(prompts, **again.arguments))
        return self._written(output, end)

    def stream(self, progress: Progress, show: Show) -> Written:
        """Have it stream, and show what came so far, again with each piece.

        The stream is read to its end even where enough has come: the host's own end
        event depends on it.

        Raises:
            Cancelled: `progress` was cancelled; the stream is closed.
        """
        end, config = self._listening()
        came = _Came(self.recording)
        with closing(closable(self.llm.stream(self.value, config, **self.arguments))) as chunks:
            for chunk in chunks:
                progress.check()
                show(came.with_one_more(chunk))
        return self._written(came.output, end)

    async def astream(self, progress: Progress, show: Show) -> Written:
        """Have it stream on an event loop, in the same way.

        Raises:
            Cancelled: `progress` was cancelled; the stream is closed.
        """
        end, config = self._listening()
        came = _Came(self.recording)
        chunks = aclosable(self.llm.astream(self.value, config, **self.arguments))
        async with aclosing(chunks):
            async for chunk in chunks:
                progress.check()
                show(came.with_one_more(chunk))
        return self._written(came.output, end)

    def _listening(self) -> "tuple[_End, RunnableConfig | None]":
        end = _End()
        if self.inner is None:
            return end, self.config
        return end, merge_configs(ensure_config(self.config), RunnableConfig(callbacks=[end]))

    def _cached(self, end: "_End") -> Unwrapped | None:
        """Say how to ask the host's cache again, if it answered: its hits have no events.

        How a text ended must not depend on whether it was in the cache.
        """
        if self.inner is None or end.heard:
            return None
        cache = getattr(self.inner.model, "cache", None)
        if cache is False or (not cache and get_llm_cache() is None):
            return None
        arguments = {**self.inner.arguments, **self.arguments, "callbacks": []}
        return Unwrapped(self.inner.model, arguments, dynamic=False)

    def _written(self, output: Any, end: "_End") -> Written:
        ended, usage = end.ended, Usage()
        if isinstance(output, BaseMessage):
            ended = came_to_an_end(output.response_metadata)
        if isinstance(output, AIMessage) and output.usage_metadata is not None:
            counted = output.usage_metadata
            usage = Usage(
                counted["input_tokens"], counted["output_tokens"], counted["total_tokens"]
            )
        return Written(text_of(output), ended, usage, output, self.recording)


def text_of(output: Any) -> str:
    """Give the text of a model's output: of content blocks, the text blocks alone."""
    if isinstance(output, BaseMessage):
        return str(output.text)
    return output if isinstance(output, str) else str(output)


class _Came:
    """What a stream has given so far."""

    def __init__(self, recording: Any) -> None:
        self._chunks: list[Any] = []
        self._text = ""
        self._recording = recording

    def with_one_more(self, chunk: Any) -> Written:
        self._chunks.append(chunk)
        if isinstance(chunk, str | BaseMessage):  # another thing's text is known at the end
            self._text += text_of(chunk)
        return Written(self._text, recording=self._recording)

    @property
    def output(self) -> Any:
        """The sum of the chunks, as hosts make it; a text of nothing where none came."""
        if self._chunks and isinstance(self._chunks[0], str):
            return "".join(self._chunks)
        if len(self._chunks) > 1 and all(type(one) is AIMessageChunk for one in self._chunks):
            first: Any = self._chunks[0]
            return first + self._chunks[1:]  # all at once, as hosts do: two by two is n * n
        return reduce(add, self._chunks) if self._chunks else ""


class _End(BaseCallbackHandler):
    """Reads from a call's end event why it ended."""

    run_inline = True

    def __init__(self) -> None:
        self.heard = False
        self.ended: bool | None = None

    def on_llm_end(self, response: LLMResult, **kwargs: Any) -> None:
        self.read(response)

    def read(self, response: LLMResult) -> None:
        self.heard = True
        for generations in response.generations[:1]:
            for generation in generations[:1]:
                self.ended = came_to_an_end(generation.generation_info)


def _prompt(value: PromptValue | str) -> PromptValue:
    return StringPromptValue(text=value) if isinstance(value, str) else value
