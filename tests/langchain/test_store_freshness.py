"""A document deleted or replaced in its store: the next question sees it, with default settings."""

import itertools
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import chromadb
import pytest
from chromadb.config import Settings
from langchain_chroma import Chroma
from langchain_community.vectorstores import FAISS, LanceDB
from langchain_community.vectorstores.utils import DistanceStrategy
from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore
from langchain_milvus import Milvus
from langchain_qdrant import QdrantVectorStore
from langchain_ralmspec import SpeculativeRetriever

from tests.langchain.rag_parts import plain_values
from tests.langchain.stores.worlds import WordEmbeddings, corpus
from tests.langchain.test_rag_stores import WORDS_A_STEP, Drifting, by_hand, speculative

QUESTION = "river stone copper lantern orbit velvet"
OTHERS = ["comet harbour meadow", "signal amber falcon river"]
_names = itertools.count()


def documents() -> list[Document]:
    """Give documents of different texts, and ids that every store takes."""
    texts = {one.page_content: one for one in corpus(60) if len(one.page_content) < 200}
    return [
        Document(
            id=f"00000000-0000-0000-0000-{number:012d}",
            page_content=text,
            metadata={"number": number},
        )
        for number, text in enumerate(texts)
    ]


def faiss(strategy: DistanceStrategy) -> FAISS:
    return FAISS.from_documents(documents(), WordEmbeddings(), distance_strategy=strategy)


def chroma(_: Path) -> Chroma:
    client = chromadb.EphemeralClient(Settings(anonymized_telemetry=False))
    store = Chroma(f"fresh-langchain-{next(_names)}", WordEmbeddings(), client=client)
    store.add_documents(documents())
    return store


def lancedb(folder: Path) -> LanceDB:
    store = LanceDB(uri=str(folder), embedding=WordEmbeddings())
    store.add_documents(documents(), ids=[one.id for one in documents()])
    return store


def qdrant(_: Path) -> QdrantVectorStore:
    return QdrantVectorStore.from_documents(
        documents(), WordEmbeddings(), ids=[one.id for one in documents()], location=":memory:"
    )


def milvus(folder: Path) -> Milvus:
    flat = {"index_type": "FLAT", "metric_type": "L2", "params": {}}
    store = Milvus(
        WordEmbeddings(),
        connection_args={"uri": str(folder / "lite.db")},
        index_params=flat,
        consistency_level="Strong",
    )
    store.add_documents(documents(), ids=[one.id for one in documents()])
    return store


STORES: dict[str, Callable[[Path], VectorStore]] = {
    "in memory": lambda _: InMemoryVectorStore.from_documents(documents(), WordEmbeddings()),
    "faiss": lambda _: faiss(DistanceStrategy.EUCLIDEAN_DISTANCE),
    "faiss products": lambda _: faiss(DistanceStrategy.MAX_INNER_PRODUCT),
    "chroma": chroma,
    "lancedb": lancedb,
    "qdrant": qdrant,
    "milvus": milvus,
}


@pytest.fixture(autouse=True)
def _wrappers_warn() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def filled_anew(store: VectorStore) -> None:
    """Exchange what a store holds, with its collection, table or index."""
    if isinstance(store, Chroma):
        store.reset_collection()
    elif isinstance(store, LanceDB):
        store.get_table().delete("true")
    elif isinstance(store, FAISS):
        store.index, store.index_to_docstore_id = type(store.index)(store.index.d), {}
        store.docstore.delete([one.id for one in documents()])  # type: ignore[attr-defined]
    rest = documents()[20:]
    store.add_documents(rest, ids=[one.id for one in rest])


@pytest.mark.parametrize("name", ["chroma", "lancedb", "faiss products"])
def test_the_next_question_finds_what_was_filled_anew(name: str, tmp_path: Path) -> None:
    """Another collection, table content or index in the same store: it alone is searched."""
    store = STORES[name](tmp_path)
    retriever = store.as_retriever(search_kwargs={"k": 8})
    sooner = SpeculativeRetriever(retriever=retriever)
    questions = [QUESTION, *OTHERS]
    before = sooner.batch(questions)
    filled_anew(store)
    after = sooner.batch(questions)
    alone = sooner.invoke(QUESTION)
    expected = [retriever.invoke(one) for one in questions]
    sooner.close()

    assert [*after, alone] == [*expected, expected[0]]
    assert before != after
    assert min(one.metadata["number"] for found in after for one in found) >= 20


def test_a_collection_that_is_gone_is_the_hosts_error(tmp_path: Path) -> None:
    """The next question raises what the store itself raises."""
    store = chroma(tmp_path)
    rag = speculative(Drifting(), store.as_retriever(), bound="max_tokens")
    rag.invoke(QUESTION)
    store.delete_collection()
    errors = []
    for ask in (store.as_retriever().invoke, rag.invoke):
        with pytest.raises(ValueError, match="not initialized") as caught:
            ask(QUESTION)
        errors.append((type(caught.value), str(caught.value)))
    rag.close()

    assert errors[0] == errors[1]


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=[pytest.mark.slow] * (one == "milvus")) for one in STORES]
)
def test_the_next_question_finds_what_the_store_holds_now(name: str, tmp_path: Path) -> None:
    """One deleted, one replaced: documents and answers are those of the host's own calls."""
    store = STORES[name](tmp_path)
    retriever = store.as_retriever()
    rag = speculative(Drifting(), retriever, bound="max_tokens")
    sooner = SpeculativeRetriever(retriever=retriever)

    def asked() -> list[Document]:
        """Ask in all ways, and compare with the host; give what the first question finds."""
        questions = [QUESTION, *OTHERS]
        found = [retriever.invoke(one) for one in questions]
        expected = [
            by_hand(Drifting(), retriever, one, max_tokens=WORDS_A_STEP) for one in questions
        ]
        given = [rag.invoke(QUESTION), *rag.batch(OTHERS)]

        assert sooner.invoke(QUESTION) == found[0]
        assert sooner.batch(questions) == found
        assert [(one["answer"], plain_values(one["context"])) for one in given] == expected
        return found[0]

    def identity(document: Document) -> str:
        return f"00000000-0000-0000-0000-{document.metadata['number']:012d}"

    first = asked()
    store.delete([identity(first[0])])
    second = asked()
    changed: Any = Document(
        id=identity(second[0]),
        page_content=f"{QUESTION} anew",
        metadata={"number": second[0].metadata["number"]},
    )
    store.delete([changed.id])
    store.add_documents([changed], ids=[changed.id])
    third = asked()
    rag.close()
    sooner.close()

    gone = first[0].page_content
    assert gone not in [one.page_content for one in [*second, *third]]
    assert second[0].page_content not in [one.page_content for one in third]
    assert changed.page_content in [one.page_content for one in third]
