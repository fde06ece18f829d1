"""Prompts of documents, inputs and the text so far for a host's model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain_core.documents import Document
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.prompt_values import PromptValue
from langchain_core.prompts import BasePromptTemplate, PromptTemplate, format_document
from langchain_core.runnables import RunnableConfig

from langchain_ralmspec.configs import HostContext
from langchain_ralmspec.documents import document_of
from ralmspec_plugins.adapters.documents import HostPassage
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.types import Passage, Request

DEFAULT_PROMPT = PromptTemplate.from_template(
    "Answer the question with what is said in the context.\n\n"
    "Context:\n{context}\n\nQuestion: {input}\nAnswer:"
)
DEFAULT_DOCUMENT_PROMPT = PromptTemplate.from_template("{page_content}")
_UNHEARD = RunnableConfig(callbacks=[])  # the prompt's own run is not reported


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prompting:
    """Formats documents and inputs as a prompt, as in `create_stuff_documents_chain`.

    Args:
        prompt: the prompt; its variables are `context` and `input` by default.
        document_prompt: formats one document.
        separator: the text between two documents.
        format_docs: formats all documents, instead of `document_prompt` and `separator`.
        document_variable: the prompt's variable for the documents.
        input_key: the prompt's variable for the question.
    """

    prompt: BasePromptTemplate[Any] = field(default_factory=lambda: DEFAULT_PROMPT)
    document_prompt: BasePromptTemplate[Any] = field(
        default_factory=lambda: DEFAULT_DOCUMENT_PROMPT
    )
    separator: str = "\n\n"
    format_docs: Callable[[list[Document]], str] | None = None
    document_variable: str = "context"
    input_key: str = "input"

    def __post_init__(self) -> None:
        """Check that the prompt has a variable for the documents.

        Raises:
            ConfigError: it has none.
        """
        if self.document_variable not in self.prompt.input_variables:
            raise ConfigError(
                f"the prompt must have the variable {self.document_variable!r} for the documents, "
                f"got the variables {self.prompt.input_variables}; name another one with "
                "document_variable_name="
            )

    def context(self, passages: Sequence[Passage]) -> str:
        """Return the documents formatted for the model."""
        documents = [_document(passage) for passage in passages]
        if self.format_docs is not None:
            return self.format_docs(documents)
        return self.separator.join(self.shown(document) for document in documents)

    def shown(self, document: Document) -> str:
        """Return one formatted document.

        Raises:
            ValueError: the host's own, if a document lacks a variable of its prompt.
        """
        return format_document(document, self.document_prompt)

    def same_passages(self, one: Sequence[Passage], other: Sequence[Passage]) -> bool:
        """Return whether both are formatted equally; false if an error occurs."""
        try:
            return self.context(one) == self.context(other)
        except Exception:  # noqa: BLE001 the call itself raises it
            return False

    def inputs(self, request: Request) -> Mapping[str, Any]:
        """Return the prompt's variables besides the documents."""
        context: HostContext | None = request.context
        return {self.input_key: request.prompt} if context is None else context.inputs

    def value(self, request: Request, context: str) -> PromptValue:
        """Return the formatted prompt.

        Raises:
            KeyError: the host's own, if an input is missing.
        """
        variables = self._variables(request, context)
        if self._is_filled_in(variables):
            return self.prompt.format_prompt(**variables)
        return self.prompt.invoke(variables, _UNHEARD)

    async def avalue(self, request: Request, context: str) -> PromptValue:
        """Return the formatted prompt on an event loop."""
        variables = self._variables(request, context)
        if self._is_filled_in(variables):
            return await self.prompt.aformat_prompt(**variables)
        return await self.prompt.ainvoke(variables, _UNHEARD)

    def _is_filled_in(self, variables: Mapping[str, Any]) -> bool:
        """Return whether `invoke` only formats the prompt; reporting a run costs ten times as much.

        If a variable is missing, `invoke` raises the host's own error.
        """
        kind = type(self.prompt)
        if kind.invoke is not BasePromptTemplate.invoke:
            return False
        if kind.ainvoke is not BasePromptTemplate.ainvoke:
            return False
        return set(self.prompt.input_variables) <= variables.keys()

    def _variables(self, request: Request, context: str) -> dict[str, Any]:
        return {**self.inputs(request), self.document_variable: context}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChainInput(Prompting):
    """Passes input and documents to the rest of a chain, instead of a prompt."""

    def __post_init__(self) -> None:
        """Check nothing: the prompt is not used."""

    def context(self, passages: Sequence[Passage]) -> Any:
        """Return new documents for each call."""
        return [_document(passage) for passage in passages]

    def value(self, request: Request, context: Any) -> Any:
        """Return the inputs and the documents as one dict."""
        return {**self.inputs(request), "documents": context}

    async def avalue(self, request: Request, context: Any) -> Any:
        """Return the inputs and the documents as one dict."""
        return self.value(request, context)


def continued(
    value: PromptValue, text: str, mark: Mapping[str, Any]
) -> tuple[PromptValue | list[BaseMessage], bool]:
    """Append the text so far to a chat prompt, as the assistant's own message.

    If the prompt ends with the beginning of an answer, the text is appended to that. Also return
    whether there is such a message, which the model continues.
    """
    messages = value.to_messages()
    begun = messages[-1] if messages else None
    if isinstance(begun, AIMessage) and not begun.tool_calls:
        marked = {**begun.additional_kwargs, **mark}
        whole = begun.model_copy(
            update={"content": _joined(begun.content, text), "additional_kwargs": marked}
        )
        return [*messages[:-1], whole], True
    if not text:
        return value, False
    return [*messages, AIMessage(content=text, additional_kwargs=dict(mark))], True


def _joined(content: str | list[Any], text: str) -> str | list[Any]:
    if isinstance(content, str):
        return content + text
    return [*content, {"type": "text", "text": text}] if text else content


def _document(passage: Passage) -> Document:
    if isinstance(passage, HostPassage):
        return document_of(passage)
    metadata = dict(passage.metadata)
    if passage.title:
        metadata.setdefault("title", passage.title)
    return Document(page_content=passage.text, metadata=metadata, id=passage.id)
