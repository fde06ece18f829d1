"""One call of a host's model, by any of its eight methods, and what is read from its output."""

from collections.abc import (
    Mapping,
    Sequence,
)
from contextlib import aclosing, closing
from dataclasses import dataclass
from typing import Any, TypeAlias

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse
from llama_index.core.llms import LLM

from ralmspec_plugins.adapters.events import aclosable, closable
from ralmspec_plugins.adapters.text_model import Show, came_to_an_end
from ralmspec_plugins.adapters.text_state import Usage, Written
from ralmspec_plugins.protocols import Progress

Reply: TypeAlias = ChatResponse | CompletionResponse

_ASKED = ("prompt_tokens", "input_tokens", "prompt_eval_count")
_WRITTEN = ("completion_tokens", "output_tokens", "eval_count")


@dataclass(frozen=True, slots=True)
class HostCall:
    """A call of a host's model: what it is given, and with which arguments.

    Args:
        llm: the model, with the settings of this call.
        given: a text that is completed as it is, or the messages of a chat.
        arguments: how far it is to write, where to stop.
        recording: of the events of this call, for the draft that it writes.
    """

    llm: LLM
    given: str | Sequence[ChatMessage]
    arguments: Mapping[str, Any]
    recording: Any = None

    def invoke(self) -> Written:
        """Call it and wait."""
        reply: Reply
        if isinstance(self.given, str):
            reply = self.llm.complete(self.given, formatted=True, **self.arguments)
        else:
            reply = self.llm.chat(self.given, **self.arguments)
        return self._written(text_of(reply), [reply])

    async def ainvoke(self) -> Written:
        """Call it and await it."""
        reply: Reply
        if isinstance(self.given, str):
            reply = await self.llm.acomplete(self.given, formatted=True, **self.arguments)
        else:
            reply = await self.llm.achat(self.given, **self.arguments)
        return self._written(text_of(reply), [reply])

    def stream(self, progress: Progress, show: Show) -> Written:
        """Have it stream, and show what came so far, again with each piece.

        The stream is read to its end even where enough has come: the host's own end
        event depends on it.

        Raises:
            Cancelled: `progress` was cancelled; the stream is closed.
        """
        replies: Any
        if isinstance(self.given, str):
            replies = self.llm.stream_complete(self.given, formatted=True, **self.arguments)
        else:
            replies = self.llm.stream_chat(self.given, **self.arguments)
        came: list[Reply] = []
        text = ""
        with closing(closable(replies)) as pieces:
            for reply in pieces:
                progress.check()
                came.append(reply)
                text += reply.delta or ""
                show(Written(text, recording=self.recording))
        return self._written(text, came)

    async def astream(self, progress: Progress, show: Show) -> Written:
        """Have it stream on an event loop, in the same way.

        Raises:
            Cancelled: `progress` was cancelled; the stream is closed.
        """
        replies: Any
        if isinstance(self.given, str):
            replies = await self.llm.astream_complete(self.given, formatted=True, **self.arguments)
        else:
            replies = await self.llm.astream_chat(self.given, **self.arguments)
        came: list[Reply] = []
        text = ""
        async with aclosing(aclosable(replies)) as pieces:
            async for reply in pieces:
                progress.check()
                came.append(reply)
                text += reply.delta or ""
                show(Written(text, recording=self.recording))
        return self._written(text, came)

    def _written(self, text: str, came: Sequence[Reply]) -> Written:
        """Read why it ended and what it counted: from the last reply that says so."""
        said = (self._ended(reply) for reply in reversed(came))
        ended = next((one for one in said if one is not None), None)
        counts = (usage_of(reply) for reply in reversed(came))
        usage = next((one for one in counts if one != Usage()), Usage())
        return Written(text, ended, usage, came[-1] if came else None, self.recording)

    def _ended(self, reply: Reply) -> bool | None:
        ended = came_to_an_end(said_of(reply))
        tokens = reply.raw.get("model_output") if isinstance(reply.raw, Mapping) else None
        if ended is not None or tokens is None:
            return ended
        return _last_is_an_end(self.llm, tokens)


def text_of(reply: Reply) -> str:
    """Give the text of a model's reply: of content blocks, the text blocks alone."""
    if isinstance(reply, ChatResponse):
        return reply.message.content or ""
    return reply.text


def said_of(reply: Reply) -> dict[str, Any]:
    """Gather what goes with a reply, wherever its server puts it."""
    raw = reply.raw
    places = [reply.additional_kwargs, raw, _get(raw, "delta")]
    for name in ("choices", "candidates"):
        found = _get(raw, name)
        if isinstance(found, Sequence) and found:
            places.append(found[0])
    if isinstance(reply, ChatResponse):
        places.append(reply.message.additional_kwargs)
    names = ("finish_reason", "stop_reason", "done_reason")
    said = ((name, _get(place, name)) for place in places for name in names)
    return {name: value for name, value in said if value is not None}


def usage_of(reply: Reply) -> Usage:
    """Read the tokens that a reply counts; none where it does not say."""
    for place in (reply.additional_kwargs, _get(reply.raw, "usage"), reply.raw):
        asked, written = _count(place, _ASKED), _count(place, _WRITTEN)
        if asked or written:
            return Usage(asked, written, _count(place, ("total_tokens",)) or asked + written)
    return Usage()


def _count(place: Any, names: Sequence[str]) -> int:
    found = next((value for name in names if (value := _get(place, name)) is not None), 0)
    return found if isinstance(found, int) else 0


def _get(place: Any, name: str) -> Any:
    """Look a name up in a mapping or in an object: hosts give either."""
    return place.get(name) if isinstance(place, Mapping) else getattr(place, name, None)


def _last_is_an_end(llm: Any, tokens: Any) -> bool:
    """Say whether a local Hugging Face model's last token ends its texts."""
    own = llm._model.generation_config.eos_token_id  # noqa: SLF001 there is no public way
    ends = llm.generate_kwargs.get("eos_token_id", own)
    listed = ends if isinstance(ends, list) else [ends]
    return int(tokens[0][-1]) in (*listed, *llm.stopping_ids)
