"""Chroma behind LlamaIndex, with the embedded client."""

import itertools
from collections.abc import Iterator
from typing import Any, ClassVar

import chromadb
import pytest
from chromadb.config import Settings
from llama_index.core import VectorStoreIndex
from llama_index.vector_stores.chroma import ChromaVectorStore
from llama_index_ralmspec.stores.registry import batch_search_of

from tests.llama_index.contract import StoreContract, topic
from tests.llama_index.test_stores import indexed
from tests.llama_index.worlds import WordEmbedding

_names = itertools.count()


class TestChroma(StoreContract):
    """The default distance."""

    queries = 100
    narrowed: ClassVar[list[dict[str, Any]]] = [
        *StoreContract.narrowed,
        {"vector_store_kwargs": {"where": {"topic": "t2"}}},
        {"vector_store_kwargs": {"where_document": {"$contains": "comet"}}},
    ]

    @pytest.fixture(scope="class")
    @classmethod
    def index(cls, embedding: WordEmbedding) -> Iterator[VectorStoreIndex]:
        client = chromadb.EphemeralClient(Settings(anonymized_telemetry=False))
        name = f"llama-index-{next(_names)}"
        collection = client.create_collection(
            name, configuration={"hnsw": {"space": cls.metric}}, embedding_function=None
        )
        yield indexed(ChromaVectorStore(chroma_collection=collection), embedding)
        client.delete_collection(name)

    def test_two_filters_are_left_to_the_host(self, index: VectorStoreIndex) -> None:
        """The store refuses them with its own error."""
        kwargs = {"where": {"topic": "t2"}}
        retriever = index.as_retriever(filters=topic("t1"), vector_store_kwargs=kwargs)

        assert batch_search_of(retriever) is None


@pytest.mark.slow
class TestChromaCosine(TestChroma):
    """Cosine distance, and more queries."""

    queries = 200
    metric = "cosine"


@pytest.mark.slow
class TestChromaInnerProduct(TestChroma):
    """Inner product, of vectors that are normalized: of others the store's scores overflow."""

    metric = "ip"

    @pytest.fixture(scope="class")
    @classmethod
    def embedding(cls) -> WordEmbedding:
        return WordEmbedding()
