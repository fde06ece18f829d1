"""Handlers that people use, of both kinds: they count and nest what the host's engine tells."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import llama_index.core
import pytest
from llama_index.core import Settings, VectorStoreIndex
from llama_index.core.callbacks import (
    CallbackManager,
    CBEventType,
    LlamaDebugHandler,
    TokenCountingHandler,
)
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.span.simple import SimpleSpan
from llama_index.core.instrumentation.span_handlers import BaseSpanHandler, SimpleSpanHandler
from llama_index_ralmspec import SpeculativeQueryEngine

from tests.llama_index.engine_parts import Legacy, an_index, hearing
from tests.llama_index.rag_parts import MODELS, QUESTIONS, HashLLM, HashRetriever, made_nodes, pair
from tests.llama_index.worlds import WordEmbedding

_open: ContextVar[str | None] = ContextVar("open", default=None)
WORKLOADS = ["one_shot", "sentences"]


class OpenSpans(BaseSpanHandler[SimpleSpan]):
    """Keeps the span that is open in a context variable, as OpenTelemetry's context is kept."""

    tokens: Any = None
    nested: Any = None
    lost: Any = None

    def new_span(
        self, id_: str, bound_args: Any, instance: Any = None, parent_span_id: Any = None, **_: Any
    ) -> SimpleSpan:
        self.nested.append((named(id_), named(_open.get())))
        self.tokens[id_] = _open.set(id_)
        return SimpleSpan(id_=id_, parent_id=parent_span_id)

    def prepare_to_exit_span(self, id_: str, bound_args: Any, **_: Any) -> SimpleSpan | None:
        try:
            _open.reset(self.tokens.pop(id_))
        except (ValueError, KeyError) as error:
            self.lost.append((named(id_), type(error)))
        return self.open_spans.get(id_)

    def prepare_to_drop_span(self, id_: str, bound_args: Any, **_: Any) -> SimpleSpan | None:
        return self.prepare_to_exit_span(id_, bound_args)


def called(nested: tuple[str, str]) -> str:
    """Name what was called, whether it streams or not."""
    return nested[0].replace("stream_", "")


def named(span: str | None) -> str:
    name = "-" if span is None else span.rsplit("-", 5)[0]
    for ours in ("SpeculativeQueryEngine", "LoopByHand"):
        name = name.replace(ours, "RetrieverQueryEngine")
    return name


@contextmanager
def listening(handler: Any) -> Iterator[Any]:
    root = get_dispatcher()
    root.add_span_handler(handler)
    try:
        yield handler
    finally:
        root.span_handlers.remove(handler)


def open_spans() -> OpenSpans:
    made = OpenSpans(open_spans={}, completed_spans=[], dropped_spans=[])
    made.tokens, made.nested, made.lost = {}, [], []
    return made


async def in_order(engine: Any, asynchronous: bool) -> OpenSpans:
    """Ask two questions, read what streams, and say how spans were nested."""
    with listening(open_spans()) as spans:
        for question in QUESTIONS[:2]:
            if not asynchronous:
                await asyncio.to_thread(lambda asked=question: str(engine.query(asked)))
                continue
            response = await engine.aquery(question)
            if hasattr(response, "async_response_gen"):
                async for _ in response.async_response_gen():
                    pass
        assert spans.open_spans == {}
        assert spans.tokens == {}
    return spans


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.parametrize("model", ["text", "awaited"])
async def test_spans_are_entered_and_left_in_one_context(
    model: str, workload: str, streaming: bool, asynchronous: bool
) -> None:
    """As the host's are: each under the one that is open, and none is left in another context."""
    if workload == "sentences":
        parts = (MODELS[model](), HashRetriever(made_nodes()), workload)
        hand, _ = pair(*parts)
        _, ours = pair(*parts, streaming=streaming)
    else:
        index = VectorStoreIndex(made_nodes(), embed_model=WordEmbedding())
        hand, ours = pair(MODELS[model](), index.as_retriever(), workload, streaming=streaming)
    expected = await in_order(hand, asynchronous)
    with ours:
        got = await in_order(ours, asynchronous)

    assert expected.lost == got.lost
    if workload == "one_shot" or not streaming:
        assert expected.nested == got.nested
    else:  # the loop by hand does not stream: of ours, what streams is read behind the query
        assert sorted(map(called, expected.nested)) == sorted(map(called, got.nested))


def test_trees_of_spans_are_whole() -> None:
    """The host's own span handler finds each span's parent, and nothing is open or dropped."""
    hand, ours = pair(HashLLM(), HashRetriever(made_nodes()), "sentences")
    counts = []
    for engine in (hand, ours):
        with listening(SimpleSpanHandler()) as spans, hearing():
            engine.query(QUESTIONS[0])
        assert spans.open_spans == {}
        assert spans.dropped_spans == []
        known = {span.id_ for span in spans.completed_spans}
        parents = [span.parent_id for span in spans.completed_spans]
        assert [one for one in parents if one not in known] == [None]
        counts.append(
            sorted((named(one.id_), named(one.parent_id)) for one in spans.completed_spans)
        )

    assert counts[0] == counts[1]


def over_vectors(
    handler: Any, workload: str, model: str = "text"
) -> tuple[Any, SpeculativeQueryEngine]:
    """Put everything under one callback manager of the older kind."""
    manager = CallbackManager([handler])
    embedding = WordEmbedding(callback_manager=manager)
    index = VectorStoreIndex(made_nodes(), embed_model=embedding, callback_manager=manager)
    made = pair(MODELS[model](), index.as_retriever(), workload, manager=manager)
    made[0]._response_synthesizer.callback_manager = manager  # and its model's
    return made


async def asked(engine: Any, asynchronous: bool) -> None:
    for question in QUESTIONS[:3]:
        if asynchronous:
            await engine.aquery(question)
        else:
            engine.query(question)


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("workload", WORKLOADS)
async def test_tokens_are_counted_as_by_hand(workload: str, asynchronous: bool) -> None:
    """Of the calls that made the answers, and of no guess: prompts, texts and embeddings."""
    handler = TokenCountingHandler(tokenizer=str.split)
    hand, ours = over_vectors(handler, workload)
    counts = []
    for engine in (hand, ours):
        handler.reset_counts()
        await asked(engine, asynchronous)
        counts.append(
            (
                handler.prompt_llm_token_count,
                handler.completion_llm_token_count,
                handler.total_embedding_token_count,
                [one.prompt for one in handler.llm_token_counts],
            )
        )
    ours.close()

    assert all(counts[0])
    assert counts[0] == counts[1]


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("workload", WORKLOADS)
async def test_the_debug_handler_has_the_same_pairs_and_trace(
    workload: str, asynchronous: bool
) -> None:
    """Starts and ends in pairs, what the model was given and gave, and the same tree."""
    handler = LlamaDebugHandler(print_trace_on_end=False)
    hand, ours = over_vectors(handler, workload)
    kept = []
    for engine in (hand, ours):
        handler.flush_event_logs()
        await asked(engine, asynchronous)
        pairs = {kind: len(handler.get_event_pairs(kind)) for kind in CBEventType}
        prompts = [start.payload for start, _ in handler.get_llm_inputs_outputs()]
        kept.append((pairs, len(prompts), tree(handler), handler._cur_trace_id))
    ours.close()

    assert kept[0][1]
    assert kept[0] == kept[1]


def tree(handler: LlamaDebugHandler) -> list[tuple[str, list[str]]]:
    """Give the last trace by the names of its events."""
    names = {event.id_: event.event_type.value for event in handler.get_events()}
    return [
        (names.get(parent, parent), [names.get(one, "?") for one in children])
        for parent, children in handler._trace_map.items()
    ]


@pytest.mark.parametrize("workload", WORKLOADS)
def test_a_global_handler_hears_the_same(workload: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`set_global_handler` puts one into all managers that are made behind it."""
    handler = Legacy()
    monkeypatch.setattr(llama_index.core, "global_handler", handler)
    monkeypatch.setattr(Settings, "_callback_manager", None)
    index = an_index()
    hand, ours = pair(HashLLM(), index.as_retriever(), workload)
    told = []
    for engine in (hand, ours):
        handler.heard = []
        for question in QUESTIONS[:3]:
            engine.query(question)
        told.append(handler.heard)
    ours.close()

    assert told[0]
    assert told[0] == told[1]
