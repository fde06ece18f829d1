"""Parts with runs inside: each of their calls that counts is told as one run."""

from typing import Any

import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_core.documents import BaseDocumentCompressor
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import RunnableLambda

from tests.langchain.rag_loops import by_hand
from tests.langchain.rag_parts import (
    QUESTIONS,
    AsyncLog,
    HashChat,
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


def outermost(log: Log) -> Log:
    """Keep the runs right under the root's; tags in no order."""
    root = log.events[0][2]["run_id"]
    kept = Log()
    for name, args, kwargs in log.events:
        if kwargs.get("parent_run_id") == root and not name.startswith("on_custom"):
            if kwargs.get("tags"):
                kwargs["tags"] = sorted(kwargs["tags"])
            kept.note(name, args, kwargs)
    return kept


def given_and_found(log: Log, without: str = "nothing") -> list[Any]:
    """Show the outermost runs by what goes in and what comes out."""
    return [
        (name.rpartition("_")[2], args[1] if name.endswith("_start") else args[0])
        for name, args, _ in outermost(log).events
        if without not in name
    ]


async def fourfold(name: str) -> list[Log]:
    """Ask by hand and with the runnable, invoked and awaited; wrong branches are written."""
    llm, retriever = HashLLM(), retrievers()[name]
    hand, rag = by_hand(llm, retriever, "interval"), rag_of(llm, retriever, "interval", **WRONG)
    logs = [Log(), Log(), AsyncLog(), AsyncLog()]
    hand.invoke(QUESTIONS[0], {**CONFIG, "callbacks": [logs[0]]})
    rag.invoke(QUESTIONS[0], {**CONFIG, "callbacks": [logs[1]]})
    await hand.ainvoke(QUESTIONS[0], {**CONFIG, "callbacks": [logs[2]]})
    await rag.ainvoke(QUESTIONS[0], {**CONFIG, "callbacks": [logs[3]]})
    rag.close()

    assert canaries(llm.written) > canaries(logs[0].events)
    assert outermost(logs[1]).names.count("on_retriever_start") > 1
    return logs


@pytest.mark.parametrize("name", ["compressed", "named"])
async def test_the_outermost_run_of_a_retriever_is_told_as_by_hand(name: str) -> None:
    """Name, tags, metadata, query, documents: the host's; nothing of the runs inside."""
    logs = await fourfold(name)

    assert told(outermost(logs[0])) == told(outermost(logs[1]))
    assert told(outermost(logs[2])) == told(outermost(logs[3]))
    assert (
        len(outermost(logs[1]).events) == len([n for n in logs[1].names if "custom" not in n]) - 2
    )


@pytest.mark.parametrize(
    "name", ["function", "function around", "sequence", "with retries", "with fallbacks"]
)
async def test_a_chain_that_retrieves_is_told_as_one_retrieval(name: str) -> None:
    """By hand its outermost run is a chain's: the same goes in, and the same comes out."""
    logs = await fourfold(name)

    # What a fallback calls is at the host no child of the fallback's run, when it is invoked.
    assert given_and_found(logs[0], without="retriever") == given_and_found(logs[1])
    assert given_and_found(logs[2], without="retriever") == given_and_found(logs[3])
    assert {"on_retriever_start", "on_llm_start"} == {
        one for one in outermost(logs[1]).names if one.endswith("_start")
    }


class Failing(HashChat):
    """Writes two words and breaks off."""

    def _words(self, messages: Any, stop: Any, kwargs: Any) -> Any:
        raise HostError("always")


MODELS = {
    "retries": lambda: HashChat().with_retry(),
    "fallbacks": lambda: Failing().with_fallbacks([HashChat()]),
    "parsed": lambda: HashChat() | StrOutputParser(),
    "function": lambda: RunnableLambda(lambda prompt: HashChat().invoke(prompt)),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("streams", [False, True])
async def test_a_chain_with_a_model_is_told_as_the_run_that_counts(
    name: str, streams: bool
) -> None:
    """Of the model's runs in a call, the last that has ended, under the request's run."""
    llm, retriever = MODELS[name](), HashRetriever(documents=documents())
    hand, rag = by_hand(llm, retriever, "one_shot"), rag_of(llm, retriever, "one_shot")
    logs = Log(), Log(), AsyncLog()
    hand.invoke(QUESTIONS[0], {**CONFIG, "callbacks": [logs[0]]})
    config: Any = {**CONFIG, "callbacks": [logs[1]]}
    list(rag.stream(QUESTIONS[0], config)) if streams else rag.invoke(QUESTIONS[0], config)
    aconfig: Any = {**CONFIG, "callbacks": [logs[2]]}
    await rag.ainvoke(QUESTIONS[0], aconfig)
    rag.close()

    for log in logs[1:]:
        told_of = outermost(log)
        names = [one for one in told_of.names if one != "on_llm_new_token"]
        assert names[2:] == ["on_chat_model_start", "on_llm_end"]
        assert said(told_of) == said(logs[0]) != ""


def said(log: Log) -> str:
    """Give the text of the last model's run."""
    ends = [args[0] for name, args, _ in log.events if name == "on_llm_end"]
    return str(ends[-1].generations[0][0].text)


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
