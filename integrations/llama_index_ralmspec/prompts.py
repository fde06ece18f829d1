"""Prompts of nodes, question and the text so far for a host's model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from llama_index.core.base.llms.types import ChatMessage, MessageRole, TextBlock
from llama_index.core.llms import LLM
from llama_index.core.prompts import BasePromptTemplate, SelectorPromptTemplate
from llama_index.core.prompts.default_prompt_selectors import DEFAULT_TEXT_QA_PROMPT_SEL
from llama_index.core.schema import MetadataMode, NodeWithScore

from ralmspec_plugins.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prompting:
    """Formats nodes and question as a prompt, as the host's response synthesizers do.

    Args:
        text_qa_template: the prompt, with the variables `context_str` and `query_str`.
        separator: the text between two nodes.
        format_nodes: formats all nodes, instead of their own content and `separator`.
    """

    text_qa_template: BasePromptTemplate = field(default_factory=lambda: DEFAULT_TEXT_QA_PROMPT_SEL)
    separator: str = "\n\n"
    format_nodes: Callable[[list[NodeWithScore]], str] | None = None

    def __post_init__(self) -> None:
        """Check that the prompt has a variable for the nodes.

        Raises:
            ConfigError: it has none.
        """
        if not _shows(self.text_qa_template, "context_str"):
            raise ConfigError(
                "text_qa_template must have the variable {context_str} for the nodes, got the "
                f"variables {self.text_qa_template.template_vars}; map another one with the "
                "template's template_var_mappings={'context_str': ...}"
            )

    def context(self, nodes: Sequence[NodeWithScore]) -> str:
        """Return the nodes formatted for the model."""
        if self.format_nodes is not None:
            return self.format_nodes(list(nodes))
        shown = (one.node.get_content(metadata_mode=MetadataMode.LLM) for one in nodes)
        return self.separator.join(shown)

    def text(self, llm: LLM, question: str, context: str) -> str:
        """Return the prompt of a model that completes a text, formatted by the model."""
        return llm._get_prompt(  # noqa: SLF001 as `predict` does; there is no public method
            self.text_qa_template, context_str=context, query_str=question
        )

    def messages(self, llm: LLM, question: str, context: str) -> list[ChatMessage]:
        """Return the prompt's messages for a chat model, with the model's own system prompt."""
        return llm._get_messages(  # noqa: SLF001 as above
            self.text_qa_template, context_str=context, query_str=question
        )

    def shown(self, llm: LLM, question: str, context: str) -> str:
        """Return the prompt as one text; a chat model formats its messages as one.

        This is for models that complete a text, and chat models that format their messages so.
        """
        if not llm.metadata.is_chat_model:
            return self.text(llm, question, context)
        show: Callable[[list[ChatMessage]], str] | None = llm.messages_to_prompt
        assert show is not None
        return show(self.messages(llm, question, context))


def continued(messages: Sequence[ChatMessage], text: str) -> tuple[list[ChatMessage], bool]:
    """Append the text so far to a chat prompt, as the assistant's own message.

    If the prompt ends with the beginning of an answer, the text is appended to that. Also return
    whether there is such a message, which the model continues.
    """
    begun = messages[-1] if messages else None
    if begun is not None and begun.role == MessageRole.ASSISTANT:
        last = begun.blocks[-1:]
        if last and isinstance(last[0], TextBlock):
            blocks = [*begun.blocks[:-1], TextBlock(text=last[0].text + text)]
        else:
            blocks = [*begun.blocks, TextBlock(text=text)]
        return [*messages[:-1], begun.model_copy(update={"blocks": blocks})], True
    if not text:
        return list(messages), False
    return [*messages, ChatMessage(role=MessageRole.ASSISTANT, content=text)], True


def _shows(template: BasePromptTemplate, name: str) -> bool:
    if isinstance(template, SelectorPromptTemplate):
        return _shows(template.default_template, name)
    mapped = (template.template_var_mappings or {}).get(name, name)
    return mapped in template.template_vars or bool(template.function_mappings)
