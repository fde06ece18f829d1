"""What the tests of LangChain's retrievers share: stores, black boxes, odd documents."""

import copy
import threading
from collections import deque
from typing import Any

import pytest
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable
from langchain_core.vectorstores import InMemoryVectorStore
from pydantic import PrivateAttr

from tests.langchain.stores.worlds import WordEmbeddings, corpus

BLACK_BOXES = ("bm25", "ensemble", "compression", "words")


class WordSearch(BaseRetriever):
    """Gives the documents that share a word with the query: some or none, without ids.

    Hands out the very objects that it keeps, as some hosts do.
    """

    documents: list[Document]
    _asked: deque[str] = PrivateAttr(default_factory=deque)  # a list's items would be settings

    @property
    def asked(self) -> list[str]:
        """What it was asked."""
        return list(self._asked)

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[Document]:
        self._asked.append(query)
        if query == "fail":
            raise ConnectionError("the store is down")
        words = set(query.split())
        return [one for one in self.documents if words & set(one.page_content.split())][:5]


class LongestFirst(BaseDocumentCompressor):
    """Keeps the longer half, cut to 40 characters, with a score in the metadata."""

    def compress_documents(self, documents: Any, query: str, callbacks: Any = None) -> Any:
        ranked = sorted(documents, key=lambda one: -len(one.page_content))
        return [
            Document(one.page_content[:40], metadata={**one.metadata, "score": len(query) / 7})
            for one in ranked[: (len(ranked) + 1) // 2]
        ]


class CountingStore(InMemoryVectorStore):
    """Counts its searches, and can be made to wait or to fail. Not looked into: a subclass."""

    def __init__(self, embedding: Any) -> None:
        super().__init__(embedding)
        self.searches = 0
        self.down = False
        self.lock = threading.Lock()

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        with self.lock:
            self.searches += 1
        if self.down:
            raise ConnectionError("the store is down")
        return super().similarity_search(query, k, **kwargs)


def nameless() -> list[Document]:
    """Make the corpus without ids."""
    return [Document(one.page_content, metadata=dict(one.metadata)) for one in corpus()]


def filled(store: InMemoryVectorStore, documents: list[Document]) -> InMemoryVectorStore:
    """Put documents into a store; those without ids get numbers, the same each time."""
    store.add_documents(
        copy.deepcopy(documents), ids=[one.id or f"n{at}" for at, one in enumerate(documents)]
    )
    return store


def black_box(name: str) -> Runnable[str, list[Document]]:
    """Make a retriever that cannot be looked into."""
    from langchain_classic.retrievers import (
        ContextualCompressionRetriever,
        EnsembleRetriever,
    )
    from langchain_community.retrievers import BM25Retriever

    words = WordSearch(documents=nameless())
    if name == "words":
        return words
    bm25 = BM25Retriever.from_documents(nameless(), k=5)
    if name == "bm25":
        return bm25
    if name == "ensemble":
        return EnsembleRetriever(retrievers=[bm25, words], weights=[0.4, 0.6])
    return ContextualCompressionRetriever(base_compressor=LongestFirst(), base_retriever=bm25)


@pytest.fixture
def store() -> InMemoryVectorStore:
    """A store that is looked into."""
    return filled(InMemoryVectorStore(WordEmbeddings()), corpus())


@pytest.fixture
def counting() -> CountingStore:
    """A store that counts, as a black box."""
    store = CountingStore(WordEmbeddings())
    filled(store, corpus(60))
    return store
