"""Our engine and retriever inside the host's own engines and agents: the same as the host's."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from llama_index.core.agent.workflow import ReActAgent
from llama_index.core.base.base_selector import BaseSelector, SelectorResult, SingleSelection
from llama_index.core.base.llms.types import CompletionResponse
from llama_index.core.chat_engine import CondenseQuestionChatEngine, ContextChatEngine
from llama_index.core.evaluation import BaseEvaluator, EvaluationResult
from llama_index.core.indices.query.query_transform import (
    HyDEQueryTransform,
    StepDecomposeQueryTransform,
)
from llama_index.core.llms.callbacks import llm_completion_callback
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.query_engine import (
    MultiStepQueryEngine,
    RetrieverQueryEngine,
    RetryQueryEngine,
    RouterQueryEngine,
    SubQuestionQueryEngine,
    TransformQueryEngine,
)
from llama_index.core.question_gen.types import BaseQuestionGenerator, SubQuestion
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.schema import QueryBundle
from llama_index.core.tools import QueryEngineTool, ToolMetadata
from llama_index_ralmspec import SpeculativeQueryEngine, SpeculativeRetriever

from ralmspec_plugins import FixedStride
from tests.llama_index.engine_parts import EMPTY, QUESTIONS, WordLLM, an_index, default_llm, seen

QUESTION = "Where does the red fox run, and who finds seven lamps?"


@pytest.fixture(autouse=True)
def _default_llm() -> Iterator[None]:
    with default_llm():
        yield


@pytest.fixture
def engines() -> Iterator[list[Any]]:
    """The host's query engine, ours, and the host's over our retriever."""
    index, llm = an_index(), WordLLM()
    retriever = index.as_retriever(similarity_top_k=3)
    host = RetrieverQueryEngine.from_args(retriever, llm=llm)
    with (
        SpeculativeQueryEngine.wrap(host, schedule=FixedStride(stride=2)) as ours,
        SpeculativeRetriever(retriever) as ours_inside,
    ):
        for question in QUESTIONS:  # so that there is something to guess with
            ours.query(question)
        yield [host, ours, RetrieverQueryEngine.from_args(ours_inside, llm=llm)]


def tools(engine: Any) -> list[QueryEngineTool]:
    return [
        QueryEngineTool(engine, ToolMetadata(name="world", description="knows the world")),
        QueryEngineTool(engine, ToolMetadata(name="again", description="knows it too")),
    ]


def memory() -> ChatMemoryBuffer:
    """Make a memory without a database: the default one leaves its connection open."""
    return ChatMemoryBuffer.from_defaults()


class TwoQuestions(BaseQuestionGenerator):
    """Asks each tool one question."""

    def _get_prompts(self) -> dict[str, Any]:
        return {}

    def _update_prompts(self, prompts: Any) -> None:
        pass

    def generate(self, tools: Sequence[ToolMetadata], query: QueryBundle) -> list[SubQuestion]:
        return [
            SubQuestion(sub_question=f"{query.query_str} {at}", tool_name=str(tool.name))
            for at, tool in enumerate(tools)
        ]

    async def agenerate(
        self, tools: Sequence[ToolMetadata], query: QueryBundle
    ) -> list[SubQuestion]:
        return self.generate(tools, query)


class Second(BaseSelector):
    """Chooses the second tool."""

    def _get_prompts(self) -> dict[str, Any]:
        return {}

    def _update_prompts(self, prompts: Any) -> None:
        pass

    def _select(self, choices: Any, query: QueryBundle) -> SelectorResult:
        return SelectorResult(selections=[SingleSelection(index=1, reason="it is the second")])

    async def _aselect(self, choices: Any, query: QueryBundle) -> SelectorResult:
        return self._select(choices, query)


class LikesLong(BaseEvaluator):
    """Passes an answer when it was asked a long question."""

    def _get_prompts(self) -> dict[str, Any]:
        return {}

    def _update_prompts(self, prompts: Any) -> None:
        pass

    async def aevaluate(
        self,
        query: str | None = None,
        response: str | None = None,
        contexts: Sequence[str] | None = None,
        **_: Any,
    ) -> EvaluationResult:
        passing = len(query or "") > 80
        return EvaluationResult(
            query=query, response=response, passing=passing, feedback="ask for more"
        )


class Thinker(WordLLM):
    """Calls the tool once, and answers with what it observed."""

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        observed = re.findall(r"Observation: (?!tool response)(.*)", prompt)
        if observed:
            return CompletionResponse(text=f"Thought: done.\nAnswer: {observed[-1]}")
        call = 'Action: world\nAction Input: {"input": "Where does the red fox run?"}'
        return CompletionResponse(text=f"Thought: I look it up.\n{call}")

    @llm_completion_callback()
    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> Iterator[CompletionResponse]:
        text = self.complete(prompt, formatted).text

        def pieces() -> Iterator[CompletionResponse]:
            yield CompletionResponse(text=text, delta=text)

        return pieces()


def without_ids(response: Any) -> tuple[Any, ...]:
    """Give what a response says; the nodes that engines make on the way have random ids."""
    assert response.source_nodes
    assert str(response) not in EMPTY
    return str(response), [(one.node.get_content(), one.score) for one in response.source_nodes]


def test_a_sub_question_engine(engines: list[Any]) -> None:
    """`SubQuestionQueryEngine` over our engine answers as over the host's."""
    expected, *others = [
        without_ids(
            SubQuestionQueryEngine.from_defaults(
                tools(engine),
                llm=WordLLM(),
                question_gen=TwoQuestions(),
                use_async=False,
                verbose=False,
            ).query(QUESTION)
        )
        for engine in engines
    ]

    assert [expected, expected] == others


async def test_a_sub_question_engine_on_an_event_loop(engines: list[Any]) -> None:
    """Its questions are asked side by side."""
    expected, *others = [
        without_ids(
            await SubQuestionQueryEngine.from_defaults(
                tools(engine), llm=WordLLM(), question_gen=TwoQuestions(), verbose=False
            ).aquery(QUESTION)
        )
        for engine in engines
    ]

    assert [expected, expected] == others


def test_a_router(engines: list[Any]) -> None:
    """`RouterQueryEngine` chooses our engine as it chooses the host's."""
    expected, *others = [
        _without_selection(
            RouterQueryEngine(Second(), tools(engine), llm=WordLLM()).query(QUESTION)
        )
        for engine in engines
    ]

    assert [expected, expected] == others


def _without_selection(response: Any) -> tuple[Any, ...]:
    response.metadata.pop("selector_result")
    return seen(response)


def test_a_multi_step_engine(engines: list[Any]) -> None:
    """`MultiStepQueryEngine` asks our engine again and again as it asks the host's."""

    def steps(engine: Any) -> Any:
        llm = WordLLM()
        made = MultiStepQueryEngine(
            engine,
            StepDecomposeQueryTransform(llm=llm),
            response_synthesizer=get_response_synthesizer(llm=llm),
            index_summary="a world",
            num_steps=3,
        ).query(QUESTION)
        return without_ids(made)

    expected, *others = [steps(engine) for engine in engines]

    assert [expected, expected] == others


def test_a_retrying_engine(engines: list[Any]) -> None:
    """`RetryQueryEngine`, which calls `_query`, retries with ours."""
    expected, *others = [
        seen(RetryQueryEngine(engine, LikesLong(), max_retries=2).query("Where is the fox?"))
        for engine in engines
    ]

    assert [expected, expected] == others


def test_a_transforming_engine(engines: list[Any]) -> None:
    """HyDE's documents are what is searched for."""
    expected, *others = [
        seen(TransformQueryEngine(engine, HyDEQueryTransform(llm=WordLLM())).query(QUESTION))
        for engine in engines
    ]

    assert [expected, expected] == others


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_an_agent_with_a_query_engine_tool(engines: list[Any]) -> None:
    """An agent calls our engine as a tool, and answers with what it says."""
    answers = []
    for engine in engines:
        agent = ReActAgent(tools=tools(engine), llm=Thinker(), streaming=False)
        answers.append(str(await agent.run(QUESTION, memory=memory())))
    expected = str(engines[0].query("Where does the red fox run?"))

    assert [expected] * 3 == answers
    assert expected not in EMPTY


def test_a_chat_engine_that_condenses_questions(engines: list[Any]) -> None:
    """`CondenseQuestionChatEngine`, which switches streaming on and off on our synthesizer."""
    chats = []
    for engine in engines:
        chat = CondenseQuestionChatEngine.from_defaults(engine, llm=WordLLM(), memory=memory())
        first = str(chat.chat("Where does the red fox run?"))
        streamed = "".join(chat.stream_chat("And who finds lamps?").response_gen)
        chats.append((first, streamed))

    assert [chats[0]] * 3 == chats
    assert all(chats[0])


def test_a_chat_engine_over_our_retriever() -> None:
    """`ContextChatEngine` shows what our retriever finds."""
    retriever = an_index().as_retriever(similarity_top_k=3)
    with SpeculativeRetriever(retriever) as ours:
        said = []
        for one in (retriever, ours):
            chat = ContextChatEngine.from_defaults(one, llm=WordLLM(), memory=memory())
            said.append([str(chat.chat(question)) for question in QUESTIONS[:3]])

    assert said[0] == said[1]
    assert all(said[0])
