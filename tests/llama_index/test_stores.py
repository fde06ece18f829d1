"""SimpleVectorStore and FAISS behind LlamaIndex: batches give the host's nodes and scores."""

from typing import Any, ClassVar

import faiss
import pytest
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index.vector_stores.faiss import FaissVectorStore

from tests.llama_index.contract import StoreContract, topic
from tests.llama_index.worlds import WordEmbedding, corpus

SOME = [node.node_id for node in corpus()[::3]]


def indexed(store: Any, embedding: WordEmbedding, size: int = 300) -> VectorStoreIndex:
    """Put the corpus into a store."""
    context = StorageContext.from_defaults(vector_store=store)
    return VectorStoreIndex(corpus(size), storage_context=context, embed_model=embedding)


class TestSimple(StoreContract):
    """The host's default store."""

    narrowed: ClassVar[list[dict[str, Any]]] = [
        *StoreContract.narrowed,
        {"node_ids": SOME},
        {"node_ids": SOME, "filters": topic("t2"), "similarity_top_k": 50},
    ]
    metric = "cosine"

    @pytest.fixture(scope="class")
    @classmethod
    def index(cls, embedding: WordEmbedding) -> VectorStoreIndex:
        return indexed(SimpleVectorStore(), embedding)


class TestFaiss(StoreContract):
    """A flat L2 index, in the regime in which a single query runs the sequential kernel."""

    narrowed: ClassVar[list[dict[str, Any]]] = []
    nothing = None

    @pytest.fixture(scope="class")
    @classmethod
    def index(cls, embedding: WordEmbedding) -> VectorStoreIndex:
        dimension = len(embedding.get_query_embedding("a"))
        return indexed(FaissVectorStore(faiss_index=faiss.IndexFlatL2(dimension)), embedding)

    def test_filters_are_left_to_the_host(self, index: VectorStoreIndex) -> None:
        """The store refuses them, with its own error."""
        from llama_index_ralmspec.stores.registry import batch_search_of

        assert batch_search_of(index.as_retriever(filters=topic("t1"))) is None


class TestFaissInnerProduct(TestFaiss):
    """The other flat index."""

    metric = "ip"

    @pytest.fixture(scope="class")
    @classmethod
    def index(cls, embedding: WordEmbedding) -> VectorStoreIndex:
        dimension = len(embedding.get_query_embedding("a"))
        return indexed(FaissVectorStore(faiss_index=faiss.IndexFlatIP(dimension)), embedding)


class TestFaissGraph(TestFaiss):
    """An index that is not flat: batches of it are to be probed."""

    exact = False
    wide = False
    metric = None

    @pytest.fixture(scope="class")
    @classmethod
    def index(cls, embedding: WordEmbedding) -> VectorStoreIndex:
        dimension = len(embedding.get_query_embedding("a"))
        return indexed(FaissVectorStore(faiss_index=faiss.IndexHNSWFlat(dimension, 16)), embedding)
