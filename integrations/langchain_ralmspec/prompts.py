"""From documents and the text so far to what a host's model is given."""

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
_UNHEARD = RunnableConfig(callbacks=[])  # the prompt's own run is none of the model's events


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prompting:
    """How documents and inputs become a prompt: as in `create_stuff_documents_chain`.

    Args:
        prompt: the prompt; `context` and `input` are its variables unless said otherwise.
        document_prompt: how one document is shown.
        separator: what stands between two documents.
        format_docs: shows all documents, in the place of `document_prompt` and `separator`.
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
        """Refuse a prompt that does not show the documents.

        Raises:
            ConfigError: it has no variable for them.
        """
        if self.document_variable not in self.prompt.input_variables:
            raise ConfigError(
                f"the prompt must have the variable {self.document_variable!r} for the documents, "
                f"got the variables {self.prompt.input_variables}; name another one with "
                "document_variable="
            )

    def context(self, passages: Sequence[Passage]) -> str:
        """Show the documents, as the model sees them."""
        documents = [_document(passage) for passage in passages]
        if self.format_docs is not None:
            return self.format_docs(documents)
        return self.separator.join(self.shown(document) for document in documents)

    def shown(self, document: Document) -> str:
        """Show one document.

        Raises:
            ValueError: the host's own, where a document lacks what its prompt shows.
        """
        return format_document(document, self.document_prompt)

    def same_passages(self, one: Sequence[Passage], other: Sequence[Passage]) -> bool:
        """Say whether a model sees the same in both; what cannot be shown is not the same."""
        try:
            return self.context(one) == self.context(other)
        except Exception:  # noqa: BLE001 raised again where it counts, by the call itself
            return False

    def inputs(self, request: Request) -> Mapping[str, Any]:
        """Give the prompt's variables besides the documents."""
        context: HostContext | None = request.context
        return {self.input_key: request.prompt} if context is None else context.inputs

    def value(self, request: Request, context: str) -> PromptValue:
        """Fill the prompt in.

        Raises:
            KeyError: the host's own, where an input is missing.
        """
        variables = self._variables(request, context)
        if self._is_filled_in(variables):
            return self.prompt.format_prompt(**variables)
        return self.prompt.invoke(variables, _UNHEARD)

    async def avalue(self, request: Request, context: str) -> PromptValue:
        """Fill the prompt in, on an event loop."""
        variables = self._variables(request, context)
        if self._is_filled_in(variables):
            return await self.prompt.aformat_prompt(**variables)
        return await self.prompt.ainvoke(variables, _UNHEARD)

    def _is_filled_in(self, variables: Mapping[str, Any]) -> bool:
        """Whether `invoke` only fills the prompt in: telling of a run costs ten times that.

        Where a variable is missing `invoke` raises the host's own error.
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
    """Gives the rest of a chain its input and documents as they are, in place of a prompt."""

    def __post_init__(self) -> None:
        """Leave the prompt alone: it is not used."""

    def context(self, passages: Sequence[Passage]) -> Any:
        """Give documents of its own to each call."""
        return [_document(passage) for passage in passages]

    def value(self, request: Request, context: Any) -> Any:
        """Lay both together."""
        return {**self.inputs(request), "documents": context}

    async def avalue(self, request: Request, context: Any) -> Any:
        """Do the same on an event loop."""
        return self.value(request, context)


def continued(
    value: PromptValue, text: str, mark: Mapping[str, Any]
) -> tuple[PromptValue | list[BaseMessage], bool]:
    """Put the text so far behind a chat prompt, as the assistant's own message.

    A prompt that ends with the beginning of an answer has the text appended to it.
    Says too whether there is such a message, which the model is to continue.
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
