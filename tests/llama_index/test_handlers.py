"""Handlers that people use, of both kinds: they count and nest what the host's engine tells."""

import asyncio
from collections import Counter
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
    """Each stands under the one that is open in its context, and is left where it was entered."""
    index = VectorStoreIndex(made_nodes(), embed_model=WordEmbedding())
    hand, ours = pair(MODELS[model](), index.as_retriever(), workload, streaming=streaming)
    expected = await in_order(hand, asynchronous)
    with ours:
        got = await in_order(ours, asynchronous)

    assert len(got.nested) > 5
    assert set(got.lost) <= set(expected.lost)


def test_trees_of_spans_are_whole() -> None:
    """The host's own span handler finds each span's parent, and no span is left open."""
    _, ours = pair(HashLLM(), HashRetriever(made_nodes()), "sentences")
    with listening(SimpleSpanHandler()) as spans, hearing():
        ours.query(QUESTIONS[0])
    every = [*spans.completed_spans, *spans.dropped_spans]
    known = {span.id_ for span in every}

    assert spans.open_spans == {}
    assert len(every) > 5
    assert [None] == [span.parent_id for span in every if span.parent_id not in known]


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


async def asked(engine: Any, asynchronous: bool) -> list[Any]:
    return [
        await engine.aquery(question) if asynchronous else engine.query(question)
        for question in QUESTIONS[:3]
    ]


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("workload", WORKLOADS)
async def test_tokens_are_counted_once_for_each_call_that_is_paid_for(
    workload: str, asynchronous: bool
) -> None:
    """Of every call of the model, dropped ones too, and of no other: by the model's own count."""
    handler = TokenCountingHandler(tokenizer=str.split)
    hand, ours = over_vectors(handler, workload)
    prompts = hand._response_synthesizer._llm.prompts
    made, texts = [], []
    for engine in (hand, ours):
        handler.reset_counts()
        prompts.clear()
        texts.append([str(one) for one in await asked(engine, asynchronous)])
        counted = [one.prompt for one in handler.llm_token_counts]
        # A model whose `acomplete` calls `complete` tells of both, in the host too; and a call
        # that is cut off has no end.
        each = 2 if asynchronous else 1
        assert not Counter(counted) - Counter(prompts * each)
        assert sum(len(one.split()) for one in counted) == handler.prompt_llm_token_count
        assert handler.total_embedding_token_count
        made.append(Counter(counted))
    ours.close()

    assert texts[0] == texts[1]
    assert all(texts[0])
    assert not made[0] - made[1]  # all that the host pays for, and what was dropped besides


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("workload", WORKLOADS)
async def test_the_debug_handler_has_pairs(workload: str, asynchronous: bool) -> None:
    """Starts and ends come in pairs, and one trace has them."""
    handler = LlamaDebugHandler(print_trace_on_end=False)
    _, ours = over_vectors(handler, workload)
    with ours:
        handler.flush_event_logs()
        await asked(ours, asynchronous)
    for kind in (CBEventType.QUERY, CBEventType.LLM, CBEventType.EMBEDDING):
        pairs = handler.get_event_pairs(kind)
        assert len(pairs) >= 3
        assert {2} == {len(pair) for pair in pairs}


def test_a_global_handler_hears_of_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """`set_global_handler` puts one into all managers that are made behind it."""
    handler = Legacy()
    monkeypatch.setattr(llama_index.core, "global_handler", handler)
    monkeypatch.setattr(Settings, "_callback_manager", None)
    _, ours = pair(HashLLM(), an_index().as_retriever(), "one_shot")
    with ours:
        for question in QUESTIONS[:3]:
            ours.query(question)
    told = Counter(one[:2] for one in handler.heard)

    assert (3, 3) == (told["start", "query"], told["end", "query"])
    assert told["start", "llm"] == told["end", "llm"] >= 3
