"""What a request took is told to a handler, whichever way it is asked; a reply has none of it."""

import asyncio
import json
from typing import Any

import pytest
from langchain_core.runnables import RunnableLambda
from langchain_ralmspec import ReportHandler, SpeculativeRAG, speculate, stats_of
from langgraph.graph import START, StateGraph
from typing_extensions import TypedDict

from ralmspec_plugins.errors import InputError
from tests.langchain.rag_parts import (
    QUESTIONS,
    HashLLM,
    HashRetriever,
    HostError,
    called,
    documents,
    rag_of,
)
from tests.langchain.test_cases import WAYS, chain_of

QUESTION = QUESTIONS[0]


def rag(**settings: Any) -> SpeculativeRAG:
    settings = {"report": False, **settings}
    made: SpeculativeRAG = rag_of(HashLLM(), HashRetriever(documents=documents()), **settings)
    return made


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("output", ["reply", "answer"])
def test_a_handler_has_the_report_of_every_way_to_ask(way: str, output: str) -> None:
    """Also where the answer is a bare text; the reply has no key of ours."""
    ours, handler = rag(output=output), ReportHandler()
    expected = rag(report=True).invoke(QUESTION)["ralmspec"]
    given = called(ours, QUESTION, way, {"callbacks": [handler]})
    [report] = handler.reports

    if output == "reply":
        assert {"input", "context", "answer"} == set(given)
    assert expected["queries"] == report["queries"]
    assert json.loads(json.dumps(report)) == report
    assert stats_of(handler) == stats_of(report)
    assert stats_of(handler).segments == expected["stats"]["segments"] > 1
    ours.close()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("around", ["nothing", "retry", "fallbacks", "config", "sequence"])
def test_a_chain_of_ones_own_is_reported_in_its_wrappings(around: str, way: str) -> None:
    """Text comes out; a report for each request."""
    chain: Any = chain_of(HashLLM(), HashRetriever(documents=documents()))
    chain = {
        "nothing": lambda: chain,
        "retry": chain.with_retry,
        "fallbacks": lambda: chain.with_fallbacks([RunnableLambda(str)]),
        "config": lambda: chain.with_config(tags=["mine"]),
        "sequence": lambda: chain,
    }[around]()
    ours, handler = speculate(chain), ReportHandler()
    if around == "sequence":
        ours = RunnableLambda(str.strip) | ours
    for asked in range(2):
        assert called(chain, QUESTION, way) == called(ours, QUESTION, way, {"callbacks": [handler]})
        assert asked + 1 == len(handler.reports)
    assert [[QUESTION]] * 2 == [one["queries"] for one in handler.reports]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_batch_has_one_for_each(asynchronous: bool) -> None:
    """All at one handler, or each at its own."""
    ours, shared = rag(), ReportHandler()
    own = [ReportHandler() for _ in QUESTIONS[:6]]
    configs: list[Any] = [{"callbacks": [shared, one]} for one in own]
    if asynchronous:
        asyncio.run(ours.abatch(list(QUESTIONS[:6]), configs))
    else:
        ours.batch(list(QUESTIONS[:6]), configs)

    assert list(QUESTIONS[:6]) == [one.reports[0]["queries"][0] for one in own]
    assert sorted(QUESTIONS[:6]) == sorted(one["queries"][0] for one in shared.reports)
    ours.close()


def test_a_node_of_a_graph_is_reported() -> None:
    """The handler is given to the graph."""

    class State(TypedDict, total=False):
        input: str
        context: list[Any]
        answer: str

    ours, handler = rag(), ReportHandler()
    graph: Any = StateGraph(State).add_node("answer", ours).add_edge(START, "answer").compile()
    state = graph.invoke({"input": QUESTION}, {"callbacks": [handler]})

    assert ours.invoke(QUESTION) == state
    assert stats_of(handler).segments > 1
    ours.close()


def test_a_request_that_failed_has_none() -> None:
    """Nor has one whose stream was not read to its end."""

    def fails(prompt: str) -> None:
        raise HostError("no")

    ours, handler = rag_of(HashLLM(hook=fails), HashRetriever(documents=[])), ReportHandler()
    with pytest.raises(HostError):
        ours.invoke(QUESTION, {"callbacks": [handler]})
    stream = rag().stream(QUESTION, {"callbacks": [handler]})
    next(stream)
    stream.close()

    assert handler.reports == []
    with pytest.raises(InputError, match="read a stream to its end"):
        stats_of(handler)
    ours.close()


@pytest.mark.parametrize("wrong", [{}, {"answer": "x"}, {"ralmspec": {}}, {"stats": 1}, None, "x"])
def test_what_has_no_report_is_refused(wrong: Any) -> None:
    """With what has one."""
    with pytest.raises(InputError, match="ReportHandler"):
        stats_of(wrong)


def test_an_input_keeps_a_key_of_that_name() -> None:
    """Unless the reply has its report there."""
    given = {"input": QUESTION, "ralmspec": 1}
    ours = rag()

    assert ours.invoke(given)["ralmspec"] == 1
    assert stats_of(rag(report=True).invoke(given)).segments > 1
    ours.close()
