"""Query engines are copied, pickled, closed and subclassed as the host's, or refuse it."""

import copy
import gc
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core import MockEmbedding, VectorStoreIndex
from llama_index.core.llms import MockLLM
from llama_index.core.postprocessor import SimilarityPostprocessor
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index_ralmspec import SpeculativeQueryEngine

from ralmspec_plugins import QueryCache, SharedPassageCache
from ralmspec_plugins.errors import Closed, ConfigError
from tests.llama_index.engine_parts import QUESTIONS, AsyncWordLLM, WordLLM, an_index, nodes, seen

COPIES: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda engine: pickle.loads(pickle.dumps(engine)),
}


def a_host(llm: Any = None, **more: Any) -> RetrieverQueryEngine:
    retriever = an_index().as_retriever(similarity_top_k=3)
    return RetrieverQueryEngine.from_args(retriever, llm=llm or WordLLM(), **more)


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("way", COPIES)
def test_a_copy_answers_as_the_original(way: str, used: bool) -> None:
    """Copied before or after its first query; and the original goes on, also behind a close."""
    index = VectorStoreIndex(nodes(), embed_model=MockEmbedding(8))
    host = index.as_query_engine(llm=MockLLM(max_tokens=6), similarity_top_k=2)
    expected = [seen(host.query(question)) for question in QUESTIONS]
    with SpeculativeQueryEngine.wrap(host, pool=SharedPassageCache(), memo=QueryCache()) as engine:
        if used:
            engine.query(QUESTIONS[0])
        with COPIES[way](engine) as other:
            assert expected == [seen(other.query(question)) for question in QUESTIONS]
        assert expected == [seen(engine.query(question)) for question in QUESTIONS]


def test_a_deep_copy_shares_nothing() -> None:
    """Neither pool nor memo, threads nor counts: as the host's copy has its own index."""
    with SpeculativeQueryEngine.wrap(a_host(), memo=QueryCache()) as engine:
        engine.query(QUESTIONS[0])
        other = copy.deepcopy(engine)

        assert engine.options.pool is not other.options.pool
        assert engine.options.memo is not other.options.memo
        assert 0 == other.stats.round_trips < engine.stats.round_trips


def test_a_stream_that_is_read_behind_close_says_so() -> None:
    """Whether it was begun or not: no text that is wrong, and an error with the way out."""
    engine = SpeculativeQueryEngine.wrap(
        a_host(streaming=True), workload="sentences", bound="max_tokens"
    )
    begun, unread = [iter(engine.query(question).response_gen) for question in QUESTIONS[:2]]
    first = next(begun)
    engine.close()

    for stream in (begun, unread):
        with pytest.raises(Closed, match="before you call close"):
            list(stream)
    assert first
    assert str(engine.query(QUESTIONS[0])).startswith(first)  # who asks again begins anew
    engine.close()


async def test_an_asynchronous_stream_that_is_read_behind_close_says_so() -> None:
    """The same on an event loop."""
    engine = SpeculativeQueryEngine.wrap(
        a_host(WordLLM(), streaming=True), workload="sentences", bound="max_tokens"
    )
    response = await engine.aquery(QUESTIONS[0])
    engine.close()

    with pytest.raises(Closed, match="before you call close"):
        async for _ in response.async_response_gen():
            pass


def test_streams_that_nobody_reads_leave_no_threads() -> None:
    """When the responses and the engine are gone, so is everything that was begun for them."""
    before = set(threading.enumerate())  # earlier tests' may end meanwhile
    engine = SpeculativeQueryEngine.wrap(a_host(AsyncWordLLM(), streaming=True))
    unread = [engine.query(question) for question in QUESTIONS]
    assert set(threading.enumerate()) - before
    unread.clear()
    engine.close()
    gc.collect()

    assert not set(threading.enumerate()) - before


@pytest.mark.parametrize(
    "name",
    [
        *("retrieve", "aretrieve", "synthesize", "asynthesize"),
        *("_apply_node_postprocessors", "_async_apply_node_postprocessors"),
    ],
)
def test_a_class_with_methods_that_would_not_be_called_is_refused(name: str) -> None:
    """When an engine of it is made, in every way; the message names the method."""
    kind: Any = type("Mine", (SpeculativeQueryEngine,), {name: lambda *_, **__: []})
    host = a_host()

    for make in (
        lambda: kind(host.retriever, host._response_synthesizer),
        lambda: kind.from_args(host.retriever, llm=WordLLM()),
        lambda: kind.wrap(host),
        lambda: kind.from_index(an_index(), llm=WordLLM()),
    ):
        with pytest.raises(ConfigError, match=rf"Mine overrides {name}.*postprocessor"):
            make()


def test_a_class_with_a_query_of_its_own_is_no_trouble() -> None:
    """What is called may be overridden; wrapped again it stays of its class."""

    class Mine(SpeculativeQueryEngine):
        def _query(self, query_bundle: Any) -> Any:
            response = super()._query(query_bundle)
            response.metadata["mine"] = True
            return response

    with Mine.wrap(a_host()) as first, Mine.wrap(first) as engine:
        assert engine.query(QUESTIONS[0]).metadata["mine"]
        assert type(engine.with_options(speculate=False)) is Mine


def test_an_engine_whose_methods_were_replaced_is_not_wrapped() -> None:
    """Of its class or of itself: its own code would not be called."""

    class Other(RetrieverQueryEngine):
        def retrieve(self, query_bundle: Any) -> Any:
            return super().retrieve(query_bundle)[:1]

    host = a_host(node_postprocessors=[SimilarityPostprocessor()])
    other = Other(host.retriever, host._response_synthesizer)
    host.retrieve = other.retrieve  # type: ignore[method-assign]

    for engine in (host, other):
        with pytest.raises(ConfigError, match="methods of its own"):
            SpeculativeQueryEngine.wrap(engine)
