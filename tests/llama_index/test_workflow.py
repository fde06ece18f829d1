"""Our engine and retriever in the steps of a workflow: what the host's give in their place."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.workflow import Context, Event, StartEvent, StopEvent, Workflow, step
from llama_index_ralmspec import SpeculativeQueryEngine, SpeculativeRetriever
from workflows.errors import WorkflowCancelledByUser

from ralmspec_plugins import FixedStride
from tests.llama_index.engine_parts import (
    QUESTIONS,
    AsyncWordLLM,
    WordLLM,
    an_index,
    seen,
    seen_nodes,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Piece(Event):
    """A piece of an answer."""

    text: str


class Question(Event):
    """One of several questions."""

    at: int
    text: str


class Answered(Event):
    """The response to one of them."""

    at: int
    response: Any


class AsksOnce(Workflow):
    """Answers by a query engine, and shows the text as it comes."""

    def __init__(self, engine: Any) -> None:
        super().__init__(timeout=60)
        self._engine = engine

    @step
    async def answer(self, ctx: Context, event: StartEvent) -> StopEvent:
        response = await self._engine.aquery(event.question)
        async for piece in response.async_response_gen():
            ctx.write_event_to_stream(Piece(text=piece))
        return StopEvent(result=await response.get_response())


class AsksAll(Workflow):
    """Answers several questions at a time, in steps that run side by side."""

    def __init__(self, engine: Any) -> None:
        super().__init__(timeout=60)
        self._engine = engine

    @step
    async def divide(self, ctx: Context, event: StartEvent) -> Question | None:
        for at, question in enumerate(event.questions):
            ctx.send_event(Question(at=at, text=question))
        return None

    @step(num_workers=4)
    async def answer(self, event: Question) -> Answered:
        return Answered(at=event.at, response=await self._engine.aquery(event.text))

    @step
    async def gather(self, ctx: Context, event: Answered) -> StopEvent | None:
        answered = ctx.collect_events(event, [Answered] * len(QUESTIONS))
        if answered is None:
            return None
        return StopEvent(result=[one.response for one in sorted(answered, key=lambda one: one.at)])


class Found(Event):
    """What a retriever found."""

    nodes: list[Any]


class FindsThenWrites(Workflow):
    """Retrieves in one step and writes in the next."""

    def __init__(self, retriever: Any, synthesizer: Any) -> None:
        super().__init__(timeout=60)
        self._retriever, self._synthesizer = retriever, synthesizer

    @step
    async def find(self, ctx: Context, event: StartEvent) -> Found:
        await ctx.store.set("question", event.question)
        return Found(nodes=await self._retriever.aretrieve(event.question))

    @step
    async def write(self, ctx: Context, event: Found) -> StopEvent:
        question = await ctx.store.get("question")
        return StopEvent(result=await self._synthesizer.asynthesize(question, event.nodes))


def hosts(llm: Any, *, streaming: bool = False) -> RetrieverQueryEngine:
    retriever = an_index().as_retriever(similarity_top_k=3)
    return RetrieverQueryEngine.from_args(retriever, llm=llm, streaming=streaming)


@pytest.fixture(params=[WordLLM, AsyncWordLLM])
def engines(request: pytest.FixtureRequest) -> Iterator[list[Any]]:
    """The host's engine and ours, which has something to guess with."""
    host = hosts(request.param())
    with SpeculativeQueryEngine.wrap(host, schedule=FixedStride(stride=2)) as ours:
        for question in QUESTIONS:
            ours.query(question)
        yield [host, ours]


@pytest.mark.parametrize("kind", [WordLLM, AsyncWordLLM])
async def test_a_step_that_streams(kind: Any) -> None:
    """The same pieces add up to the same text, with the same sources."""
    host = hosts(kind(), streaming=True)
    with SpeculativeQueryEngine.wrap(host, schedule=FixedStride(stride=2)) as ours:
        for question in QUESTIONS[:3]:
            outcomes = []
            for engine in (host, ours):
                handler = AsksOnce(engine).run(question=question)
                pieces = [one.text async for one in handler.stream_events() if type(one) is Piece]
                result = await handler
                assert "".join(pieces) == str(result)
                outcomes.append(seen(result))

            assert len(outcomes[0][1]) > 20
            assert len(outcomes[0][2]) == 3
            assert outcomes[0] == outcomes[1]


async def test_steps_side_by_side(engines: list[Any]) -> None:
    """Each question gets its own response, whichever comes first."""
    expected, given = [
        list(map(seen, await AsksAll(engine).run(questions=list(QUESTIONS)))) for engine in engines
    ]

    assert len({text for _, text, *_ in expected}) == len(QUESTIONS)
    assert all(nodes for _, _, nodes, _ in expected)
    assert expected == given


async def test_a_step_that_retrieves() -> None:
    """`SpeculativeRetriever` gives a step the nodes that it hands on."""
    retriever = an_index().as_retriever(similarity_top_k=3)
    synthesizer = get_response_synthesizer(llm=WordLLM())
    with SpeculativeRetriever(retriever) as ours:
        for question in QUESTIONS[:2]:
            expected, given = [
                await FindsThenWrites(one, synthesizer).run(question=question)
                for one in (retriever, ours)
            ]

            assert len(expected.source_nodes) == 3
            assert seen_nodes(expected.source_nodes) == seen_nodes(given.source_nodes)
            assert str(expected) == str(given) != ""


async def test_an_error_in_a_step_is_the_hosts() -> None:
    """A model that fails fails the workflow with its own error."""
    host = hosts(WordLLM(failing_at=1))
    with SpeculativeQueryEngine.wrap(host) as ours:
        for engine in (host, ours):
            with pytest.raises(RuntimeError, match="the model is out"):
                await AsksAll(engine).run(questions=list(QUESTIONS))


async def test_a_run_that_is_cancelled_leaves_the_engine_as_it_was(engines: list[Any]) -> None:
    """The next run answers."""
    _, ours = engines
    handler = AsksAll(ours).run(questions=list(QUESTIONS))
    await asyncio.sleep(0.01)
    await handler.cancel_run()
    with pytest.raises(WorkflowCancelledByUser):
        await handler
    given = await AsksAll(ours).run(questions=list(QUESTIONS))

    assert len(given) == len(QUESTIONS)
    assert all(str(one) and one.source_nodes for one in given)
