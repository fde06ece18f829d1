"""LangChain's InMemoryVectorStore: its own formula, query by query, laid out once a batch."""

import copy
import random
from typing import Any, ClassVar

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore
from langchain_ralmspec.retriever import SpeculativeRetriever
from langchain_ralmspec.stores.registry import batch_search_of

from ralmspec_plugins.adapters.retriever_state import BatchMode
from tests.langchain.stores.contract import StoreContract
from tests.langchain.stores.worlds import WordEmbeddings, corpus


class TestInMemory(StoreContract):
    """With near ties, and with many exact ones."""

    narrow: ClassVar[dict[str, Any]] = {
        "filter": lambda document: document.metadata["topic"] == "t1"
    }
    nothing: ClassVar[dict[str, Any]] = {"filter": lambda _: False}
    metric = "cosine"

    @pytest.fixture(scope="class")
    @classmethod
    def store(cls, embeddings: WordEmbeddings) -> InMemoryVectorStore:
        store = InMemoryVectorStore(embeddings)
        store.add_documents(corpus())
        return store

    @pytest.mark.parametrize("batching", ["exact", "probed"])
    @pytest.mark.parametrize(
        ("search_type", "settings"),
        [("similarity", {"k": 4}), ("mmr", {"k": 3, "fetch_k": 12})],
        ids=["similarity", "mmr"],
    )
    def test_every_search_type_through_the_retriever(
        self,
        store: VectorStore,
        search_type: str,
        settings: dict[str, Any],
        batching: BatchMode,
    ) -> None:
        """Those that the store has; of the third it says that it has it not."""
        super().test_every_search_type_through_the_retriever(
            store, search_type, settings, batching, count=16
        )

    def test_thresholds_raise_what_the_store_raises(self, store: VectorStore) -> None:
        """The store knows no relevances, and the caller hears it from the store."""
        retriever = store.as_retriever(
            search_type="similarity_score_threshold", search_kwargs={"score_threshold": 0.5}
        )
        speculative = SpeculativeRetriever(retriever=retriever)
        found = speculative.batch(["a", "b"], return_exceptions=True)

        assert [NotImplementedError] * 2 == [type(one) for one in found]
        with pytest.raises(NotImplementedError):
            speculative.invoke("a")


class Odd(DeterministicFakeEmbedding):
    """Gives vectors that the store's formula stumbles over."""

    vectors: dict[str, Any]

    def embed_query(self, text: str) -> Any:
        return self.vectors[text]

    def embed_documents(self, texts: list[str]) -> list[Any]:
        return [self.vectors[text] for text in texts]


def odd_store(*texts: str) -> InMemoryVectorStore:
    random_ = random.Random(5)
    vectors: dict[str, Any] = {
        f"plain{number}": [random_.gauss(0, 1) for _ in range(4)] for number in range(9)
    }
    vectors |= {"zero": [0.0] * 4, "nan": [float("nan"), 1.0, 1.0, 1.0], "inf": [np.inf] * 4}
    vectors |= {"whole": [1, 2, 3, 4], "array": np.array([1.0, 2.0, 3.0, 4.0], dtype=np.float32)}
    vectors |= {"short": [1.0, 2.0]}
    store = InMemoryVectorStore(Odd(size=4, vectors=vectors))
    store.add_documents([Document(text) for text in texts])
    return store


ORDINARY = tuple(f"plain{number}" for number in range(6))


@pytest.mark.filterwarnings("ignore:(NaN|Inf) found in input arrays:RuntimeWarning")
@pytest.mark.parametrize("more", [(), ("zero",), ("nan",), ("inf",), ("whole",), ("array",)])
def test_odd_vectors_give_what_the_store_gives(more: tuple[str, ...]) -> None:
    """Zero, NaN, infinite, whole and single-precision vectors, in the store and as queries."""
    store = odd_store(*ORDINARY, *more)
    retriever = store.as_retriever()
    search = batch_search_of(retriever)
    assert search is not None
    queries = [*ORDINARY, "plain8", "whole", "array"]
    expected = [copy.deepcopy(retriever.invoke(text)) for text in queries]
    vectors = [store.embeddings.embed_query(text) for text in queries]

    assert [[hit.document for hit in hits] for hits in search.search(vectors, 4)] == expected


@pytest.mark.filterwarnings("ignore:(NaN|Inf) found in input arrays:RuntimeWarning")
@pytest.mark.parametrize("query", ["short", "nan", "zero"])
def test_the_stores_own_errors(query: str) -> None:
    """A query that the store cannot score raises what the store raises."""
    store = odd_store(*ORDINARY)
    retriever = store.as_retriever()
    search = batch_search_of(retriever)
    assert search is not None
    with pytest.raises(ValueError) as theirs:  # noqa: PT011 compared below
        retriever.invoke(query)
    with pytest.raises(ValueError) as ours:  # noqa: PT011
        search.search([store.embeddings.embed_query(query)], 4)

    assert (type(theirs.value), str(theirs.value)) == (type(ours.value), str(ours.value))


def test_documents_that_come_later_are_found() -> None:
    """Nothing is kept from one batch to the next."""
    store = odd_store("plain0")
    search = batch_search_of(store.as_retriever())
    assert search is not None
    vector = store.embeddings.embed_query("plain1")
    before = len(search.search([vector], 4)[0])
    store.add_documents([Document("plain1")])

    assert (before, len(search.search([vector], 4)[0])) == (1, 2)
