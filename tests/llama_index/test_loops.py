"""Event loops and threads: what belongs to the caller's stays there, and nothing holds it up."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.llms.types import CompletionResponse
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.llms import MockLLM
from llama_index.core.llms.callbacks import llm_completion_callback
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import QueryFusionRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index_ralmspec import SpeculativeQueryEngine

from tests.llama_index.engine_parts import QUESTIONS, WordLLM, an_index, seen

WORKLOADS = ["one_shot", "sentences", "interval"]
STEPS = {"bound": "max_tokens", "max_tokens": 24}


async def waits_here(loop: asyncio.AbstractEventLoop) -> None:
    """Wait for what only this event loop can bring about."""
    future = loop.create_future()
    loop.call_soon(future.set_result, None)
    await future


class Bound(BaseNodePostprocessor):
    """Belongs to the event loop that it was made on."""

    _loop: Any = PrivateAttr()

    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        raise AssertionError("the asynchronous method is to be called")

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        await waits_here(self._loop)
        return nodes[:1]


class Endless(Bound):
    """Waits for what never comes, and says how that ended."""

    _ended: list[str] = PrivateAttr(default_factory=list)
    _begun: asyncio.Event = PrivateAttr(default_factory=asyncio.Event)

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        self._begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self._ended.append("cancelled")
            raise
        return nodes


class Remote(BaseRetriever):
    """Awaits its answers on the event loop that it was made on."""

    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        raise AssertionError("the asynchronous method is to be called")

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        await waits_here(self._loop)
        return [NodeWithScore(node=TextNode(text="far", id_="far"), score=0.5)]


class Local(BaseRetriever):
    """Computes its answers."""

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [NodeWithScore(node=TextNode(text="near", id_="near"), score=0.4)]


class Blocking(WordLLM):
    """Goes on writing only when the event loop of its caller has gone on."""

    _loop: Any = PrivateAttr()

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._loop = asyncio.get_running_loop()

    def _called(self, prompt: str) -> str:
        gone_on = threading.Event()
        self._loop.call_soon_threadsafe(gone_on.set)
        assert gone_on.wait(5), "the event loop is held up"
        return super()._called(prompt)

    @llm_completion_callback()
    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> Iterator[CompletionResponse]:
        self._called(prompt)

        def pieces() -> Iterator[CompletionResponse]:
            for count in range(10_000):
                self._called(prompt)
                yield CompletionResponse(text="so " * (count + 1), delta="so ")

        return pieces()


def over(retriever: BaseRetriever, llm: Any, *processors: Any, **arguments: Any) -> Any:
    return RetrieverQueryEngine.from_args(
        retriever, llm=llm, node_postprocessors=list(processors), **arguments
    )


@pytest.mark.parametrize("guess_through", [None, True])
async def test_postprocessors_stay_on_the_callers_loop(guess_through: bool | None) -> None:
    """Also where the model would block it, which writes in a thread then."""
    host = over(an_index().as_retriever(), Blocking(prompts=[]), Bound())
    plain = over(an_index().as_retriever(), WordLLM(), Bound())
    with SpeculativeQueryEngine.wrap(host, guess_through=guess_through) as ours:
        for question in [*QUESTIONS, *QUESTIONS]:
            expected = seen(await plain.aquery(question))

            assert expected == seen(await ours.aquery(question))


@pytest.mark.parametrize("workload", ["sentences", "interval"])
async def test_they_stay_there_step_by_step(workload: Any) -> None:
    """As with the plain loop over a model that does not block."""
    parts = (an_index().as_retriever(), Blocking(prompts=[]), Bound())
    with SpeculativeQueryEngine.wrap(over(*parts), workload=workload, **STEPS) as ours:
        expected = await ours.with_options(speculate=False).aquery(QUESTIONS[0])

        assert seen(expected) == seen(await ours.aquery(QUESTIONS[0]))


async def test_a_stream_comes_from_the_thread() -> None:
    """Postprocessors on the caller's loop, pieces from a model that computes: the host's text."""
    parts = (an_index().as_retriever(), WordLLM(), Bound())
    host = over(*parts)
    expected = str((await host.aquery(QUESTIONS[0])).response)
    with SpeculativeQueryEngine.wrap(over(*parts, streaming=True)) as ours:
        response: Any = await ours.aquery(QUESTIONS[0])
        pieces = [piece async for piece in response.async_response_gen()]

    assert expected == "".join(pieces)
    assert 1 < len(pieces)


async def test_retrievers_in_a_container_stay_on_the_callers_loop() -> None:
    """A fusion of one that awaits and one that computes answers as at the host."""
    fusion = QueryFusionRetriever(
        [Remote(), Local()], llm=MockLLM(), num_queries=1, use_async=False
    )
    host = over(fusion, WordLLM())
    with SpeculativeQueryEngine.wrap(host) as ours:
        expected = seen(await host.aquery(QUESTIONS[0]))

        assert expected == seen(await ours.aquery(QUESTIONS[0]))


async def test_a_postprocessor_is_cancelled_with_its_query() -> None:
    """At once, where it waits, and not when it has come to an end."""
    endless = Endless()
    with SpeculativeQueryEngine.wrap(over(an_index().as_retriever(), WordLLM(), endless)) as ours:
        query = asyncio.create_task(ours.aquery(QUESTIONS[0]))
        await endless._begun.wait()
        query.cancel()
        with pytest.raises(asyncio.CancelledError):
            await query

    assert ["cancelled"] == endless._ended


async def test_a_model_in_a_thread_stops_with_its_query() -> None:
    """A cancelled query has ended only when the model is free again."""
    llm = Blocking(prompts=[])
    host = over(an_index().as_retriever(), llm, Bound(), streaming=True)
    with SpeculativeQueryEngine.wrap(host, workload="sentences", **STEPS) as ours:
        response: Any = await ours.aquery(QUESTIONS[0])
        pieces: AsyncIterator[str] = response.async_response_gen()
        await anext(pieces)
        await response.response_gen.aclose()
        called = len(llm.prompts)
        await asyncio.sleep(0.03)

    assert called == len(llm.prompts)


class Table(BaseRetriever):
    """Searches a table by a connection that is bound to its thread."""

    def __init__(self) -> None:
        super().__init__()
        self._rows = sqlite3.connect(":memory:")
        self._rows.execute("create table said (words)")
        self._rows.execute("insert into said values ('The fox is red.')")

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        found = self._rows.execute("select words from said").fetchall()
        return [NodeWithScore(node=TextNode(text=row[0], id_=row[0]), score=1.0) for row in found]


class Here(BaseNodePostprocessor):
    """Works in the thread that it was made in."""

    _thread: int = PrivateAttr(default_factory=threading.get_ident)

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        assert self._thread == threading.get_ident()
        return nodes


class ModelHere(WordLLM):
    """Writes in the thread that it was made in."""

    _thread: int = PrivateAttr(default_factory=threading.get_ident)

    def _called(self, prompt: str) -> str:
        assert self._thread == threading.get_ident()
        return super()._called(prompt)


@pytest.mark.parametrize("workload", WORKLOADS)
def test_the_plain_loop_stays_in_its_thread(workload: Any) -> None:
    """Retriever, postprocessors and model may be bound to it, as at the host."""
    options = {} if workload == "one_shot" else STEPS
    host = over(Table(), ModelHere(), Here())
    ours = SpeculativeQueryEngine.wrap(host, speculate=False, workload=workload, **options)
    with ours:
        response = ours.query(QUESTIONS[0])

    assert ["The fox is red."] == [node.get_content() for node in response.source_nodes]
    if workload == "one_shot":
        assert seen(host.query(QUESTIONS[0])) == seen(response)


def test_a_plain_stream_searches_in_its_thread() -> None:
    """Its text is written in another one, which is listened to."""
    host = over(Table(), WordLLM(), streaming=True)
    with SpeculativeQueryEngine.wrap(host, speculate=False) as ours:
        assert str(host.query(QUESTIONS[0])) == str(ours.query(QUESTIONS[0]))


def test_what_is_bound_to_a_thread_says_so_when_it_is_used_in_others() -> None:
    """The error is the object's own, and `speculate=False` the way out."""
    options = {"replica": an_index().as_retriever()}
    with (
        SpeculativeQueryEngine.wrap(over(Table(), WordLLM()), **options) as ours,
        pytest.raises(sqlite3.ProgrammingError, match="thread"),
    ):
        ours.query(QUESTIONS[0])
