"""Models and retrievers that can be held up, made to fail, and watched, and the loops over them.

Each word of a model is a digest of all that stands before it, so a word that was
written with a wrong node in view is found nowhere in the right answer: every word of a
dropped branch is a canary.
"""

import asyncio
import hashlib
import re
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index_ralmspec import SpeculativeQueryEngine
from pydantic import Field

from ralmspec_plugins.workloads import Interval, Sentences
from tests.llama_index.engine_parts import hearing
from tests.llama_index.fake_llms import AsyncWordLLM, WordChat, WordLLM, turns
from tests.llama_index.rag_loops import LoopByHand
from tests.words import words_after

CANARY = re.compile(r"\bx[0-9a-f]{8}\b")
QUESTIONS = tuple(f"Who {verb} it {when}?" for verb in ("saw", "sold", "hid") for when in range(9))
QUESTION = QUESTIONS[0]


class HostError(Exception):
    """What a host raises."""


def digest(text: str) -> int:
    """Give a number that nobody can guess from a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest())


def word_after(text: str) -> str | None:
    """Give the word that follows a text, or None at its end."""
    number = digest(text)
    mark = "." if number % 5 == 0 else ""
    return None if number % 29 == 0 else f" x{number:08x}{mark}"


class HashLLM(WordLLM):
    """A model that completes. `hook` sees each prompt, `between` the number of each word."""

    hook: Any = Field(default=None, repr=False)
    ahook: Any = Field(default=None, repr=False)
    between: Any = Field(default=None, repr=False)
    prompts: list[str] = Field(default_factory=list, repr=False)
    texts: list[str] = Field(default_factory=list, repr=False)  # all that was written

    def written(self, prompt: str, kwargs: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
        self.prompts.append(prompt)
        if self.hook is not None:
            self.hook(prompt)
        tokens = kwargs.get("max_tokens", self.max_tokens)
        words, why = words_after(prompt, tokens, kwargs.get("stop"), word_after)
        self.texts.append("".join(words))
        return words, {"choices": [{"finish_reason": why}]}

    def pieces(self, prompt: str, kwargs: dict[str, Any]) -> Iterator[CompletionResponse]:
        for number, piece in enumerate(super().pieces(prompt, kwargs)):
            if self.between is not None:
                self.between(number)
            yield piece


class AsyncHashLLM(HashLLM, AsyncWordLLM):
    """The same with asynchronous methods of its own."""

    async def acomplete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponse:
        await self._hooked(prompt)
        return await super().acomplete(prompt, formatted=formatted, **kwargs)

    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        await self._hooked(prompt)
        return await super().astream_complete(prompt, formatted=formatted, **kwargs)

    async def _hooked(self, prompt: str) -> None:
        if self.ahook is not None:
            await self.ahook(prompt)


class HashChat(HashLLM, WordChat):
    """A chat model that continues a trailing message of the assistant."""

    chats: bool = True

    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        if self.ahook is not None:
            await self.ahook(turns(messages))
        return await super().achat(messages, **kwargs)

    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Any:
        if self.ahook is not None:
            await self.ahook(turns(messages))
        return await super().astream_chat(messages, **kwargs)


MODELS: dict[str, type[HashLLM]] = {"text": HashLLM, "awaited": AsyncHashLLM, "chat": HashChat}


class Notes:
    """What a retriever was asked: an object of its own, so that it is no setting of it."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.lock = threading.Lock()


class HashRetriever(BaseRetriever):
    """Ranks its nodes by a digest of query and node: nobody can guess what it finds.

    Hands out the very nodes that it keeps, as some hosts do.
    """

    def __init__(self, nodes: list[TextNode], k: int = 2, salt: str = "") -> None:
        self._nodes, self._k, self._salt = nodes, k, salt
        self._notes = Notes()
        self.hook: Any = None
        self.ahook: Any = None
        super().__init__()

    @property
    def asked(self) -> list[str]:
        """What it was asked."""
        return self._notes.asked

    def _ranked(self, query: str) -> list[NodeWithScore]:
        ranks = [digest(self._salt + query + node.text) for node in self._nodes]
        order = sorted(range(len(ranks)), key=lambda at: -ranks[at])[: self._k]
        return [NodeWithScore(node=self._nodes[at], score=ranks[at] / 2**32) for at in order]

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        query = query_bundle.query_str
        self._notes.asked.append(query)
        if self.hook is not None:
            self.hook(query)
        return self._ranked(query)

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        query = query_bundle.query_str
        self._notes.asked.append(query)
        await asyncio.sleep(0)
        if self.ahook is not None:
            await self.ahook(query)
        return self._ranked(query)


class SyncRetriever(HashRetriever):
    """The same without an asynchronous method of its own: the host's would block the loop."""

    _aretrieve = BaseRetriever._aretrieve


def made_nodes(count: int = 12, mark: str = "passage") -> list[TextNode]:
    """Make nodes that tell apart, with metadata of which the model sees a part."""
    return [
        TextNode(
            id_=f"{mark}-{number}",
            text=f"{mark} {number} about ships and storms no {number * 7}",
            metadata={"number": number, "even": number % 2 == 0},
            excluded_llm_metadata_keys=["even"],
        )
        for number in range(count)
    ]


class ScoresIntoTexts(BaseNodePostprocessor):
    """Writes each node's score into its text, where the model sees every digit of it."""

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        for one in nodes:
            one.node = one.node.model_copy(update={"text": f"{one.score!r} {one.node.text}"})
        return nodes


WORKLOADS: dict[str, Any] = {
    "sentences": partial(Sentences, tokens=12, max_sentences=4),
    "interval": partial(Interval, interval=4),
    "one_shot": "one_shot",
}


def pair(
    llm: Any,
    retriever: BaseRetriever,
    workload: str = "interval",
    *,
    processors: tuple[BaseNodePostprocessor, ...] = (),
    manager: Any = None,
    streaming: bool = False,
    stop: tuple[str, ...] = (),
    **options: Any,
) -> tuple[Any, SpeculativeQueryEngine]:
    """Put a model behind a retriever: in the loop by hand, and in our engine."""
    synthesizer = get_response_synthesizer(
        llm=llm, response_mode="simple_summarize", streaming=streaming
    )
    parts = (retriever, synthesizer, list(processors), manager)
    if workload == "one_shot":
        hand: Any = RetrieverQueryEngine(*parts)
    else:
        hand = LoopByHand(*parts, workload=workload, stop=stop)
        options["stop"] = stop
        if llm.metadata.is_chat_model:
            options["continuation"] = "assistant"
        if workload == "interval":
            options["max_tokens"] = 24
    return hand, SpeculativeQueryEngine(*parts, workload=WORKLOADS[workload], **options)


def canaries(*values: Any) -> set[str]:
    """Find all words that a model has written in what something looks like."""
    return {word for value in values for word in CANARY.findall(repr(value))}


def goldens(call: Any, *arguments: Any) -> tuple[Any, list[Any]]:
    """Call something, and say what came of it, an error too, and what handlers heard."""
    with hearing() as heard:
        try:
            made = call(*arguments)
        except Exception as error:
            made = type(error), error.args
    return made, heard.golden


async def agoldens(call: Any, *arguments: Any) -> tuple[Any, list[Any]]:
    """Do the same with a coroutine."""
    with hearing() as heard:
        try:
            made = await call(*arguments)
        except Exception as error:
            made = type(error), error.args
    return made, heard.golden
