"""A small world in LlamaIndex' own parts, and what its handlers hear of a query."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from llama_index.core import Settings, VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.base.llms.types import CompletionResponse, LLMMetadata
from llama_index.core.base.response.schema import (
    AsyncStreamingResponse,
    PydanticResponse,
    Response,
    StreamingResponse,
)
from llama_index.core.callbacks import CallbackManager, CBEventType
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.events.retrieval import (
    RetrievalEndEvent,
    RetrievalStartEvent,
)
from llama_index.core.instrumentation.events.span import SpanDropEvent
from llama_index.core.instrumentation.span.simple import SimpleSpan
from llama_index.core.instrumentation.span_handlers import BaseSpanHandler
from llama_index.core.llms import CustomLLM
from llama_index.core.llms.callbacks import llm_completion_callback
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index_ralmspec import (
    CommitEvent,
    GuessEvent,
    RetrievalEvent,
    RollbackEvent,
    VerificationEvent,
)

from ralmspec_plugins.protocols import speculative

_WORDS = (
    *("the", "old", "red", "fox", "green", "river", "stone", "bridge", "runs", "over"),
    *("under", "a", "quiet", "blue", "hill", "and", "finds", "seven", "small", "lamps"),
)


OWN = (GuessEvent, VerificationEvent, RetrievalEvent, CommitEvent, RollbackEvent)
RETRIEVALS = (RetrievalStartEvent, RetrievalEndEvent)
RETRIEVES = ("retrieve", "_retrieve", "aretrieve", "_aretrieve")


class WordEmbedding(BaseEmbedding):
    """Vectors of the words in a text, the same each time."""

    dim: int = 16
    asked: list[str] = []  # noqa: RUF012 a pydantic field
    delay_s: float = 0.0

    def _get_query_embedding(self, query: str) -> list[float]:
        self.asked.append(query)
        time.sleep(self.delay_s)
        return self._vector(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        self.asked.append(query)
        await asyncio.sleep(self.delay_s)
        return self._vector(query)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._vector(text)

    def _vector(self, text: str) -> list[float]:
        vector = [0.01] * self.dim
        for word in text.lower().split():
            vector[zlib.crc32(word.strip(".,?!").encode()) % self.dim] += 1.0
        length = sum(value * value for value in vector) ** 0.5
        return [value / length for value in vector]


class WordLLM(CustomLLM):
    """Writes words that depend on every character of its prompt."""

    words: int = 12
    delay_s: float = 0.0
    failing_at: int | None = None  # the number of the call that fails
    prompts: list[str] = []  # noqa: RUF012 a pydantic field
    window: int = 2000

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(context_window=self.window, num_output=64, model_name="words")

    def text_for(self, prompt: str) -> str:
        seed = zlib.crc32(prompt.encode())
        words = []
        for _ in range(self.words):
            seed = (seed * 1103515245 + 12345) % 2**31
            words.append(_WORDS[seed // 7 % len(_WORDS)])
            if seed % 5 == 0:
                words[-1] += "."
        return " ".join(words)

    def _called(self, prompt: str) -> str:
        self.prompts.append(prompt)
        if self.failing_at is not None and len(self.prompts) >= self.failing_at:
            raise RuntimeError("the model is out")
        return self.text_for(prompt)

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        text = self._called(prompt)
        time.sleep(self.delay_s)
        return CompletionResponse(text=_bounded(text, kwargs))

    @llm_completion_callback()
    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> Iterator[CompletionResponse]:
        text = _bounded(self._called(prompt), kwargs)

        def pieces() -> Iterator[CompletionResponse]:
            shown = ""
            for at, word in enumerate(text.split(" ")):
                time.sleep(self.delay_s / 10)
                piece = word if at == 0 else f" {word}"
                shown += piece
                yield CompletionResponse(text=shown, delta=piece)

        return pieces()


class AsyncWordLLM(WordLLM):
    """The same with asynchronous methods of its own, as a service's client has."""

    @llm_completion_callback()
    async def acomplete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponse:
        text = self._called(prompt)
        await asyncio.sleep(self.delay_s)
        return CompletionResponse(text=_bounded(text, kwargs))

    @llm_completion_callback()
    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> AsyncIterator[CompletionResponse]:
        text = _bounded(self._called(prompt), kwargs)

        async def pieces() -> AsyncIterator[CompletionResponse]:
            shown = ""
            for at, word in enumerate(text.split(" ")):
                await asyncio.sleep(self.delay_s / 10)
                piece = word if at == 0 else f" {word}"
                shown += piece
                yield CompletionResponse(text=shown, delta=piece)

        return pieces()


def _bounded(text: str, kwargs: dict[str, Any]) -> str:
    most = kwargs.get("max_tokens")
    return text if most is None else " ".join(text.split(" ")[:most])


TEXTS = tuple(
    " ".join(_WORDS[(seed * 7 + at * (seed % 5 + 1)) % len(_WORDS)] for at in range(14)) + "."
    for seed in range(24)
)
QUESTIONS = (
    "Where does the red fox run?",
    "What is under the old bridge?",
    "Who finds seven small lamps?",
    "Where does the red fox run over a hill?",
    "What is quiet and blue?",
)


def nodes() -> list[TextNode]:
    """Make the nodes of the world."""
    return [
        TextNode(
            text=text,
            id_=f"n{at}",
            metadata={"page": at, "kind": "odd" if at % 2 else "even"},
            excluded_llm_metadata_keys=["kind"],
        )
        for at, text in enumerate(TEXTS)
    ]


def an_index(embedding: WordEmbedding | None = None) -> VectorStoreIndex:
    """Make the index of the world."""
    return VectorStoreIndex(nodes(), embed_model=embedding or WordEmbedding())


EMPTY = ("", "None", "Empty Response")


def seen(response: Any, *, empty: bool = False) -> tuple[Any, ...]:
    """Give all that a caller sees of a response, but for our report.

    Args:
        response: of any kind.
        empty: whether it may have neither a text nor sources; else that is asserted, lest
            nothing be compared with nothing.
    """
    metadata = dict(response.metadata or {})
    metadata.pop("ralmspec", None)
    text = None if isinstance(response, AsyncStreamingResponse) else str(response)
    kinds = (Response, StreamingResponse, AsyncStreamingResponse, PydanticResponse)
    kind = next(kind for kind in kinds if isinstance(response, kind))
    assert empty or (text not in EMPTY and response.source_nodes), response
    return kind.__name__, text, seen_nodes(response.source_nodes), metadata


def report_in(response: Any) -> Any:
    """Give the report that `stats_of` reads, if the response has one."""
    return vars(response).get("_ralmspec_report")


def seen_nodes(found: Sequence[NodeWithScore]) -> list[tuple[Any, ...]]:
    """Give all that a caller sees of nodes."""
    return [(type(one.node), one.node.to_dict(), one.score) for one in found]


class _Events(BaseEventHandler):
    heard: list[Any]

    def handle(self, event: BaseEvent, **_: Any) -> None:
        self.heard.append(("event", event))


class _Spans(BaseSpanHandler[SimpleSpan]):
    heard: list[Any] = []  # noqa: RUF012 a pydantic field

    def new_span(
        self, id_: str, bound_args: Any, instance: Any = None, parent_span_id: Any = None, **_: Any
    ) -> None:
        self.heard.append(("enter", id_, parent_span_id))

    def prepare_to_exit_span(
        self, id_: str, bound_args: Any, instance: Any = None, result: Any = None, **_: Any
    ) -> None:
        self.heard.append(("exit", id_))

    def prepare_to_drop_span(
        self, id_: str, bound_args: Any, instance: Any = None, err: Any = None, **_: Any
    ) -> None:
        self.heard.append(("drop", id_))


@dataclass
class Heard:
    """What handlers have heard, in order."""

    all: list[Any] = field(default_factory=list)

    @property
    def own(self) -> list[BaseEvent]:
        """The events of ours."""
        return [what[1] for what in self.all if what[0] == "event" and isinstance(what[1], OWN)]

    @property
    def events(self) -> list[BaseEvent]:
        """The events of the host that count: untagged ones, and those of committed calls."""
        told, counts = [what[1] for what in self.all if what[0] == "event"], self._counting()
        return [one for one in told if not isinstance(one, OWN) and counts(one.span_id)]

    @property
    def dropped(self) -> list[BaseEvent]:
        """The events of the host that do not count."""
        told, counts = [what[1] for what in self.all if what[0] == "event"], self._counting()
        return [one for one in told if not isinstance(one, OWN) and not counts(one.span_id)]

    @property
    def parents(self) -> dict[str, str | None]:
        """The span that each span stands in."""
        return {what[1]: what[2] for what in self.all if what[0] == "enter"}

    def counts(self, span: str | None) -> bool:
        """Say whether a call counts, by its span: it was not made ahead, or it was committed."""
        return self._counting()(span)

    def _counting(self) -> Callable[[str | None], bool]:
        commits = [one for one in self.own if isinstance(one, CommitEvent)]
        committed = {id_ for one in commits for id_ in one.span_ids}
        parents = self.parents

        def counts(span: str | None) -> bool:
            while span is not None:
                if _is_ahead(span) and span not in committed:
                    return False
                span = parents.get(span)
            return True

        return counts

    @property
    def retrievals(self) -> list[tuple[list[str], list[float | None]]]:
        """The nodes and scores of the retrievals that count: told by us, or else by the host."""
        ours = [one for one in self.own if isinstance(one, RetrievalEvent)]
        if ours:
            return [(one.node_ids, one.scores) for one in ours]
        ends = [one for one in self.events if isinstance(one, RetrievalEndEvent)]
        return [([n.node_id for n in one.nodes], [n.score for n in one.nodes]) for one in ends]

    @property
    def golden(self) -> list[tuple[str, ...]]:
        """Host events and spans that count by name, each with the span it stands in, sorted.

        Retrievals have their own list: searches made together never enter the host's method.
        """
        told: list[tuple[str, ...]] = []
        counts, parents = self._counting(), self.parents
        for what in self.all:
            if what[0] == "event":
                event = what[1]
                ended = isinstance(event, SpanDropEvent) and _hidden(event.span_id or "")
                if isinstance(event, (*OWN, *RETRIEVALS)) or ended:
                    continue
                if counts(event.span_id):
                    shown = _shown(event.span_id, parents)
                    told.append(("event", type(event).__name__, shown))
            elif not _hidden(what[1]) and counts(what[1]):
                shown_in = [_shown(span, parents) for span in what[2:3]]
                told.append((what[0], _name(what[1]), *shown_in))
        return sorted(told)


def _is_ahead(span: str) -> bool:
    return span.startswith("SpeculativeCall.")


def _shown(span: str | None, parents: Mapping[str, str | None]) -> str:
    """Name the span, or the nearest one around it that is not hidden."""
    while span is not None and _hidden(span):
        span = parents.get(span)
    return _name(span)


def _hidden(span: str) -> bool:
    """Say whether this span is ours, or one of a retriever's own run."""
    return _is_ahead(span) or _name(span).rpartition(".")[2] in RETRIEVES


def _name(span: str | None) -> str:
    """Name a span without its number; our engine, and the loop by hand, as the host's."""
    name = "-" if span is None else span.rsplit("-", 5)[0]
    for ours in ("SpeculativeQueryEngine", "LoopByHand"):
        name = name.replace(ours, "RetrieverQueryEngine")
    return name


@contextmanager
def made_ahead() -> Iterator[None]:
    """Have calls made as an engine makes them behind a guess."""
    token = speculative.set(True)
    try:
        yield
    finally:
        speculative.reset(token)


@contextmanager
def default_llm() -> Iterator[None]:
    """Have the host's parts that ask `Settings` find a model there."""
    before, Settings._llm = Settings._llm, WordLLM()
    try:
        yield
    finally:
        Settings._llm = before


@contextmanager
def hearing() -> Iterator[Heard]:
    """Listen to the root dispatcher."""
    heard, root = Heard(), get_dispatcher()
    events = _Events(heard=[])
    events.heard = heard.all
    spans = _Spans()
    spans.heard = heard.all
    before = list(root.event_handlers), list(root.span_handlers)
    root.add_event_handler(events)
    root.add_span_handler(spans)
    try:
        yield heard
    finally:
        root.event_handlers[:], root.span_handlers[:] = before


class Legacy(BaseCallbackHandler):
    """A handler of the older kind, and what it heard."""

    def __init__(self) -> None:
        super().__init__([], [])
        self.heard: list[tuple[Any, ...]] = []
        self._names: dict[str, str] = {}

    def on_event_start(
        self,
        event_type: CBEventType,
        payload: dict[str, Any] | None = None,
        event_id: str = "",
        parent_id: str = "",
        **_: Any,
    ) -> str:
        self._names[event_id] = event_type.value
        parent = self._names.get(parent_id, parent_id)
        self.heard.append(("start", event_type.value, parent, sorted(map(str, payload or {}))))
        return event_id

    def on_event_end(
        self,
        event_type: CBEventType,
        payload: dict[str, Any] | None = None,
        event_id: str = "",
        **_: Any,
    ) -> None:
        started = self._names.get(event_id, "?")
        self.heard.append(("end", event_type.value, started, sorted(map(str, payload or {}))))

    def start_trace(self, trace_id: str | None = None) -> None:
        self.heard.append(("trace", trace_id))

    def end_trace(
        self, trace_id: str | None = None, trace_map: dict[str, list[str]] | None = None
    ) -> None:
        self.heard.append(("traced", trace_id))


def legacy() -> tuple[CallbackManager, Legacy]:
    """Make a callback manager of the older kind."""
    handler = Legacy()
    return CallbackManager([handler]), handler


def missing(told: Sequence[Any], heard: Sequence[Any]) -> Counter[str]:
    """Give what the host tells, and ours does not. What ours repeats is told once more."""
    assert told
    return Counter(map(repr, told)) - Counter(map(repr, heard))
