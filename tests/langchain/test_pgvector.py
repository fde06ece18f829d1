"""PGVector over a real PostgreSQL server: single calls side by side, and the host's answers."""

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("psycopg")
pytest.importorskip("langchain_postgres")

from langchain_postgres import PGVector
from langchain_ralmspec.host_retriever import HostRetriever
from langchain_ralmspec.retriever import SpeculativeRetriever
from langchain_ralmspec.stores.registry import batch_search_of

from tests.langchain.postgres_server import postgres
from tests.langchain.stores.worlds import WordEmbeddings, batches, corpus, questions


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with postgres() as address:
        yield address


@pytest.fixture(scope="module")
def store(address: str) -> Iterator[PGVector]:
    embeddings = WordEmbeddings()
    store = PGVector(embeddings, connection=address, collection_name="contract", use_jsonb=True)
    store.add_documents(corpus())
    yield store
    store._engine.dispose()


def test_the_server_has_pgvector(address: str) -> None:
    """It is a real server, with the extension."""
    import psycopg

    with psycopg.connect(address.replace("+psycopg", "")) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        row = connection.execute("SELECT '[1,2]'::vector <-> '[1,4]'::vector").fetchone()

    assert row == (2.0,)


def test_it_is_never_batched(store: PGVector) -> None:
    """One combined query was measured 6 times slower (pgvector #645): no adapter."""
    assert batch_search_of(store.as_retriever()) is None


@pytest.mark.parametrize(
    ("search_type", "settings"),
    [
        ("similarity", {"k": 1}),
        ("similarity", {"k": 4}),
        ("similarity", {"k": 400}),
        ("similarity", {"k": 4, "filter": {"topic": {"$eq": "t1"}}}),
        ("similarity", {"k": 4, "filter": {"topic": {"$eq": "none"}}}),
        ("similarity_score_threshold", {"k": 10, "score_threshold": 0.4}),
        ("mmr", {"k": 3, "fetch_k": 12}),
    ],
)
@pytest.mark.parametrize("count", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_documents_are_the_hosts(
    store: PGVector, search_type: str, settings: dict[str, Any], count: int
) -> None:
    """Whatever is asked for together, each query gets what a single call gets."""
    retriever = store.as_retriever(search_type=search_type, search_kwargs=settings)
    speculative = SpeculativeRetriever(retriever=retriever)
    asked = questions(count if settings["k"] < 100 else 20)
    expected = [retriever.invoke(text) for text in asked]
    given = [documents for batch in batches(asked) for documents in speculative.batch(batch)]

    assert given == expected


def test_calls_are_single_and_counted(store: PGVector) -> None:
    """Eight queries are eight calls of the server, and no batch."""
    host = HostRetriever(store.as_retriever(search_kwargs={"k": 2}))
    host.search([host.encode(text) for text in questions(8)])

    assert (host.stats.batches, host.stats.single_calls) == (0, 8)
