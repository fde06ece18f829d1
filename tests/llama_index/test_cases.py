"""Inputs that users met and that failed once: each beside the host's own engine."""

import asyncio
import contextvars
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
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
from llama_index_ralmspec import (
    AgentOptions,
    Options,
    SpeculativeQueryEngine,
    SpeculativeRetriever,
    speculate,
    stats_of,
)
from pydantic import Field

from ralmspec_plugins import FixedStride
from ralmspec_plugins.errors import ConfigError, InputError
from tests.llama_index.engine_parts import default_llm
from tests.llama_index.rag_parts import (
    AsyncHashLLM,
    HashChat,
    HashLLM,
    HashRetriever,
    made_nodes,
    pair,
)


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


class Later(HashRetriever):
    """Takes its time, so that a guess is written on."""

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        await asyncio.sleep(0.02)
        return self._ranked(query_bundle.query_str)


def ahead(llm: Any, workload: str) -> tuple[Any, Any]:
    """Make engines that stream, and of ours one that writes on guesses, which are right."""
    nodes = made_nodes(3)
    return pair(
        llm,
        Later(nodes),
        workload,
        streaming=True,
        replica=HashRetriever(nodes),
        schedule=FixedStride(stride=2),
    )


async def shown(response: Any) -> str:
    return "".join([piece async for piece in response.response_gen])


async def shown_inside(engine: Any) -> tuple[Any, str]:
    """Make a text of a stream on a running event loop: the host reads it in another thread."""
    response = await engine.aquery("x")
    return response, str(response)


@pytest.mark.parametrize("model", [HashLLM, AsyncHashLLM, HashChat])
def test_f10_a_stream_that_was_begun_ahead_may_be_read_in_another_loop(model: Any) -> None:
    """The host's synthesizer writes there once more."""
    texts = []
    for engine in ahead(model(), "one_shot"):
        asyncio.run(engine.aquery("x"))  # from here on it is known that the model leaves no traces
        response = asyncio.run(engine.aquery("x"))
        texts.append(asyncio.run(shown(response)))
        response, text = asyncio.run(shown_inside(engine))
        texts.append(text)

    assert len(texts[0]) > 20
    assert [texts[0]] * 4 == texts
    assert stats_of(response).segments == 1


def test_f10_a_stream_half_read_ends_with_its_loop_and_goes_on_beside_it() -> None:
    """As an asynchronous generator of the host's does."""

    async def begun(engine: Any) -> tuple[Any, str]:
        response, first = await engine.aquery("x"), ""
        while not first:
            first = await anext(response.response_gen)
        return response, first

    async def beside(engine: Any) -> str:
        response, first = await begun(engine)
        rest = await asyncio.to_thread(lambda: asyncio.run(shown(response)))
        return first + rest

    host, ours = ahead(HashLLM(), "one_shot")
    expected = str(host.query("x"))
    for engine in (host, ours):
        asyncio.run(engine.aquery("x"))
        response, first = asyncio.run(begun(engine))
        assert first
        assert asyncio.run(shown(response)) == ""
    assert len(expected) > 20
    assert expected == asyncio.run(beside(ours))


@pytest.mark.parametrize("inside", [False, True])
def test_f10_a_stream_of_many_steps_says_where_it_is_to_be_read(inside: bool) -> None:
    """An error of ours, not no text."""
    _, ours = ahead(HashLLM(), "sentences")

    def read() -> Any:
        if inside:
            return asyncio.run(shown_inside(ours))
        return asyncio.run(shown(asyncio.run(ours.aquery("x"))))

    with pytest.raises(InputError, match="read it there"):
        read()


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"workloda": "sentences"}, TypeError, "did you mean 'workload'"),
        ({"similarty_top_k": 1}, TypeError, "did you mean 'similarity_top_k'"),
        ({"memo": True}, ConfigError, "memo must be a QueryCache"),
        ({"workload": "sentences", "max_tokens": 0}, ConfigError, "max_tokens must be"),
        ({"workload": "sentences", "max_tokens": "5"}, ConfigError, "max_tokens must be"),
        ({"deadline_s": -1}, ConfigError, "deadline_s must be"),
        ({"deadline_s": float("inf")}, ConfigError, "deadline_s must be"),
        ({"workload": "sentences", "stop": [""]}, ConfigError, "stop must be"),
        ({"seed": "a"}, ConfigError, "seed must be"),
        ({"speculate": "no"}, ConfigError, "speculate must be"),
    ],
)
def test_f5_options_are_checked_when_they_are_given(
    arguments: Any, error: type[Exception], match: str
) -> None:
    """Misspelt names and values without a meaning, before any query."""
    with pytest.raises(error, match=match):
        SpeculativeQueryEngine.from_index(an_index("a"), llm=MockLLM(), **arguments)


HOST = RetrieverQueryEngine.from_args(Tenants(), llm=MockLLM())


@pytest.mark.parametrize(
    ("make", "meant"),
    [
        (lambda: speculate(HOST, workloda="sentences"), "workload"),
        (lambda: speculate(HOST).with_options(memmo=None), "memo"),
        (lambda: SpeculativeQueryEngine(Tenants(), spekulate=False), "speculate"),
        (lambda: SpeculativeRetriever(Tenants(), memmo=None), "memo"),
        (lambda: Options(workloda="sentences"), "workload"),
        (lambda: AgentOptions(readonly=["search"]), "read_only"),
        (lambda: SpeculativeQueryEngine.from_args(Tenants(), streming=True), "streaming"),
    ],
)
def test_f5_a_misspelt_name_is_refused_with_what_was_meant(make: Any, meant: str) -> None:
    """Everywhere, in words of the public names."""
    with pytest.raises(TypeError, match=f"^unknown argument .*; did you mean '{meant}'") as told:
        make()

    assert "Options" not in str(told.value)


class Own(RetrieverQueryEngine):
    """Overrides a method."""

    def _query(self, query_bundle: QueryBundle) -> Any:
        return "something else"


@pytest.mark.parametrize(
    ("make", "remedy"),
    [
        (lambda: speculate(an_index("a")), r"for an index use SpeculativeQueryEngine\.from_index"),
        (lambda: speculate(Tenants()), r"for a retriever use SpeculativeQueryEngine\.from_args"),
        (lambda: speculate(Own(Tenants())), "got Own, with methods of its own: _query"),
        (lambda: SpeculativeQueryEngine.from_index(Tenants()), r"for a retriever use from_args"),
        (lambda: SpeculativeQueryEngine.from_index(HOST), r"for a query engine wrap"),
        (lambda: SpeculativeQueryEngine.from_args(an_index("a")), r"for an index use from_index"),
    ],
)
def test_f5_another_kind_of_object_is_refused_with_what_takes_it(make: Any, remedy: str) -> None:
    """Each way of making an engine names the one that fits."""
    with default_llm(), pytest.raises(ConfigError, match=remedy):
        make()


def test_f5_a_subclass_without_methods_is_a_query_engine() -> None:
    """What has been put together in `__init__` is taken over."""

    class Ours(RetrieverQueryEngine):
        def __init__(self) -> None:
            super().__init__(Calls(), HOST._response_synthesizer)

    engine = Ours()
    expected = engine.query("x")

    assert ["a"] == [one.node_id for one in expected.source_nodes]
    assert expected == speculate(engine).query("x")


def test_f5_all_that_the_host_takes_is_taken() -> None:
    """The retriever's arguments, the query engine's, and ours."""
    arguments: Any = {"similarity_top_k": 1, "vector_store_kwargs": {}, "verbose": True}
    engine = SpeculativeQueryEngine.from_index(
        an_index("a", "b"), llm=MockLLM(), streaming=False, report=True, **arguments
    )

    assert len(engine.query("x").source_nodes) == 1


class Samples(CustomLLM):
    """Draws from the process-wide random state, as a local model that samples."""

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata()

    def complete(self, prompt: str, formatted: bool = False, **_: Any) -> CompletionResponse:
        return CompletionResponse(text=f"{random.random():.6f}")

    def stream_complete(self, prompt: str, formatted: bool = False, **_: Any) -> Any:
        text = self.complete(prompt).text
        yield CompletionResponse(text=text, delta=text)


class Queue(Samples):
    """Gives its answers in turn."""

    at: int = 0

    def complete(self, prompt: str, formatted: bool = False, **_: Any) -> CompletionResponse:
        self.at += 1
        return CompletionResponse(text=f"answer {self.at}")


class Generator(Samples):
    """Draws from a generator of its own."""

    dice: Any = None

    def complete(self, prompt: str, formatted: bool = False, **_: Any) -> CompletionResponse:
        self.dice = self.dice or np.random.default_rng(0)
        return CompletionResponse(text=f"{self.dice.random():.6f}")


class Takes(Samples):
    """Takes its answers from a list."""

    answers: list[str] = Field(default_factory=lambda: [f"answer {at}" for at in range(99)])

    def complete(self, prompt: str, formatted: bool = False, **_: Any) -> CompletionResponse:
        return CompletionResponse(text=self.answers.pop(0))


class OneHot(MockEmbedding):
    """Another node for each number."""

    def _get_query_embedding(self, query: str) -> list[float]:
        number = int(query.split()[-1])
        return [float(at == number) + 1e-3 * at for at in range(60)]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_query_embedding(text)


@pytest.mark.parametrize("model", [Samples, Queue, Generator, Takes])
@pytest.mark.parametrize("streaming", [False, True])
def test_f2_no_call_is_made_ahead_of_a_model_whose_calls_leave_traces(
    streaming: bool, model: Any
) -> None:
    """Its draws, or its count, would be those of a call that is discarded."""
    nodes = [TextNode(id_=f"n{at}", text=f"text {at}") for at in range(60)]
    index = VectorStoreIndex(nodes, embed_model=OneHot(60))
    near = VectorStoreIndex(nodes[:1], embed_model=OneHot(60)).as_retriever()
    texts = []
    for options in (None, {"prefetch": 2}, {"replica": near}):
        settings: Any = {"llm": model(), "similarity_top_k": 1, "streaming": streaming}
        if options is None:
            engine: Any = index.as_query_engine(**settings)
        else:
            engine = SpeculativeQueryEngine.from_index(index, **settings, **options)
        said = []
        for seed in range(6):
            random.seed(seed)
            said.append(str(engine.query(f"number {seed * 7}")))
        texts.append(said)

    assert len(set(texts[0])) == 6
    assert texts[0] == texts[1] == texts[2]
