"""Answers of this package's models as LangChain's results and chunks."""

from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import aclosing, closing

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.outputs import Generation, GenerationChunk, LLMResult

from ralmspec_plugins.adapters.events import REPORT
from ralmspec_plugins.adapters.local_model import taken_by
from ralmspec_plugins.engine.streams import AnswerStream, AsyncAnswerStream
from ralmspec_plugins.types import Answer


def result_of(answers: Sequence[Answer], model_name: str) -> LLMResult:
    """Return the host's result, with token counts as its handlers expect them."""
    made = [Generation(text=one.text, generation_info=taken_by(one)) for one in answers]
    usages = [(one.generation_info or {})[REPORT]["usage"] for one in made]
    counted = {
        "prompt_tokens": sum(one["input_tokens"] for one in usages),
        "completion_tokens": sum(one["output_tokens"] for one in usages),
        "total_tokens": sum(one["total_tokens"] for one in usages),
    }
    return LLMResult(
        generations=[[one] for one in made],
        llm_output={"token_usage": counted, "model_name": model_name},
    )


def chunks_of(
    stream: AnswerStream, run_manager: CallbackManagerForLLMRun | None
) -> Generator[GenerationChunk, None, None]:
    """Yield a stream's pieces, and a last empty one with the report."""
    with closing(stream) as pieces:
        for piece in pieces:
            chunk = GenerationChunk(text=piece)
            if run_manager is not None:
                run_manager.on_llm_new_token(piece, chunk=chunk)
            yield chunk
        yield GenerationChunk(text="", generation_info=taken_by(pieces.answer))


async def achunks_of(
    stream: AsyncAnswerStream, run_manager: AsyncCallbackManagerForLLMRun | None
) -> AsyncGenerator[GenerationChunk, None]:
    """Yield a stream's pieces and the report on an event loop."""
    async with aclosing(stream) as pieces:
        async for piece in pieces:
            chunk = GenerationChunk(text=piece)
            if run_manager is not None:
                await run_manager.on_llm_new_token(piece, chunk=chunk)
            yield chunk
        yield GenerationChunk(text="", generation_info=taken_by(pieces.answer))
