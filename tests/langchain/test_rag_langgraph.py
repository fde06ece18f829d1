"""In LangGraph: as a node, behind a tool, in an agent; no stream shows what was rolled back."""

import asyncio
import json
import operator
from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel, FakeListLLM
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.prompts import PromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableConfig, RunnablePassthrough
from langchain_core.tools import create_retriever_tool
from langchain_ralmspec import SpeculativeRetriever, speculate, stats_of
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.config import get_stream_writer
from langgraph.graph import END, START, StateGraph
from typing_extensions import TypedDict

from ralmspec_plugins import FixedStride, QueryCache, SharedPassageCache
from tests.langchain.rag_loops import by_hand
from tests.langchain.rag_parts import (
    QUESTIONS,
    HashChat,
    HashLLM,
    HashRetriever,
    canaries,
    documents,
    plain_values,
    rag_of,
    vector_store,
)
from tests.langchain.test_rag_equality import values

LIAR = HashRetriever(documents=documents(), salt="lie")
MODES: Any = ["values", "updates", "messages", "custom", "debug", "tasks", "checkpoints"]
MODELS = {"text": HashLLM, "chat": HashChat}


class State(TypedDict, total=False):
    input: str
    context: list[Document]
    answer: str
    ralmspec: Any
    seen: Annotated[list[str], operator.add]


def graph_of(answers: Any, **compiled: Any) -> Any:
    """A graph of two nodes: the answer, and what was seen of it."""
    graph = StateGraph(State)
    graph.add_node("answer", answers)
    graph.add_node("look", lambda state: {"seen": [state["answer"][:5]]})
    graph.add_edge(START, "answer")
    graph.add_edge("answer", "look")
    graph.add_edge("look", END)
    return graph.compile(**compiled)


def parts(model: str) -> tuple[Any, Any, Any]:
    llm, retriever = MODELS[model](), HashRetriever(documents=documents())
    settings: Any = {"replica": LIAR, "pool": None, "schedule": FixedStride(stride=3)}
    return llm, retriever, rag_of(llm, retriever, "interval", **settings)


@pytest.mark.parametrize("model", MODELS)
async def test_as_a_node_it_gives_what_the_loop_by_hand_gives(model: str) -> None:
    """The final state, invoked and awaited."""
    llm, retriever, rag = parts(model)
    by = by_hand(llm, retriever, "interval")
    graph = graph_of(rag)
    for question in QUESTIONS[:3]:
        expected = values(by.invoke(question))
        got = graph.invoke({"input": question})
        assert expected == values(got)
        assert [got["answer"][:5]] == got["seen"]
        assert expected == values(await graph.ainvoke({"input": question}))
    rag.close()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("subgraphs", [False, True])
async def test_no_stream_mode_shows_what_was_rolled_back(model: str, subgraphs: bool) -> None:
    """All stream modes at once, sync and async: of all words written, only those that stayed."""
    llm, retriever, rag = parts(model)
    graph = graph_of(rag)
    hand = by_hand(llm, retriever, "interval")
    right = canaries(hand.invoke(QUESTIONS[0]))
    llm.written.clear()
    inputs: Any = {"input": QUESTIONS[0]}
    streamed = list(graph.stream(inputs, stream_mode=MODES, subgraphs=subgraphs))
    astreamed = [one async for one in graph.astream(inputs, stream_mode=MODES, subgraphs=subgraphs)]
    events = [one async for one in graph.astream_events(inputs, version="v2")]

    assert right == canaries(streamed)
    assert right == canaries(astreamed)
    assert right == canaries(events)
    assert canaries(llm.written) > right
    rag.close()


async def test_messages_come_as_the_model_s_own_calls_would_send_them() -> None:
    """`stream_mode="messages"`: the tokens of a hand-written node, in its order."""
    llm, retriever, rag = parts("chat")
    hand = by_hand(llm, retriever, "interval")

    async def node(state: State, config: RunnableConfig) -> Any:
        return await hand.ainvoke(state["input"], config)

    def plain_node(state: State, config: RunnableConfig) -> Any:
        return hand.invoke(state["input"], config)

    for question in QUESTIONS[:3]:
        inputs: Any = {"input": question}
        expected = list(graph_of(plain_node).stream(inputs, stream_mode="messages"))
        got = list(graph_of(rag).stream(inputs, stream_mode="messages"))
        assert _tokens(expected) == _tokens(got)
        aexpected = [one async for one in graph_of(node).astream(inputs, stream_mode="messages")]
        agot = [one async for one in graph_of(rag).astream(inputs, stream_mode="messages")]
        assert _tokens(aexpected) == _tokens(agot)
        assert _tokens(expected)
        assert canaries(llm.written) > canaries(got, agot)  # wrong guesses were written
    rag.close()


async def test_a_node_s_events_say_of_the_model_what_its_own_calls_would() -> None:
    """`astream_events` of a graph: start, each token, and the end of a call of that kind."""
    llm, retriever, rag = parts("chat")
    invoked = by_hand(llm, retriever, "interval")
    streamed = by_hand(llm, retriever, "interval", streams=True)

    def node(runnable: Any) -> Any:
        async def invoke(state: State, config: RunnableConfig) -> Any:
            return await runnable.ainvoke(state["input"], config)

        return graph_of(invoke)

    for question in QUESTIONS[:3]:
        inputs: Any = {"input": question}
        for graphs in ((node(invoked), node(rag)), (node(streamed), graph_of(rag))):
            expected, got = [
                [_of_model(event) async for event in graph.astream_events(inputs, version="v2")]
                for graph in graphs
            ]
            assert [one for one in expected if one] == [one for one in got if one]
            assert {"on_chat_model_start", "on_chat_model_stream", "on_chat_model_end"} == {
                one[0] for one in got if one
            }
            assert canaries(llm.written) > canaries(got)
    rag.close()


async def test_a_node_s_first_message_comes_before_the_model_has_finished() -> None:
    """The model is held up before its second word until the graph's reader has seen the first."""
    seen, in_time = asyncio.Event(), []

    async def held_up(number: int) -> None:
        if number == 1:
            await asyncio.wait_for(seen.wait(), 3)
            in_time.append(True)

    llm = HashChat(abetween=held_up)
    rag = rag_of(llm, HashRetriever(documents=documents()), "one_shot")
    inputs: Any = {"input": QUESTIONS[0]}
    async for message, _ in graph_of(rag).astream(inputs, stream_mode="messages"):
        if message.text:
            seen.set()
    await asyncio.to_thread(rag.close)

    assert [True] == in_time


def _of_model(event: Any) -> Any:
    """Show an event of a model, but for ids."""
    if not event["event"].startswith("on_chat_model"):
        return None
    data = event["data"]
    said = data.get("output") or data.get("chunk")
    shown = None if said is None else {**dict(said), "id": None}
    return event["event"], event["name"], str(data.get("input")), type(said), shown


@pytest.mark.filterwarnings("ignore:The v3 streaming protocol")
async def test_the_third_protocol_shows_each_committed_message() -> None:
    """`stream_events(version="v3")`, an experiment of LangGraph's: whole messages, no other."""
    llm, retriever, rag = parts("chat")
    hand = by_hand(llm, retriever, "interval")
    graph = graph_of(rag)
    if not hasattr(graph, "stream_events"):
        pytest.skip("this LangGraph has no third protocol")
    for question in QUESTIONS[:3]:
        answer = hand.invoke(question)["answer"]
        inputs: Any = {"input": question}
        run = graph.stream_events(inputs, version="v3")
        pieces = [str(message.text) for message in run.messages]
        arun = await graph.astream_events(inputs, version="v3")
        events = [event async for event in arun]

        assert pieces
        assert answer == "".join(pieces)
        assert canaries(answer) == canaries(events)
        assert canaries(llm.written) > canaries(answer)
    rag.close()


def _tokens(streamed: list[Any]) -> list[Any]:
    """Show message chunks with the node they come from; empty ones aside."""
    return [(message.text, about["langgraph_node"]) for message, about in streamed if message.text]


@pytest.mark.filterwarnings("error")
async def test_a_checkpointer_can_keep_the_reply() -> None:
    """`InMemorySaver` writes the reply down and reads it back: documents, report."""
    _, _, rag = parts("chat")
    graph = graph_of(rag, checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "one"}}
    got = graph.invoke({"input": QUESTIONS[0]}, config)
    kept = graph.get_state(config).values

    assert values(got) == values(kept)
    assert got["ralmspec"] == kept["ralmspec"] == json.loads(json.dumps(got["ralmspec"]))
    assert stats_of(got) == stats_of(kept)
    assert stats_of(got).overlap_s == stats_of(kept).overlap_s
    assert len(stats_of(got).timeline) > 0
    rag.close()


class ToolCaller(BaseChatModel):
    """Calls the tool with the question, twice, and then says what it was given."""

    @property
    def _llm_type(self) -> str:
        return "caller"

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kw: Any
    ) -> ChatResult:
        found = [message for message in messages if isinstance(message, ToolMessage)]
        asked = next(message for message in messages if isinstance(message, HumanMessage))
        if len(found) < 2:
            call = {
                "name": "search",
                "args": {"query": f"{asked.text} {len(found)}"},
                "id": f"call-{len(found)}",
            }
            message = AIMessage(content="", tool_calls=[call])
        else:
            message = AIMessage(content=" + ".join(str(one.content) for one in found))
        return ChatResult(generations=[ChatGeneration(message=message)])


@pytest.fixture(params=["black box", "looked into"])
def retriever(request: pytest.FixtureRequest) -> Iterator[Any]:
    if request.param == "black box":
        yield HashRetriever(documents=documents())
    else:
        yield vector_store(documents()).as_retriever(search_kwargs={"k": 2})


async def test_in_an_agent_the_retriever_s_layer_gives_the_same(retriever: Any) -> None:
    """A tool over `SpeculativeRetriever` in an agent: the same messages, with each event once."""
    langgraph_agents = pytest.importorskip("langgraph.prebuilt")

    def agent(searched: Any) -> Any:
        tool = create_retriever_tool(searched, "search", "Finds passages.")
        with pytest.warns(DeprecationWarning, match="create_react_agent"):
            return langgraph_agents.create_react_agent(ToolCaller(), [tool])

    layer = SpeculativeRetriever(retriever=retriever, memo=QueryCache(), pool=SharedPassageCache())
    plain, ours = agent(retriever), agent(layer)
    for question in (*QUESTIONS[:3], QUESTIONS[0]):
        inputs: Any = {"messages": [("user", question)]}
        expected = plain.invoke(inputs)["messages"]
        assert _shown(expected) == _shown(ours.invoke(inputs)["messages"])
        assert _shown(expected) == _shown((await ours.ainvoke(inputs))["messages"])
        one, other = [
            [
                event["data"].get("output")
                async for event in graph.astream_events(inputs, version="v2")
                if event["event"] == "on_retriever_end"
                and event["name"] in (layer.get_name(), retriever.get_name())
            ]
            for graph in (plain, ours)
        ]
        assert 2 == len(one)
        assert {str(plain_values(found)) for found in one} == {
            str(plain_values(found)) for found in other
        }
    layer.close()


def _shown(messages: list[BaseMessage]) -> list[Any]:
    return [(message.type, message.content) for message in messages]


async def test_in_a_graph_s_node_the_retriever_s_layer_gives_the_same(retriever: Any) -> None:
    """A node that searches: the same state in every stream mode."""
    layer = SpeculativeRetriever(retriever=retriever)

    def graph(searched: Any) -> Any:
        async def asearch(state: State, config: RunnableConfig) -> Any:
            found = await searched.ainvoke(state["input"], config)
            return {"context": found, "answer": found[0].page_content}

        return graph_of(asearch)

    for question in QUESTIONS[:3]:
        inputs: Any = {"input": question}
        for mode in ("values", "updates", "custom"):
            expected = [one async for one in graph(retriever).astream(inputs, stream_mode=mode)]
            assert expected == [one async for one in graph(layer).astream(inputs, stream_mode=mode)]
    layer.close()


class Said(TypedDict, total=False):
    q: str
    a: str


class Tells(BaseRetriever):
    """Tells the run that it is in what it searches for."""

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[Document]:
        get_stream_writer()({"searching": query})
        return [Document(f"text about {query}")]


@pytest.mark.parametrize("speculate_ahead", [True, False])
def test_a_retriever_may_use_the_run_that_it_is_in(speculate_ahead: bool) -> None:
    """What LangGraph puts into a config for a run reaches the retriever, as in the plain chain."""
    chain = (
        {"context": Tells() | (lambda documents: documents[0].page_content),
         "question": RunnablePassthrough()}
        | PromptTemplate.from_template("{context} {question}")
        | FakeListLLM(responses=["answer"])
        | StrOutputParser()
    )  # fmt: skip

    def told(runnable: Any) -> list[Any]:
        graph = StateGraph(Said).add_node("n", lambda state: {"a": runnable.invoke(state["q"])})
        compiled = graph.add_edge(START, "n").compile()
        return list(compiled.stream({"q": "fox"}, stream_mode="custom"))

    expected = told(chain)

    assert [{"searching": "fox"}] == expected
    assert expected == told(speculate(chain, speculate=speculate_ahead))


def test_it_is_a_node_as_it_is() -> None:
    """It reads the state and writes its reply there; what is in it is what the loop gives."""
    retriever = vector_store(documents()).as_retriever(search_kwargs={"k": 2})
    for model in MODELS.values():
        rag, loop = rag_of(model(), retriever), by_hand(model(), retriever, "sentences")
        graph: Any = StateGraph(State).add_node("answer", rag).add_edge(START, "answer").compile()
        for question in QUESTIONS[:4]:
            state = graph.invoke({"input": question})
            expected = loop.invoke(question)
            assert expected == {name: state[name] for name in expected}
            assert expected["context"]
            assert stats_of(state).segments > 0
        rag.close()
