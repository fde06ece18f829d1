"""From nodes and the text so far to what a host's model is given."""

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
    """How nodes and question become a prompt: as the host's response synthesizers do it.

    Args:
        text_qa_template: the prompt, with the variables `context_str` and `query_str`.
        separator: what stands between two nodes.
        format_nodes: shows all nodes, in the place of their own content and `separator`.
    """

    text_qa_template: BasePromptTemplate = field(default_factory=lambda: DEFAULT_TEXT_QA_PROMPT_SEL)
    separator: str = "\n\n"
    format_nodes: Callable[[list[NodeWithScore]], str] | None = None

    def __post_init__(self) -> None:
        """Refuse a prompt that does not show the nodes.

        Raises:
            ConfigError: it has no variable for them.
        """
        if not _shows(self.text_qa_template, "context_str"):
            raise ConfigError(
                "text_qa_template must have the variable {context_str} for the nodes, got the "
                f"variables {self.text_qa_template.template_vars}; map another one with the "
                "template's template_var_mappings={'context_str': ...}"
            )

    def context(self, nodes: Sequence[NodeWithScore]) -> str:
        """Show the nodes, as the model sees them."""
        if self.format_nodes is not None:
            return self.format_nodes(list(nodes))
        shown = (one.node.get_content(metadata_mode=MetadataMode.LLM) for one in nodes)
        return self.separator.join(shown)

    def text(self, llm: LLM, question: str, context: str) -> str:
        """Fill the prompt in for a model that completes a text, with the model's own frame."""
        return llm._get_prompt(  # noqa: SLF001 what `predict` does, and there is no public way
            self.text_qa_template, context_str=context, query_str=question
        )

    def messages(self, llm: LLM, question: str, context: str) -> list[ChatMessage]:
        """Fill the prompt in for a chat model, with the model's own system prompt."""
        return llm._get_messages(  # noqa: SLF001 as above
            self.text_qa_template, context_str=context, query_str=question
        )

    def shown(self, llm: LLM, question: str, context: str) -> str:
        """Fill the prompt in as the one text that a model completes; messages, if it chats, in it.

        So a chat model is given it that shows its messages as a text.
        """
        if not llm.metadata.is_chat_model:
            return self.text(llm, question, context)
        show: Callable[[list[ChatMessage]], str] | None = llm.messages_to_prompt
        assert show is not None
        return show(self.messages(llm, question, context))


def continued(messages: Sequence[ChatMessage], text: str) -> tuple[list[ChatMessage], bool]:
    """Put the text so far behind a chat prompt, as the assistant's own message.

    A prompt that ends with the beginning of an answer has the text appended to it.
    Says too whether there is such a message, which the model is to continue.
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
