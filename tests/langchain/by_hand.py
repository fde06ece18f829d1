"""The loops that a user writes by hand with LangChain's own objects: what is right."""

import re
from collections.abc import Callable
from typing import Any

from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.prompts import PromptTemplate

from ralmspec_plugins.testing import WordRetriever
from ralmspec_plugins.types import Query

PROMPT = PromptTemplate.from_template("Context:\n{context}\n\nQuestion: {input}\nAnswer:")
ARTICLE = PromptTemplate.from_template("{context}\n\n{input}")  # as the demo's model has learned
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

Search = Callable[[str], list[Document]]


def searching(retriever: WordRetriever) -> Search:
    """Search as the core's loop does, and give documents."""

    def search(query: str) -> list[Document]:
        hits = retriever.search([Query(query)])[0]
        return [Document(page_content=hit.passage.text, id=hit.passage.id) for hit in hits]

    return search


def prompted(documents: list[Document], question: str, prompt: PromptTemplate = PROMPT) -> str:
    """Fill the prompt in."""
    context = "\n\n".join(document.page_content for document in documents)
    return prompt.format(context=context, input=question)


def last_words(question: str, text: str, words: int) -> str:
    """The query: the question, and then the end of question and text."""
    return " ".join((question + " " + text).split()[-words:]) if text else question


def called(llm: Any, prompt: str, text: str, **bound: Any) -> tuple[str, bool]:
    """Call a model with a prompt and the text so far; say whether it came to an end."""
    if isinstance(llm, BaseChatModel):
        messages: list[Any] = [("user", prompt)]
        message = llm.invoke([*messages, AIMessage(text)] if text else messages, **bound)
        return str(message.text), message.response_metadata.get("finish_reason") == "stop"
    generation = llm.generate([prompt + text], **bound).generations[0][0]
    why = (generation.generation_info or {}).get("finish_reason")
    return generation.text, why == "stop"


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
    template: PromptTemplate = PROMPT,
    bind: Callable[[int], dict[str, Any]] = lambda tokens: {"max_tokens": tokens},
) -> str:
    """Search, write a few tokens, and start over."""
    text, spent = "", 0
    while spent < max_tokens:
        prompt = prompted(search(last_words(question, text, words)), question, template)
        bound = bind(min(interval, max_tokens - spent))
        piece, ended = called(llm, prompt, text, **bound, **({"stop": list(stop)} if stop else {}))
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
    template: PromptTemplate = PROMPT,
    bind: Callable[[int], dict[str, Any]] = lambda tokens: {"max_tokens": tokens},
) -> str:
    """Search, write a sentence, and start over."""
    text = ""
    for _ in range(sentences):
        prompt = prompted(search(last_words(question, text, words)), question, template)
        piece, ended = called(llm, prompt, text, **bind(tokens))
        found = re.match(r".*?[.!?]+[\"')]*(?=\s)", piece, flags=re.DOTALL)
        text += found.group() if found else piece
        if (ended and (not found or not piece[found.end() :].strip())) or not piece:
            break
    return text
