"""Milvus behind LlamaIndex, with Milvus Lite in a file."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.indices.vector_store.retrievers import VectorIndexRetriever
from llama_index.vector_stores.milvus import MilvusVectorStore
from llama_index_ralmspec.documents import hits_of
from llama_index_ralmspec.host_retriever import HostRetriever

from tests.llama_index.contract import StoreContract, topic
from tests.llama_index.test_stores import SOME, indexed
from tests.llama_index.worlds import WordEmbedding, questions

pytestmark = pytest.mark.slow


class TestMilvus(StoreContract):
    """A flat index, L2: batches agree here, but nothing is promised."""

    narrowed: ClassVar[list[dict[str, Any]]] = [
        {"filters": topic("t1")},
        {"node_ids": SOME[:20]},
        {"doc_ids": ["document-1", "document-2"]},
        {"vector_store_kwargs": {"string_expr": "topic == 't2'"}},
    ]
    exact = False
    wide = False

    @pytest.fixture(scope="class")
    @classmethod
    def index(
        cls, embedding: WordEmbedding, tmp_path_factory: pytest.TempPathFactory
    ) -> Iterator[VectorStoreIndex]:
        store = MilvusVectorStore(
            uri=str(tmp_path_factory.mktemp("milvus") / "lite.db"),
            dim=len(embedding.get_query_embedding("a")),
            similarity_metric=cls.metric,
            use_async_client=False,
            overwrite=True,
        )
        yield indexed(store, embedding)
        store.client.close()

    def _awaited(self, search: Any, vectors: list[Any], k: int) -> Any:
        """Search synchronously: the asynchronous client belongs to one event loop."""
        return search.search(vectors, k)


@pytest.mark.parametrize("settings", [{}, *TestMilvus.narrowed])
async def test_an_awaited_batch_finds_what_the_host_awaits(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    """The asynchronous client, on the event loop that it belongs to: nodes and scores."""
    embedding = WordEmbedding()
    store = MilvusVectorStore(
        uri=str(tmp_path / "lite.db"),
        dim=len(embedding.get_query_embedding("a")),
        similarity_metric="L2",
        overwrite=True,
    )
    index = indexed(store, embedding, 60)
    retriever = VectorIndexRetriever(index, similarity_top_k=4, **settings)
    host = HostRetriever(retriever, batch="probed")
    texts = [text for text in questions(12) if text]
    expected = [hits_of(await retriever.aretrieve(text)) for text in texts]
    found = await host.asearch([await host.aencode(text) for text in texts])
    stats = host.stats
    await store.aclient.close()
    store.client.close()

    assert host.looked_into
    assert expected == found
    assert (1, len(texts)) == (stats.batches, stats.batched_queries)
