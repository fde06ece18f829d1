"""The loops that a user writes by hand with LlamaIndex's own objects: what is right."""

import re
from collections.abc import Callable
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, MessageRole
from llama_index.core.prompts import PromptTemplate
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle, TextNode
from llama_index_ralmspec.documents import nodes_of, passage_of

from ralmspec_plugins.adapters.documents import HostPassage
from ralmspec_plugins.testing import WordRetriever
from ralmspec_plugins.types import Query

PROMPT = PromptTemplate("{context_str}\n\n{query_str}")  # as the demo's model has learned
TEXTS = (
    "the lighthouse keeper counted the ships",
    "a storm came over the island and the sea",
    "crêpes cost 25 € and the señor smiles 🙂",
    "so naïve, said the keeper. Then a storm",
)
QUESTIONS = tuple(
    f"Who {verb} the {thing}?"
    for verb in ("counted", "left", "feared", "sold", "kept", "saw", "built", "paid")
    for thing in ("ships", "island", "storm", "keeper")
)

Search = Callable[[str], list[NodeWithScore]]


def made_nodes() -> list[TextNode]:
    """Make the nodes: the model sees their pages, and not who has read them."""
    return [
        TextNode(
            id_=f"n{at}",
            text=text,
            metadata={"page": at, "read": at % 2 == 0},
            excluded_llm_metadata_keys=["read"],
        )
        for at, text in enumerate(TEXTS)
    ]


def made_retriever(k: int = 2) -> WordRetriever:
    """Make a retriever of the core over them."""
    retriever = WordRetriever(TEXTS, k=k)
    retriever.passages[:] = made_passages()
    return retriever


def made_passages() -> list[HostPassage]:
    """Make the nodes' passages."""
    return [passage_of(node) for node in made_nodes()]


def searching(retriever: WordRetriever) -> Search:
    """Search as the core's loop does, and give nodes with their scores."""
    return lambda query: nodes_of(retriever.search([Query(query)])[0])


def last_words(question: str, text: str, words: int) -> str:
    """The query: the question, and then the end of question and text."""
    return " ".join((question + " " + text).split()[-words:]) if text else question


def called(
    llm: Any, nodes: list[NodeWithScore], question: str, text: str, **bound: Any
) -> tuple[str, bool]:
    """Call a model with a prompt and the text so far; say whether it came to an end."""
    context = "\n\n".join(one.node.get_content(metadata_mode=MetadataMode.LLM) for one in nodes)
    given = {"context_str": context, "query_str": question}
    reply: Any
    if not llm.metadata.is_chat_model:
        prompt = PROMPT.format(llm=llm, completion_to_prompt=llm.completion_to_prompt, **given)
        if llm.system_prompt:
            prompt = f"{llm.system_prompt}\n\n{prompt}"
        reply = llm.complete(prompt + text, formatted=True, **bound)
    else:
        messages = PROMPT.format_messages(llm=llm, **given)
        if text:
            messages = [*messages, ChatMessage(role=MessageRole.ASSISTANT, content=text)]
        reply = llm.chat(messages, **bound)
    piece = reply.message.content if isinstance(reply, ChatResponse) else reply.text
    raw = reply.raw or {}
    choices = raw.get("choices") if isinstance(raw, dict) else raw.choices
    first = choices[0] if choices else {}
    why = first.get("finish_reason") if isinstance(first, dict) else first.finish_reason
    return piece or "", why == "stop"


def cut(text: str, stop: tuple[str, ...]) -> str | None:
    """Cut a text before the first stop string."""
    found = [text.find(mark) for mark in stop if mark in text]
    return text[: min(found)] if found else None


def tokens_by_hand(
    llm: Any,
    search: Search,
    question: str,
    *,
    interval: int = 4,
    max_tokens: int = 24,
    stop: tuple[str, ...] = (),
    words: int = 32,
    processors: tuple[Any, ...] = (),
    bind: Callable[[int], dict[str, Any]] = lambda tokens: {"max_tokens": tokens},
) -> str:
    """Search, write a few tokens, and start over."""
    text, spent = "", 0
    while spent < max_tokens:
        nodes = search(last_words(question, text, words))
        for one in processors:
            nodes = one.postprocess_nodes(nodes, query_bundle=QueryBundle(question))
        bound = bind(min(interval, max_tokens - spent))
        told = {**bound, **({"stop": list(stop)} if stop else {})}
        piece, ended = called(llm, nodes, question, text, **told)
        spent += interval
        text += piece
        stopped = cut(text, stop)
        if stopped is not None:
            return stopped
        if ended or not piece:
            break
    return text


def sentences_by_hand(
    llm: Any,
    search: Search,
    question: str,
    *,
    tokens: int = 12,
    sentences: int = 3,
    words: int = 32,
    bind: Callable[[int], dict[str, Any]] = lambda tokens: {"max_tokens": tokens},
) -> str:
    """Search, write a sentence, and start over."""
    text = ""
    for _ in range(sentences):
        nodes = search(last_words(question, text, words))
        piece, ended = called(llm, nodes, question, text, **bind(tokens))
        found = re.match(r".*?[.!?]+[\"')]*(?=\s)", piece, flags=re.DOTALL)
        text += found.group() if found else piece
        if (ended and (not found or not piece[found.end() :].strip())) or not piece:
            break
    return text
