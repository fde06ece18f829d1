"""Parts for tests of the runnable: models, retrievers and handlers that can be held up and watched.

Each word of a model is a digest of all that stands before it, so a word that was
written with a wrong passage in view is found nowhere in the right answer: every
word of a dropped branch is a canary.
"""

import asyncio
import hashlib
import re
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Any

from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.language_models import BaseChatModel, BaseLLM
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import (
    ChatGeneration,
    ChatGenerationChunk,
    ChatResult,
    Generation,
    GenerationChunk,
    LLMResult,
)
from langchain_core.retrievers import BaseRetriever
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_ralmspec.rag import SpeculativeRAG
from pydantic import Field

from ralmspec_plugins.workloads import Interval, Sentences
from tests.langchain.by_hand import PROMPT
from tests.langchain.fake_models import turns

CANARY = re.compile(r"\bx[0-9a-f]{8}\b")
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
QUESTIONS = tuple(f"Who {verb} it {when}?" for verb in ("saw", "sold", "hid") for when in range(9))

Hook = Callable[[str], None] | None
AsyncHook = Callable[[str], Awaitable[None]] | None


class HostError(Exception):
    """What a host raises."""


def digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest())


def word_after(text: str) -> str | None:
    """Give the word that follows a text, or None at its end."""
    number = digest(text)
    mark = "." if number % 5 == 0 else ""
    return None if number % 29 == 0 else f" x{number:08x}{mark}"


def words_after(text: str, tokens: int, stop: Sequence[str] | None) -> tuple[list[str], str]:
    """Give the words that follow, and why there are no more; a stop string ends them."""
    written: list[str] = []
    while len(written) < tokens:
        word = word_after(text + "".join(written))
        if word is None:
            return written, "stop"
        written.append(word)
        whole = "".join(written)
        found = [whole.find(mark) for mark in stop or () if mark in whole]
        if found:
            return [whole[: min(found)]], "stop"
    return written, "length"


class HashLLM(BaseLLM):
    """A string model. `hook` sees each prompt before anything is written, `between` each word."""

    max_tokens: int = 24
    hook: Any = Field(default=None, repr=False)
    ahook: Any = Field(default=None, repr=False)
    between: Any = Field(default=None, repr=False)
    abetween: Any = Field(default=None, repr=False)
    prompts: list[str] = Field(default_factory=list, repr=False)
    written: list[str] = Field(default_factory=list, repr=False)

    @property
    def _llm_type(self) -> str:
        return "digests"

    def _words(
        self, prompt: str, stop: list[str] | None, kwargs: dict[str, Any]
    ) -> tuple[list[str], dict[str, Any]]:
        self.prompts.append(prompt)
        if self.hook is not None:
            self.hook(prompt)
        words, why = words_after(prompt, kwargs.get("max_tokens", self.max_tokens), stop)
        self.written.append("".join(words))
        return words, {"finish_reason": why}

    def _generate(
        self, prompts: list[str], stop: list[str] | None = None, run_manager: Any = None, **kw: Any
    ) -> LLMResult:
        made = [self._words(prompt, stop, kw) for prompt in prompts]
        return LLMResult(
            generations=[
                [Generation(text="".join(words), generation_info=info)] for words, info in made
            ]
        )

    async def _agenerate(
        self, prompts: list[str], stop: list[str] | None = None, run_manager: Any = None, **kw: Any
    ) -> LLMResult:
        await asyncio.sleep(0)
        if self.ahook is not None:
            await self.ahook(prompts[0])
        return self._generate(prompts, stop, **kw)

    def _stream(
        self, prompt: str, stop: list[str] | None = None, run_manager: Any = None, **kw: Any
    ) -> Iterator[GenerationChunk]:
        words, info = self._words(prompt, stop, kw)
        for number, word in enumerate(words):
            if self.between is not None:
                self.between(number)
            chunk = GenerationChunk(text=word)
            if run_manager:
                run_manager.on_llm_new_token(word, chunk=chunk)
            yield chunk
        yield GenerationChunk(text="", generation_info=info)

    async def _astream(
        self, prompt: str, stop: list[str] | None = None, run_manager: Any = None, **kw: Any
    ) -> AsyncIterator[GenerationChunk]:
        await asyncio.sleep(0)
        if self.ahook is not None:
            await self.ahook(prompt)
        words, info = self._words(prompt, stop, kw)
        for number, word in enumerate(words):
            if self.abetween is not None:
                await self.abetween(number)
            chunk = GenerationChunk(text=word)
            if run_manager:
                await run_manager.on_llm_new_token(word, chunk=chunk)
            yield chunk
        yield GenerationChunk(text="", generation_info=info)


class ThreadedLLM(HashLLM):
    """The same without asynchronous methods of its own."""

    _agenerate = BaseLLM._agenerate
    _astream = BaseLLM._astream


class HashChat(BaseChatModel):
    """A chat model that continues a trailing message of the assistant, and counts its tokens."""

    max_tokens: int = 24
    streaming: bool = False
    hook: Any = Field(default=None, repr=False)
    ahook: Any = Field(default=None, repr=False)
    between: Any = Field(default=None, repr=False)
    abetween: Any = Field(default=None, repr=False)
    prompts: list[str] = Field(default_factory=list, repr=False)
    written: list[str] = Field(default_factory=list, repr=False)

    @property
    def _llm_type(self) -> str:
        return "chat digests"

    def _words(
        self, messages: list[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any]
    ) -> tuple[list[str], str]:
        prompt = turns(messages)
        self.prompts.append(prompt)
        if self.hook is not None:
            self.hook(prompt)
        words, why = words_after(prompt, kwargs.get("max_tokens", self.max_tokens), stop)
        self.written.append("".join(words))
        return words, why

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: Any = None,
        **kw: Any,
    ) -> ChatResult:
        words, why = self._words(messages, stop, kw)
        message = AIMessage(
            content="".join(words),
            response_metadata={"finish_reason": why, "model_name": "digests-1"},
            usage_metadata=_usage(len(words)),
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: Any = None,
        **kw: Any,
    ) -> ChatResult:
        await asyncio.sleep(0)
        if self.ahook is not None:
            await self.ahook(turns(messages))
        return self._generate(messages, stop, **kw)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: Any = None,
        **kw: Any,
    ) -> Iterator[ChatGenerationChunk]:
        words, why = self._words(messages, stop, kw)
        for number, word in enumerate(words):
            if self.between is not None:
                self.between(number)
            yield ChatGenerationChunk(message=AIMessageChunk(content=word))
        yield _last(words, why)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: Any = None,
        **kw: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        await asyncio.sleep(0)
        if self.ahook is not None:
            await self.ahook(turns(messages))
        words, why = self._words(messages, stop, kw)
        for number, word in enumerate(words):
            if self.abetween is not None:
                await self.abetween(number)
            yield ChatGenerationChunk(message=AIMessageChunk(content=word))
        yield _last(words, why)


def _usage(words: int) -> Any:
    return {"input_tokens": 3, "output_tokens": words, "total_tokens": 3 + words}


def _last(words: list[str], why: str) -> ChatGenerationChunk:
    return ChatGenerationChunk(
        message=AIMessageChunk(
            content="",
            response_metadata={"finish_reason": why, "model_name": "digests-1"},
            usage_metadata=_usage(len(words)),
            chunk_position="last",
        )
    )


class Notes:
    """What a retriever was asked: an object of its own, so that it is no setting of it."""

    def __init__(self) -> None:
        self.asked: list[str] = []


class HashRetriever(BaseRetriever):
    """Ranks its documents by a digest of query and document: nobody can guess what it finds."""

    documents: list[Document]
    k: int = 2
    salt: str = ""
    hook: Any = Field(default=None, repr=False)
    ahook: Any = Field(default=None, repr=False)
    notes: Any = Field(default_factory=Notes, repr=False)

    @property
    def asked(self) -> list[str]:
        return self.notes.asked

    def _ranked(self, query: str) -> list[Document]:
        def rank(document: Document) -> int:
            return digest(self.salt + query + document.page_content)

        return sorted(self.documents, key=rank)[: self.k]

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        self.notes.asked.append(query)
        if self.hook is not None:
            self.hook(query)
        return self._ranked(query)

    async def _aget_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        self.notes.asked.append(query)
        await asyncio.sleep(0)
        if self.ahook is not None:
            await self.ahook(query)
        return self._ranked(query)


def documents(count: int = 12, *, ids: bool = True, mark: str = "passage") -> list[Document]:
    """Make documents that tell apart, with metadata of their own."""
    return [
        Document(
            page_content=f"{mark} {number} about ships and storms no {number * 7}",
            metadata={"number": number, "even": number % 2 == 0},
            id=f"{mark}-{number}" if ids else None,
        )
        for number in range(count)
    ]


def vector_store(found: list[Document]) -> InMemoryVectorStore:
    return InMemoryVectorStore.from_documents(found, DeterministicFakeEmbedding(size=16))


SENTENCES = partial(Sentences, tokens=12, max_sentences=4)
INTERVAL = partial(Interval, interval=4)
WORKLOADS: dict[str, Any] = {"sentences": SENTENCES, "interval": INTERVAL, "one_shot": "one_shot"}
MAX_TOKENS = {"sentences": 999, "interval": 24, "one_shot": 24}


def rag_of(llm: Any, retriever: Any, workload: str = "sentences", **settings: Any) -> Any:
    """Put a model behind a retriever, as the loops written by hand do."""
    whole = workload == "one_shot"
    if isinstance(llm, HashChat) and not whole:
        settings.setdefault("continuation", "assistant")
    if not whole or settings.get("direct"):
        settings.setdefault("max_tokens", MAX_TOKENS[workload])
    settings.setdefault("report", True)
    return SpeculativeRAG(
        retriever=retriever, llm=llm, prompt=PROMPT, workload=WORKLOADS[workload], **settings
    )


def plain_values(found: Sequence[Document]) -> list[tuple[Any, ...]]:
    """Show documents as values."""
    return [(one.id, one.page_content, dict(one.metadata)) for one in found]


def canaries(*values: Any) -> set[str]:
    """Find all words that a model has written in what something looks like."""
    return {word for value in values for word in CANARY.findall(repr(value))}


class Log(BaseCallbackHandler):
    """Notes every event that it is told of."""

    def __init__(self) -> None:
        self.events: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.lock = threading.Lock()

    def note(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        with self.lock:
            self.events.append((name, args, kwargs))

    @property
    def names(self) -> list[str]:
        return [name for name, _, _ in self.events]

    def customs(self) -> list[tuple[str, Any]]:
        return [(args[0], args[1]) for name, args, _ in self.events if name == "on_custom_event"]

    def left_open(self) -> list[str]:
        """List the runs that have begun and not ended, or ended twice, or without a beginning."""
        state: dict[Any, list[str]] = {}
        for name, _, kwargs in self.events:
            if name.endswith(("_start", "_end", "_error")):
                state.setdefault(kwargs["run_id"], []).append(name)
        return [
            str(names)
            for names in state.values()
            if len(names) != 2 or not names[0].endswith("_start") or names[1].endswith("_start")
        ]


class AsyncLog(AsyncCallbackHandler, Log):  # type: ignore[misc]
    """The same, awaited."""

    def __init__(self) -> None:
        Log.__init__(self)


def _noted(name: str) -> Any:
    def note(self: Log, *args: Any, **kwargs: Any) -> None:
        self.note(name, args, kwargs)

    return note


def _anoted(name: str) -> Any:
    async def note(self: Log, *args: Any, **kwargs: Any) -> None:
        await asyncio.sleep(0)
        self.note(name, args, kwargs)

    return note


_EVENTS = [name for name in dir(BaseCallbackHandler) if name.startswith("on_")]

for _name in _EVENTS:
    setattr(Log, _name, _noted(_name))
    setattr(AsyncLog, _name, _anoted(_name))


def told(
    log: Log, *, without: tuple[str, ...] = ("on_chain", "on_custom", "on_stream")
) -> list[str]:
    """Show what was told, with runs numbered in the order in which they come up.

    The host hands a token over by its name or as the first argument: both are the same.
    """
    numbers: dict[str, str] = {}

    def numbered(found: re.Match[str]) -> str:
        return numbers.setdefault(found.group(), f"run {len(numbers)}")

    return [
        _UUID.sub(numbered, f"{name} {args!r} {sorted(kwargs.items())!r}")
        for name, args, kwargs in map(_token_first, log.events)
        if not name.startswith(without)
    ]


def _token_first(event: tuple[str, Any, Any]) -> tuple[str, Any, Any]:
    name, _, kwargs = event
    if "token" not in kwargs:
        return event
    return name, (kwargs["token"],), {key: one for key, one in kwargs.items() if key != "token"}


def called(runnable: Any, value: Any, way: str, config: Any = None) -> Any:
    """Call a runnable in one of its six ways; pieces of a stream are added up."""

    async def streamed() -> Any:
        return [piece async for piece in runnable.astream(value, config)]

    if way == "invoke":
        return runnable.invoke(value, config)
    if way == "ainvoke":
        return asyncio.run(runnable.ainvoke(value, config))
    if way == "batch":
        return runnable.batch([value], config)[0]
    if way == "abatch":
        return asyncio.run(runnable.abatch([value], config))[0]
    pieces = list(runnable.stream(value, config)) if way == "stream" else asyncio.run(streamed())
    total = pieces[0]
    for piece in pieces[1:]:
        total = total + piece
    return dict(total) if isinstance(total, dict) else total
