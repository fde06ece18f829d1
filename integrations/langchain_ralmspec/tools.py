"""A retriever as a tool of an agent, with guesses of its results."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from langchain_core.documents import Document
from langchain_core.prompts import BasePromptTemplate, PromptTemplate, format_document
from langchain_core.runnables import Runnable
from langchain_core.tools import StructuredTool, create_retriever_tool
from pydantic import PrivateAttr

from langchain_ralmspec.retriever import SpeculativeRetriever
from ralmspec_plugins.adapters.engines import OwnPool
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.speculators.passage_cache import SharedPassageCache
from ralmspec_plugins.speculators.query_cache import QueryCache


class SpeculativeRetrieverTool(StructuredTool):
    """A retriever tool that can guess its results before its retriever has searched.

    `SpeculativeTools` uses its guesses, and treats it as read-only.
    """

    read_only: ClassVar[bool] = True

    _retriever: SpeculativeRetriever = PrivateAttr()
    _replica: Runnable[Any, Any] | None = PrivateAttr(default=None)
    _show: Callable[[list[Document]], str] = PrivateAttr()

    def guess_call(self, call: Mapping[str, Any]) -> str | None:
        """Return the content that a call is expected to return, or `None`."""
        query = call["args"]["query"]
        documents = self._retriever.guess(query)
        if documents is None and self._replica is not None:
            documents = self._replica.invoke(query)
        return self._content(documents)

    async def aguess_call(self, call: Mapping[str, Any]) -> str | None:
        """Return the expected content of a call on an event loop, or `None`."""
        query = call["args"]["query"]
        documents = await self._retriever.aguess(query)
        if documents is None and self._replica is not None:
            documents = await self._replica.ainvoke(query)
        return self._content(documents)

    def _content(self, documents: list[Document] | None) -> str | None:
        return None if documents is None else self._show(documents)


def speculative_tool(
    retriever: Runnable[Any, Any],
    name: str = "search",
    description: str = "Search the documents and return the passages that fit best.",
    *,
    document_prompt: BasePromptTemplate[str] | None = None,
    document_separator: str = "\n\n",
    replica: Runnable[Any, Any] | None = None,
    memo: QueryCache | None = None,
    pool: SharedPassageCache | None = None,
    **options: Any,
) -> SpeculativeRetrieverTool:
    """Return a tool over a retriever, with the documents as its artifact.

    It returns the results of `create_retriever_tool(..., response_format="content_and_artifact")`.

    >>> from langchain_core.embeddings import DeterministicFakeEmbedding
    >>> from langchain_core.vectorstores import InMemoryVectorStore
    >>> store = InMemoryVectorStore(DeterministicFakeEmbedding(size=8))
    >>> _ = store.add_texts(["The fox is red."])
    >>> tool = speculative_tool(store.as_retriever())
    >>> tool.invoke({"query": "Which colour?"})
    'The fox is red.'

    Args:
        retriever: a `SpeculativeRetriever`, or another retriever, which is wrapped in one.
        name: the name of the tool.
        description: the description of the tool for the model.
        document_prompt: formats one document.
        document_separator: the text between two documents.
        replica: a cheap retriever over the same documents, for guesses; it must return as many.
        memo: caches results, which are exact guesses.
        pool: collects the documents found; the best of them are a guess. A new one by default,
            which is used over known classes only: a retriever of your own may read the current
            user where it cannot be seen.
        options: further fields of the `SpeculativeRetriever`.

    Raises:
        ConfigError: an argument is unknown, or of another type.
    """
    _check(name, description, document_prompt, document_separator, replica)
    if not isinstance(retriever, SpeculativeRetriever):
        pool = OwnPool() if pool is None else pool
        retriever = SpeculativeRetriever(retriever=retriever, memo=memo, pool=pool, **options)
    shown = document_prompt or PromptTemplate.from_template("{page_content}")
    made = create_retriever_tool(
        retriever,
        name,
        description,
        document_prompt=shown,
        document_separator=document_separator,
        response_format="content_and_artifact",
    )
    tool = SpeculativeRetrieverTool(
        name=name,
        description=description,
        func=made.func,
        coroutine=made.coroutine,
        args_schema=made.args_schema,
        response_format="content_and_artifact",
    )

    def show(documents: list[Document]) -> str:
        return document_separator.join(format_document(one, shown) for one in documents)

    tool._retriever, tool._replica, tool._show = retriever, replica, show  # noqa: SLF001
    return tool


def _check(
    name: object, description: object, prompt: object, separator: object, replica: object
) -> None:
    """Check arguments that the host would use, or that a failed guess would hide.

    Raises:
        ConfigError: one of them has another type.
    """
    texts = {"name": name, "description": description, "document_separator": separator}
    for called, text in texts.items():
        if not isinstance(text, str):
            raise ConfigError(f"{called} must be a text, got {text!r}")
    if not isinstance(prompt, BasePromptTemplate | None):
        raise ConfigError(f"document_prompt must be a prompt template or None, got {prompt!r}")
    if not isinstance(replica, Runnable | None):
        raise ConfigError(f"replica must be a retriever or None, got {replica!r}")
