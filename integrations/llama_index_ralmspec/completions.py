"""What a model of ours has written, as LlamaIndex' responses."""

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
    """Make the host's response of a whole text, with tokens where its counters look for them."""
    taken = taken_by(answer)
    return CompletionResponse(
        text=answer.text, delta=delta, raw={**taken, "usage": taken[REPORT]["usage"]}
    )


def responses_of(stream: AnswerStream) -> CompletionResponseGen:
    """Give the text so far with each piece, and at last what it took."""
    text = ""
    with closing(stream) as pieces:
        for piece in pieces:
            text += piece
            yield CompletionResponse(text=text, delta=piece)
        yield response_of(pieces.answer, delta="")


async def aresponses_of(stream: AsyncAnswerStream) -> CompletionResponseAsyncGen:
    """Do the same on an event loop."""
    text = ""
    async with aclosing(stream) as pieces:
        async for piece in pieces:
            text += piece
            yield CompletionResponse(text=text, delta=piece)
        yield response_of(pieces.answer, delta="")
