"""The example over a real vector database: PostgreSQL with pgvector, started on loopback."""

import asyncio
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("psycopg")
pytest.importorskip("langchain_postgres")
pytest.importorskip("fastapi")

from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_postgres import PGVector
from langchain_ralmspec import SpeculativeRAG

from tests.langchain.postgres_server import postgres
from tests.langchain.rag_parts import SENTENCES, HashChat, documents
from tests.serving.parts import CHAT, body, client_of

EXAMPLE = Path(__file__).parents[2] / "examples" / "pgvector_server.py"
QUESTIONS = [f"Who sold it {number}?" for number in range(4)]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A database of its own."""
    with postgres() as found:
        yield found


async def test_the_example_answers_from_the_database(address: str) -> None:
    """As the plain chain over the same store does, also for many clients at once."""
    embeddings = DeterministicFakeEmbedding(size=16)
    store = PGVector(
        embeddings,
        connection=address,
        collection_name="served",
        use_jsonb=True,
        async_mode=True,
    )
    await store.aadd_documents(documents())
    settings: dict[str, Any] = {"workload": SENTENCES, "continuation": "assistant"}
    app = runpy.run_path(str(EXAMPLE))["application"](store, HashChat(), **settings)
    retriever = store.as_retriever(search_kwargs={"k": 4})
    plain = SpeculativeRAG.from_llm(HashChat(), retriever, speculate=False, **settings)
    expected = [await plain.ainvoke(question) for question in QUESTIONS]
    async with client_of(app) as client:
        asked = [
            client.post(CHAT, json=body(one, model="documents", x_ralmspec={"sources": True}))
            for one in QUESTIONS * 3
        ]
        replies = [response.json() for response in await asyncio.gather(*asked)]
    await store._async_engine.dispose()

    for right, reply in zip(expected * 3, replies, strict=True):
        assert right["answer"]
        assert right["answer"] == reply["choices"][0]["message"]["content"]
        found = reply["x_ralmspec"]["sources"]
        assert [_seen(document) for document in right["context"]] == [
            (one["id"], one["text"], one["metadata"]) for one in found
        ]
        assert found


def _seen(document: Document) -> tuple[Any, ...]:
    return document.id, document.page_content, document.metadata
