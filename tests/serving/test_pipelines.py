"""The pipelines of both hosts: their answers, sources, usage and settings, as a server has them."""

from typing import Any

import pytest

pytest.importorskip("langchain_core")
pytest.importorskip("llama_index.core")

import ralmspec_plugins.serving
from ralmspec_plugins.serving import create_app
from tests.langchain import rag_parts as langchain_parts
from tests.llama_index import rag_parts as llama_parts
from tests.llama_index.engine_parts import an_index
from tests.serving.parts import CHAT, body, client_of, read_stream

WORKLOADS = ("one_shot", "sentences", "interval")
QUESTION = "Who sold it 3?"


def test_the_public_names() -> None:
    """What `__all__` names is public, and is there."""
    assert set(ralmspec_plugins.serving.__all__) == {
        *("ApiKeys", "Done", "EnginePipeline", "Limits", "PerTenant", "Pipeline", "Question"),
        *("Source", "Text", "TokenUsage", "create_app", "dialogue", "only_question"),
    }
    assert all(hasattr(ralmspec_plugins.serving, name) for name in ralmspec_plugins.serving.__all__)


def rag(workload: str, **settings: Any) -> Any:
    store = langchain_parts.vector_store(langchain_parts.documents())
    retriever = store.as_retriever(search_kwargs={"k": 2})
    return langchain_parts.rag_of(langchain_parts.HashChat(), retriever, workload, **settings)


async def ask(served: Any, **fields: Any) -> tuple[Any, Any]:
    """Ask whole and in a stream, with sources and usage."""
    asked = body(QUESTION, x_ralmspec={"sources": True}, **fields)
    counted = {"stream": True, "stream_options": {"include_usage": True}}
    async with client_of(create_app({"poems": served})) as client:
        whole = await client.post(CHAT, json=asked)
        stream = await client.post(CHAT, json={**asked, **counted})
    return whole.json(), read_stream(stream.text)


@pytest.mark.parametrize("output", ["reply", "answer"])
@pytest.mark.parametrize("workload", WORKLOADS)
async def test_a_langchain_pipeline(workload: str, output: str) -> None:
    """Its answers are those of `invoke`; its usage is that of the calls of the answer."""
    expected = rag(workload).invoke(QUESTION)
    whole, stream = await ask(rag(workload, output=output))
    sources = whole["x_ralmspec"]["sources"]
    usage = expected["ralmspec"]["usage"]

    assert expected["answer"]
    assert expected["context"]
    assert expected["answer"] == whole["choices"][0]["message"]["content"] == stream.text
    assert langchain_parts.plain_values(expected["context"]) == [
        (one["id"], one["text"], one["metadata"]) for one in sources
    ]
    assert stream.chunks[-2]["x_ralmspec"]["sources"] == sources
    assert (usage["input_tokens"], usage["output_tokens"]) == (
        whole["usage"]["prompt_tokens"],
        whole["usage"]["completion_tokens"],
    )
    assert stream.chunks[-1]["usage"] == whole["usage"]
    assert whole["x_ralmspec"]["dropped_tokens"] is not None


async def test_settings_of_a_langchain_call() -> None:
    """What the client sets is that of `invoke`; what would have no effect is refused."""
    expected = rag("interval").invoke(QUESTION, max_tokens=8)
    whole, _ = await ask(rag("interval"), max_tokens=8)
    refused, _ = await ask_refused(rag("one_shot"), max_tokens=3)

    assert expected["answer"] == whole["choices"][0]["message"]["content"]
    assert whole["choices"][0]["message"]["content"].count(" ") == 8
    assert "max_tokens" in refused["error"]["message"]


async def ask_refused(served: Any, **fields: Any) -> tuple[Any, int]:
    async with client_of(create_app({"poems": served})) as client:
        response = await client.post(CHAT, json=body(QUESTION, **fields))
    assert response.status_code == 400, response.text
    return response.json(), response.status_code


async def test_a_chain_whose_answer_is_no_text() -> None:
    """It has no place in a chat completion, and says so."""
    from langchain_core.output_parsers import CommaSeparatedListOutputParser

    made = rag("one_shot", output_parser=CommaSeparatedListOutputParser())
    refused, _ = await ask_refused(made)

    assert "list" in refused["error"]["message"]


def query_engine(workload: str, *, streaming: bool, **options: Any) -> Any:
    retriever = an_index().as_retriever(similarity_top_k=2)
    llm = llama_parts.AsyncHashLLM()
    _, engine = llama_parts.pair(llm, retriever, workload, streaming=streaming, **options)
    return engine


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("workload", WORKLOADS)
async def test_a_llama_index_pipeline(workload: str, streaming: bool) -> None:
    """Its answers are those of `query`, with the same nodes and scores."""
    expected = query_engine(workload, streaming=streaming).query(QUESTION)
    text = str(expected)
    whole, stream = await ask(query_engine(workload, streaming=streaming))
    sources = whole["x_ralmspec"]["sources"]

    assert text
    assert text == whole["choices"][0]["message"]["content"] == stream.text
    assert expected.source_nodes
    assert [(one.node.node_id, one.score) for one in expected.source_nodes] == [
        (one["id"], one["score"]) for one in sources
    ]
    assert stream.chunks[-2]["x_ralmspec"]["sources"] == sources
    pieces = [one for one in stream.chunks if one["choices"] and one["choices"][0]["delta"]]
    if workload != "one_shot":  # whose single call may be read when it is complete
        assert (len(pieces) > 2) == streaming


async def test_settings_of_a_llama_index_query() -> None:
    """What the client sets is an option; what would have no effect is refused."""
    engine = query_engine("interval", streaming=False)
    expected = str(engine.with_options(max_tokens=8).query(QUESTION))
    whole, _ = await ask(engine, max_tokens=8)
    refused, _ = await ask_refused(query_engine("one_shot", streaming=False), max_tokens=8)

    assert expected == whole["choices"][0]["message"]["content"]
    assert "max_tokens" in refused["error"]["message"]


async def test_invalidation_reaches_the_hosts() -> None:
    """Their memo and pool are cleared."""
    from ralmspec_plugins import QueryCache

    class Watched(QueryCache):
        cleared = 0

        def invalidate(self, *arguments: Any) -> None:
            Watched.cleared += 1
            super().invalidate(*arguments)

    rag("one_shot", memo=Watched()).as_pipeline().invalidate()
    engine = query_engine("one_shot", streaming=False, memo=Watched())
    engine.as_pipeline().invalidate()

    assert Watched.cleared == 2
