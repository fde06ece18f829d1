"""LangChain's own standard tests for retrievers, over the store that langchain-core brings."""

from pathlib import Path

from langchain_core.vectorstores import InMemoryVectorStore, VectorStore

from tests.langchain.stores.test_standard import OverAStore
from tests.langchain.stores.worlds import WordEmbeddings, corpus


class TestOverMemory(OverAStore):
    """InMemoryVectorStore."""

    @staticmethod
    def store(folder: Path) -> VectorStore:  # noqa: ARG004 others need one
        store = InMemoryVectorStore(WordEmbeddings())
        store.add_documents(corpus(40))
        return store
