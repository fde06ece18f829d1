"""Qdrant behind LlamaIndex, in its local mode (for equality, never for speed)."""

import asyncio
from typing import Any, ClassVar

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import AsyncQdrantClient, QdrantClient, models

from tests.llama_index.contract import StoreContract
from tests.llama_index.test_stores import SOME, indexed
from tests.llama_index.worlds import WordEmbedding, corpus

pytestmark = [
    pytest.mark.filterwarnings("ignore:Local mode performs exact:UserWarning"),
    pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning"),
]
OWN = models.Filter(
    must_not=[models.FieldCondition(key="topic", match=models.MatchValue(value="t3"))]
)


class TestQdrant(StoreContract):
    """Cosine, the store's default."""

    narrowed: ClassVar[list[dict[str, Any]]] = [
        *StoreContract.narrowed,
        {"node_ids": SOME},
        {"doc_ids": ["document-1", "document-2"]},
        {"vector_store_kwargs": {"qdrant_filters": OWN, "search_params": {"exact": True}}},
    ]
    metric = "cosine"
    # The local mode's scores of one and the same query change from call to call in the last
    # bits, and in six dimensions with them the order of ties: it differs from itself.
    coarse_dimension = 24
    score_error = 1e-6
    queries = 32
    dense: models.VectorParams | None = None

    @pytest.fixture(scope="class")
    @classmethod
    def index(cls, embedding: WordEmbedding) -> VectorStoreIndex:
        store = QdrantVectorStore(
            "contract", client=QdrantClient(":memory:"), dense_config=cls.dense
        )
        return indexed(store, embedding)

    def _awaited(self, search: Any, vectors: list[Any], k: int) -> Any:
        """Search synchronously: in local mode the other client has other data."""
        return search.search(vectors, k)


@pytest.mark.slow
class TestQdrantEuclid(TestQdrant):
    """Euclidean distance, and more queries."""

    queries = 200
    metric = "l2"
    dense = models.VectorParams(size=24, distance=models.Distance.EUCLID)


def test_the_asynchronous_client_is_asked_where_the_host_asks_it() -> None:
    """In local mode each client has its own points: batches find those of the awaited one."""
    from llama_index_ralmspec.stores.registry import batch_search_of

    embedding = WordEmbedding()

    async def both() -> tuple[Any, Any]:
        store = QdrantVectorStore(
            "contract", client=QdrantClient(":memory:"), aclient=AsyncQdrantClient(":memory:")
        )
        index = VectorStoreIndex.from_vector_store(store, embed_model=embedding)
        nodes = corpus(60)
        for node in nodes:
            node.embedding = embedding.get_text_embedding(node.text)
        await store.async_add(nodes)
        retriever = index.as_retriever(similarity_top_k=4)
        search: Any = batch_search_of(retriever)
        vector = embedding.get_query_embedding("river stone")
        found = await search.asearch([vector, vector], 20)
        return await retriever.aretrieve("river stone"), found

    expected, found = asyncio.run(both())

    assert [one.node for one in expected] == [hit.document for hit in found[1][:4]]
