"""Milvus behind LangChain, with Milvus Lite in a file."""

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from langchain_milvus import Milvus

from tests.langchain.stores.contract import StoreContract
from tests.langchain.stores.worlds import WordEmbeddings, corpus

pytestmark = pytest.mark.slow


class TestMilvus(StoreContract):
    """A flat index, L2: batches agree here, but nothing is promised."""

    narrow: ClassVar[dict[str, Any]] = {"expr": "topic == 't1'"}
    nothing: ClassVar[dict[str, Any]] = {"expr": "topic == 'none'"}
    exact = False
    wide = False
    awaits = False  # its asynchronous client belongs to the first event loop that used it
    index: ClassVar[dict[str, Any]] = {"index_type": "FLAT", "metric_type": "L2", "params": {}}

    @pytest.fixture(scope="class")
    @classmethod
    def store(
        cls, embeddings: WordEmbeddings, tmp_path_factory: pytest.TempPathFactory
    ) -> Iterator[Milvus]:
        store = Milvus(
            embeddings,
            connection_args={"uri": str(tmp_path_factory.mktemp("milvus") / "lite.db")},
            index_params=cls.index,
            auto_id=True,
        )
        documents = corpus()
        store.add_texts(
            [document.page_content[:60000] for document in documents],
            [document.metadata for document in documents],
        )
        yield store
        store.client.close()
