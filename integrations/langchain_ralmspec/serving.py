"""The pipeline of a `SpeculativeRAG`, for `ralmspec_plugins.serving`."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from langchain_core.documents import Document

from langchain_ralmspec.reports import ReportHandler, stats_of
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.serving.pipelines import (
    Done,
    Part,
    Question,
    Source,
    Text,
    usage_in,
)

if TYPE_CHECKING:
    from langchain_ralmspec.rag import SpeculativeRAG


class RAGPipeline:
    """Answers a server's questions with a `SpeculativeRAG`, which stays the caller's.

    A runnable whose answer is no text, because an output parser makes another object of it, has
    no place in a chat completion.
    """

    def __init__(self, rag: "SpeculativeRAG") -> None:
        """Create a pipeline."""
        self._rag = rag if rag.output == "reply" else rag.model_copy(update={"output": "reply"})

    async def ask(self, question: Question) -> AsyncGenerator[Part, None]:
        """Yield the settled text in pieces, and then the end.

        Raises:
            ConfigError: the answer is no text, or the client's settings have no effect.
        """
        handler = ReportHandler()
        settings = _settings(question)
        replies = self._rag.astream(question.text, {"callbacks": [handler]}, **settings)
        found: list[Document] = []
        async with aclosing(replies) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                found += piece.get("context", ())
                if piece.get("answer"):
                    yield _text(piece["answer"])
        report: Any = handler.reports[-1]
        yield Done(
            sources=tuple(_source(document) for document in found),
            usage=usage_in(report),
            stats=stats_of(handler),
        )

    def invalidate(self) -> None:
        """Discard cached results, after a change of the index."""
        self._rag.invalidate()

    async def close(self) -> None:
        """Do nothing: the runnable is the caller's."""


def _text(answer: Any) -> Text:
    if not isinstance(answer, str):
        raise ConfigError(
            f"a chat completion is a text, and this chain's answer is a {type(answer).__name__}"
        )
    return Text(answer)


def _settings(question: Question) -> Mapping[str, Any]:
    """Return the settings of a call that the client has set."""
    settings = {"max_tokens": question.max_tokens, "seed": question.seed}
    given: dict[str, Any] = {name: one for name, one in settings.items() if one is not None}
    return {**given, "stop": list(question.stop)} if question.stop else given


def _source(document: Document) -> Source:
    metadata = document.metadata
    title = metadata.get("title", "")
    return Source(
        document.id or "",
        document.page_content,
        title if isinstance(title, str) else "",
        None,
        metadata,
    )
