"""Milvus behind LlamaIndex, with Milvus Lite in a file."""

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.vector_stores.milvus import MilvusVectorStore

from tests.llama_index.contract import StoreContract, topic
from tests.llama_index.test_stores import SOME, indexed
from tests.llama_index.worlds import WordEmbedding

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
