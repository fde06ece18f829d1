"""Chroma behind LangChain, with the embedded client."""

import itertools
from collections.abc import Iterator
from typing import Any, ClassVar

import chromadb
import pytest
from chromadb.config import Settings
from langchain_chroma import Chroma

from tests.langchain.stores.contract import StoreContract
from tests.langchain.stores.worlds import WordEmbeddings, corpus, questions

# The wrapper's own relevance function reads a setting that Chroma warns of.
pytestmark = pytest.mark.filterwarnings("ignore:legacy embedding function:DeprecationWarning")

_names = itertools.count()


class ChromaContract(StoreContract):
    """One distance."""

    narrow: ClassVar[dict[str, Any]] = {"filter": {"topic": "t1"}}
    nothing: ClassVar[dict[str, Any]] = {"filter": {"topic": "none"}}

    @pytest.fixture(scope="class")
    @classmethod
    def store(cls, embeddings: WordEmbeddings) -> Iterator[Chroma]:
        store = Chroma(
            f"contract-{next(_names)}",
            embeddings,
            client=chromadb.EphemeralClient(Settings(anonymized_telemetry=False)),
            collection_configuration={"hnsw": {"space": cls.metric}},  # type: ignore[typeddict-item]
        )
        store.add_documents(corpus())
        yield store
        store.delete_collection()


class TestChroma(ChromaContract):
    """The default distance."""

    def test_where_document(self, store: Chroma) -> None:
        """Filters by content are respected."""
        self._check(store, {"k": 4, "where_document": {"$contains": "comet"}}, count=60)

    def test_a_search_is_not_wider_than_the_graph_is_walked(self, store: Chroma) -> None:
        """Beyond `ef_search` (100) a wider search would walk another part of the graph."""
        vector = store.embeddings.embed_query("river")  # type: ignore[union-attr]
        found = self._search(store, {"k": 4}).search([vector, vector], 250)

        assert [len(row) for row in found] == [100, 100]

    def test_rows_without_a_text_are_left_out(self, store: Chroma) -> None:
        """The wrapper drops them behind the search; so fewer than k may come."""
        vector = store.embeddings.embed_query(questions(40)[-1])  # type: ignore[union-attr]
        store._collection.add(ids=["bare"], embeddings=[vector])
        expected = self._check(store, {"k": 4}, count=40)
        store._collection.delete(ids=["bare"])

        assert len(expected[-1]) == 3


@pytest.mark.slow
class TestChromaCosine(ChromaContract):
    """Cosine distance."""

    metric = "cosine"


@pytest.mark.slow
class TestChromaInnerProduct(ChromaContract):
    """Inner product."""

    metric = "ip"
