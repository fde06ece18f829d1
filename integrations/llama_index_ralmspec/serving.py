"""The pipeline of a `SpeculativeQueryEngine`, for `ralmspec_plugins.serving`."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from llama_index.core.base.response.schema import AsyncStreamingResponse
from llama_index.core.schema import MetadataMode, NodeWithScore

from llama_index_ralmspec.response import stats_of
from ralmspec_plugins.adapters.events import REPORT
from ralmspec_plugins.serving.pipelines import (
    Done,
    Part,
    Question,
    Source,
    Text,
    usage_in,
)

if TYPE_CHECKING:
    from llama_index_ralmspec.query_engine import SpeculativeQueryEngine


class QueryEnginePipeline:
    """Answers a server's questions with a `SpeculativeQueryEngine`, which stays the caller's.

    The text comes in pieces if the engine's response synthesizer streams, otherwise at once.
    """

    def __init__(self, engine: "SpeculativeQueryEngine") -> None:
        """Create a pipeline."""
        self._engine = engine.with_options(report=True)

    async def ask(self, question: Question) -> AsyncGenerator[Part, None]:
        """Yield the settled text in pieces, and then the end.

        Raises:
            ConfigError: the client's settings have no effect.
        """
        response: Any = await self._engine_for(question).aquery(question.text)
        if isinstance(response, AsyncStreamingResponse):
            pieces: Any = response.async_response_gen()
            async with aclosing(pieces):
                async for piece in pieces:
                    if piece:
                        yield Text(piece)
        elif text := str(response):
            yield Text(text)
        yield Done(
            sources=tuple(_source(node) for node in response.source_nodes),
            usage=usage_in(response.metadata[REPORT]),
            stats=stats_of(response),
        )

    def _engine_for(self, question: Question) -> "SpeculativeQueryEngine":
        """Return the engine with the settings that the client has set."""
        settings = {"max_tokens": question.max_tokens, "seed": question.seed}
        given: dict[str, Any] = {name: one for name, one in settings.items() if one is not None}
        if question.stop:
            given["stop"] = question.stop
        return self._engine.with_options(**given) if given else self._engine

    def invalidate(self) -> None:
        """Discard cached results, after a change of the index."""
        self._engine.invalidate()

    async def close(self) -> None:
        """Do nothing: the engine is the caller's."""


def _source(found: NodeWithScore) -> Source:
    node = found.node
    title = node.metadata.get("title", "")
    return Source(
        node.node_id,
        node.get_content(metadata_mode=MetadataMode.NONE),
        title if isinstance(title, str) else "",
        found.score,
        node.metadata,
    )
