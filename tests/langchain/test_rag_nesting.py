"""Retrievers with runs inside: told with those runs, in their places, as by hand."""

from typing import Any

import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_core.documents import BaseDocumentCompressor
from langchain_core.runnables import RunnableLambda

from tests.langchain.rag_loops import by_hand
from tests.langchain.rag_parts import (
    QUESTIONS,
    AsyncLog,
    HashLLM,
    HashRetriever,
    HostError,
    Log,
    canaries,
    documents,
    rag_of,
    told,
)
from tests.langchain.test_rag_events import CONFIG, WRONG


class First(BaseDocumentCompressor):
    """Keeps the first document."""

    def compress_documents(self, documents: Any, query: str, callbacks: Any = None) -> Any:
        return list(documents)[:1]


def retrievers() -> dict[str, Any]:
    inner = HashRetriever(documents=documents(), k=3, tags=["in"])
    return {
        "compressed": ContextualCompressionRetriever(base_retriever=inner, base_compressor=First()),
        "function": RunnableLambda(inner._ranked),
        "function around": RunnableLambda(lambda query: inner.invoke(query)),
        "sequence": RunnableLambda(lambda query: query) | inner,
        "with retries": inner.with_retry(),
        "with fallbacks": inner.with_fallbacks([inner]),
        "named": inner.with_config(run_name="find", tags=["t"], metadata={"m": 2}),
    }


def shown(log: Log) -> list[str]:
    """Show all but the root's own run; tags in no order."""
    for _, _, kwargs in log.events:
        if kwargs.get("tags"):
            kwargs["tags"] = sorted(kwargs["tags"])
    return told(log, without=("on_custom", "on_stream"))[1:-1]


@pytest.mark.parametrize("name", retrievers())
async def test_runs_inside_a_retriever_are_told_as_by_hand(name: str) -> None:
    """Chains, compressors, retries: same runs, same parents; nothing of a dropped search."""
    llm, retriever = HashLLM(), retrievers()[name]
    hand, rag = by_hand(llm, retriever, "interval"), rag_of(llm, retriever, "interval", **WRONG)
    logs = Log(), Log(), AsyncLog(), AsyncLog()
    hand.invoke(QUESTIONS[0], {**CONFIG, "callbacks": [logs[0]]})
    rag.invoke(QUESTIONS[0], {**CONFIG, "callbacks": [logs[1]]})
    await hand.ainvoke(QUESTIONS[0], {**CONFIG, "callbacks": [logs[2]]})
    await rag.ainvoke(QUESTIONS[0], {**CONFIG, "callbacks": [logs[3]]})

    assert shown(logs[0]) == shown(logs[1])
    assert shown(logs[2]) == shown(logs[3])
    assert canaries(llm.written) > canaries(logs[0].events)
    rag.close()


@pytest.mark.parametrize("name", ["compressed", "function", "function around", "sequence"])
async def test_errors_inside_a_retriever_end_all_its_runs(name: str) -> None:
    """The third search fails within: the host's error, and no run is left open."""
    retriever = retrievers()[name]

    def fails(query: str) -> None:
        if len(query.split()) > 8:
            raise HostError(query)

    def failing(query: str) -> Any:
        fails(query)
        return retriever.invoke(query)

    wrapped = RunnableLambda(failing)
    hand = by_hand(HashLLM(), wrapped, "interval")
    rag = rag_of(HashLLM(), wrapped, "interval", **WRONG)
    log, alog = Log(), AsyncLog()
    with pytest.raises(HostError) as expected:
        hand.invoke(QUESTIONS[0])
    with pytest.raises(HostError) as got:
        rag.invoke(QUESTIONS[0], {"callbacks": [log]})
    with pytest.raises(HostError) as awaited:
        await rag.ainvoke(QUESTIONS[0], {"callbacks": [alog]})

    assert str(expected.value) == str(got.value) == str(awaited.value)
    assert [[], []] == [log.left_open(), alog.left_open()]
    rag.close()
