"""Inputs that users met and that failed once: each beside the host's own engine."""

import asyncio
import contextvars
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from llama_index.core import MockEmbedding, VectorStoreIndex
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.llms.types import CompletionResponse, LLMMetadata
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.retrieval import RetrievalEndEvent
from llama_index.core.instrumentation.span import SimpleSpan
from llama_index.core.instrumentation.span_handlers import BaseSpanHandler
from llama_index.core.llms import CustomLLM, MockLLM
from llama_index.core.llms.callbacks import llm_completion_callback
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import QueryFusionRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index_ralmspec import SpeculativeQueryEngine, SpeculativeRetriever, stats_of


def an_index(*texts: str) -> VectorStoreIndex:
    """Make an index of nodes that are called after their texts."""
    nodes = [TextNode(id_=text, text=text) for text in texts]
    return VectorStoreIndex(nodes, embed_model=MockEmbedding(4))


class Scores(BaseEventHandler):
    """Notes the scores of each retrieval when it ends."""

    seen: list[list[float]]

    def handle(self, event: Any, **_: Any) -> None:
        if isinstance(event, RetrievalEndEvent):
            self.seen.append([round(one.score or 0.0, 3) for one in event.nodes])


@contextmanager
def added(handlers: list[Any], handler: Any) -> Iterator[Any]:
    handlers.append(handler)
    try:
        yield handler
    finally:
        handlers.remove(handler)


def test_f1_events_inside_an_opaque_retriever_have_the_values_of_their_time() -> None:
    """A fusion writes new scores into its inner retrievers' nodes, after these have told theirs."""
    inner = [an_index("a", "b", "c").as_retriever(similarity_top_k=1) for _ in range(2)]
    fusion = QueryFusionRetriever(
        inner, llm=MockLLM(), num_queries=1, mode="reciprocal_rerank", use_async=False
    )
    host = RetrieverQueryEngine.from_args(fusion, llm=MockLLM())
    seen = []
    for options in (None, {}, {"speculate": False}, {"replica": inner[0]}):
        engine = host if options is None else SpeculativeQueryEngine.wrap(host, **options)
        with added(get_dispatcher().event_handlers, Scores(seen=[])) as handler:
            engine.query("a")
        seen.append(handler.seen)

    assert [[[1.0], [1.0], [0.033]]] * 4 == seen


current, spent = threading.local(), contextvars.ContextVar("spent", default=0)


class Tenants(BaseRetriever):
    """Finds what belongs to the tenant of the thread, and counts in the caller's context."""

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        spent.set(spent.get() + 1)
        tenant = getattr(current, "tenant", "everybody")
        return [NodeWithScore(node=TextNode(id_=tenant, text=f"of {tenant}"), score=1.0)]


@pytest.mark.parametrize("options", [{}, {"speculate": False}])
def test_f3_code_of_a_users_own_runs_in_the_callers_thread_and_context(options: Any) -> None:
    """Where nothing is guessed for it."""
    current.tenant = "ann"
    engines = [
        RetrieverQueryEngine.from_args(Tenants(), llm=MockLLM()),
        SpeculativeQueryEngine.from_args(Tenants(), llm=MockLLM(), **options),
    ]
    seen = []
    for engine in engines:
        spent.set(0)
        found = [one.node_id for one in engine.query("x").source_nodes]
        seen.append((found, spent.get()))

    assert [(["ann"], 1)] * 2 == seen


class Refuses(CustomLLM):
    """Raises when it is called, or when its stream is read."""

    called: list[str] = []  # noqa: RUF012 a pydantic field

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata()

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **_: Any) -> CompletionResponse:
        raise ValueError("429")

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **_: Any) -> Any:
        def pieces() -> Iterator[CompletionResponse]:
            self.called.append(prompt)
            raise ValueError("429")
            yield CompletionResponse(text="")

        return pieces()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_f4_a_stream_calls_the_model_when_it_is_read(asynchronous: bool) -> None:
    """`query` returns when the sources are known; errors are raised by reading."""
    llm, index = Refuses(called=[]), an_index("a")
    for engine in (
        index.as_query_engine(llm=llm, streaming=True),
        SpeculativeQueryEngine.from_index(index, llm=llm, streaming=True),
    ):

        async def read(engine: Any = engine) -> None:
            response: Any = await engine.aquery("x") if asynchronous else engine.query("x")
            assert ["a"] == [one.node_id for one in response.source_nodes]
            assert llm.called == []
            if asynchronous:
                [_ async for _ in response.response_gen]
            else:
                list(response.response_gen)

        with pytest.raises(ValueError, match="429"):
            asyncio.run(read())
        llm.called.clear()


def test_f4_a_stream_that_nobody_reads_calls_no_model() -> None:
    """Nothing is begun that the host would not have begun."""
    llm = Refuses(called=[])
    with SpeculativeQueryEngine.from_index(an_index("a"), llm=llm, streaming=True) as engine:
        response: Any = engine.query("x")
        del response

    assert llm.called == []


now: contextvars.ContextVar[str | None] = contextvars.ContextVar("span", default=None)
tokens: dict[str, Any] = {}  # of the spans that are current


class Attaches(BaseSpanHandler[SimpleSpan]):
    """Makes its spans current, as OpenTelemetry's handlers do."""

    def new_span(
        self, id_: str, bound_args: Any, instance: Any = None, parent_span_id: Any = None, **_: Any
    ) -> SimpleSpan:
        tokens[id_] = now.set(id_.split("-")[0])
        return SimpleSpan(id_=id_, parent_id=parent_span_id)

    def prepare_to_exit_span(self, id_: str, bound_args: Any, **_: Any) -> Any:
        now.reset(tokens.pop(id_))
        return self.open_spans.get(id_)

    def prepare_to_drop_span(self, id_: str, bound_args: Any, **_: Any) -> Any:
        return self.prepare_to_exit_span(id_, bound_args)


class Calls(BaseRetriever):
    """Notes the span that is current while it works."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str | None] = []

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        self.seen.append(now.get())
        return [NodeWithScore(node=TextNode(id_="a", text="a"), score=1.0)]


@pytest.mark.parametrize("options", [None, {}, {"speculate": False}, {"workload": "sentences"}])
def test_f6_spans_are_current_while_their_work_runs(options: Any) -> None:
    """So the spans of other instrumentations stand under retrieval and model."""
    calls = Calls()
    if options is None:
        engine = RetrieverQueryEngine.from_args(calls, llm=MockLLM())
    else:
        engine = SpeculativeQueryEngine.from_args(calls, llm=MockLLM(max_tokens=3), **options)
    with added(get_dispatcher().span_handlers, Attaches()):
        engine.query("x")

    assert {"Calls._retrieve"} == set(calls.seen)


@pytest.mark.parametrize("workload", ["one_shot", "sentences"])
@pytest.mark.parametrize("read", [0, 1])
def test_f7_a_stream_left_half_way_is_silent_at_the_loops_end(workload: str, read: int) -> None:
    """No error is reported to the event loop when its generators are closed."""
    reported: list[str] = []
    engine = SpeculativeQueryEngine.from_index(
        an_index("a b c d"), llm=MockLLM(max_tokens=5), streaming=True, workload=workload
    )

    async def left() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, about: reported.append(repr(about)))
        for _ in range(2):
            response: Any = await engine.aquery("x")
            for _ in range(read):
                await anext(response.response_gen)

    asyncio.run(left())

    assert reported == []


class Slow(CustomLLM):
    """Computes for a while."""

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata()

    def complete(self, prompt: str, formatted: bool = False, **_: Any) -> CompletionResponse:
        time.sleep(0.3)
        return CompletionResponse(text="one\ntwo")

    def stream_complete(self, prompt: str, formatted: bool = False, **_: Any) -> Any:
        yield self.complete(prompt)


def test_f8_an_impure_retriever_does_not_block_the_event_loop() -> None:
    """What is known to compute in its asynchronous methods runs in a thread."""
    retriever = SpeculativeRetriever(QueryFusionRetriever([Calls()], llm=Slow(), num_queries=3))
    ticks: list[float] = []

    async def ticking() -> None:
        while True:
            ticks.append(time.perf_counter())
            await asyncio.sleep(0.005)

    async def main() -> list[NodeWithScore]:
        task = asyncio.create_task(ticking())
        await asyncio.sleep(0)
        found = await retriever.aretrieve("x")
        task.cancel()
        return found

    assert ["a"] == [one.node_id for one in asyncio.run(main())]
    assert len(ticks) > 5  # and not two


def test_f9_the_metadata_of_a_response_are_the_hosts() -> None:
    """Those of the sources by id, or None; the numbers stand elsewhere."""
    empty = VectorStoreIndex([], embed_model=MockEmbedding(4))
    node = TextNode(text="a", metadata={"file_name": "a.md"})
    full = VectorStoreIndex([node], embed_model=MockEmbedding(4))
    for index in (empty, full):
        expected = index.as_query_engine(llm=MockLLM()).query("x")
        ours = SpeculativeQueryEngine.from_index(index, llm=MockLLM())
        for _ in range(2):
            response = ours.query("x")
            assert expected == response
            assert expected.metadata == response.metadata
            assert stats_of(response).segments == 1
    assert ["a.md"] == [about["file_name"] for about in (response.metadata or {}).values()]


def test_f10_an_async_stream_may_be_read_in_another_loop() -> None:
    """As the host's."""
    index, llm = an_index("a b c d"), MockLLM(max_tokens=5)

    async def read(response: Any) -> str:
        return "".join([piece async for piece in response.response_gen])

    texts = []
    for engine in (
        index.as_query_engine(llm=llm, streaming=True),
        SpeculativeQueryEngine.from_index(index, llm=llm, streaming=True),
    ):
        for _ in range(2):
            response = asyncio.run(engine.aquery("x"))
            texts.append(asyncio.run(read(response)))

    assert ["text text text text text"] * 4 == texts
