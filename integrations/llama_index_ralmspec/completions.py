"""Answers of this package's models as LlamaIndex' responses."""

from contextlib import aclosing, closing

from llama_index.core.base.llms.types import (
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
)

from ralmspec_plugins.adapters.events import REPORT
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
