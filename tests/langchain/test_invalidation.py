"""A document deleted or replaced: seen by the next question, over a memo at once after a word."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_ralmspec import SpeculativeRetriever

from ralmspec_plugins import QueryCache, SharedPassageCache
from tests.langchain.rag_parts import HashLLM, documents, plain_values, rag_of

QUESTION = "Who saw the ships?"


class HeldStore(InMemoryVectorStore):
    """A store whose searches can be held up when they have read it. Not looked into: a subclass."""

    def __init__(self) -> None:
        super().__init__(DeterministicFakeEmbedding(size=16))
        self.reading, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        found = super().similarity_search(query, k, **kwargs)
        self.reading.set()
        assert self.go_on.wait(10)
        return found

    async def asimilarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        return await asyncio.to_thread(self.similarity_search, query, k, **kwargs)


STORES: dict[str, Callable[[], Any]] = {
    "looked into": lambda: InMemoryVectorStore(DeterministicFakeEmbedding(size=16)),
    "black box": HeldStore,
}


def filled(kind: str) -> Any:
    store = STORES[kind]()
    store.add_documents(documents())
    return store


def deleted(store: Any, document: Document) -> None:
    store.delete([document.id])


def replaced(store: Any, document: Document) -> None:
    """The same id and vector, another text."""
    store.store[document.id] = {**store.store[document.id], "text": "another passage"}


CHANGES = {"deleted": deleted, "replaced": replaced}


def values(reply: dict[str, Any]) -> tuple[Any, ...]:
    return reply["answer"], plain_values(reply["context"])


@pytest.mark.parametrize("kind", STORES)
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("memo", [False, True], ids=["none", "memo"])
@pytest.mark.parametrize("workload", ["one_shot", "sentences"])
def test_the_next_question_sees_the_change(
    kind: str, change: str, memo: bool, workload: str
) -> None:
    """With a memo after `invalidate` alone; then the old text stands in no prompt either."""
    store, llm = filled(kind), HashLLM()
    retriever = store.as_retriever(search_kwargs={"k": 2})
    plain = rag_of(HashLLM(), retriever, workload, speculate=False)
    settings: dict[str, Any] = {"memo": QueryCache()} if memo else {}
    rag = rag_of(llm, retriever, workload, pool=SharedPassageCache(), **settings)
    first = rag.invoke(QUESTION)
    changed = first["context"][0]
    CHANGES[change](store, changed)
    truth = values(plain.invoke(QUESTION))
    at_once = values(rag.invoke(QUESTION))
    rag.invalidate()
    llm.prompts.clear()
    after = values(rag.invoke(QUESTION))
    other = values(rag.invoke("Who sold it?"))
    prompts = list(llm.prompts)
    expected = values(plain.invoke("Who sold it?"))
    plain.close()
    rag.close()

    assert changed.page_content not in repr(truth)
    assert at_once == (values(first) if memo else truth)
    assert [after, other] == [truth, expected]
    assert prompts
    assert not [prompt for prompt in prompts if changed.page_content in prompt]


def test_without_a_word_a_memo_is_late_by_its_time() -> None:
    """The stated bound."""
    now_s = [0.0]
    store = filled("looked into")
    memo = QueryCache(ttl_s=10, clock=lambda: now_s[0])
    rag = rag_of(HashLLM(), store.as_retriever(), "one_shot", memo=memo)
    first = rag.invoke(QUESTION)["context"][0]
    deleted(store, first)
    late = []
    for moment_s in (9.0, 10.0):
        now_s[0] = moment_s
        late.append(first in rag.invoke(QUESTION)["context"])
    rag.close()

    assert late == [True, False]


@pytest.mark.parametrize("replica", [False, True], ids=["pool", "replica"])
@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("memo", [False, True], ids=["none", "memo"])
def test_a_question_in_flight_teaches_nothing(
    replica: bool, asynchronous: bool, memo: bool
) -> None:
    """Its search has read the document that is deleted then, and returns after the word."""
    store, llm = filled("black box"), HashLLM()
    retriever = store.as_retriever(search_kwargs={"k": 2})
    gone = retriever.invoke(QUESTION)[0]
    settings: dict[str, Any] = {"memo": QueryCache()} if memo else {}
    if replica:
        settings["replica"] = vector_store_retriever(gone)
    rag = rag_of(llm, retriever, "sentences", pool=SharedPassageCache(), **settings)
    plain = rag_of(HashLLM(), retriever, "sentences", speculate=False)

    def ask() -> None:
        if asynchronous:
            asyncio.run(rag.ainvoke(QUESTION))
        else:
            rag.invoke(QUESTION)

    running = held(store, ask)
    deleted(store, gone)
    rag.invalidate()
    store.go_on.set()
    running.join(10)
    llm.prompts.clear()
    after = values(rag.invoke(QUESTION))
    prompts, truth = list(llm.prompts), values(plain.invoke(QUESTION))
    rag.close()
    plain.close()

    assert after == truth
    assert prompts
    assert not [prompt for prompt in prompts if gone.page_content in prompt]


def vector_store_retriever(gone: Document) -> Any:
    """A near copy of the store, from which the document is deleted already."""
    store = InMemoryVectorStore(DeterministicFakeEmbedding(size=16))
    store.add_documents([one for one in documents() if one.id != gone.id])
    return store.as_retriever(search_kwargs={"k": 2})


def held(store: HeldStore, ask: Callable[[], Any]) -> threading.Thread:
    """Ask in a thread, until a search has read the store."""
    store.reading.clear()
    store.go_on.clear()
    running = threading.Thread(target=ask)
    running.start()
    assert store.reading.wait(10)
    return running


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "batch", "abatch"])
def test_the_retriever_alone(way: str) -> None:
    """A search in flight is neither remembered nor guessed from."""
    store = filled("black box")
    retriever = store.as_retriever(search_kwargs={"k": 2})
    gone = retriever.invoke(QUESTION)[0]
    ours: Any = SpeculativeRetriever(
        retriever=retriever, memo=QueryCache(), pool=SharedPassageCache()
    )
    asked: Any = [QUESTION, "Who sold it?"] if "batch" in way else QUESTION

    def ask() -> None:
        given = getattr(ours, way)(asked)
        if asyncio.iscoroutine(given):
            asyncio.run(given)

    running = held(store, ask)
    deleted(store, gone)
    ours.invalidate()
    store.go_on.set()
    running.join(10)
    guess = ours.guess(QUESTION)
    found = ours.invoke(QUESTION)

    assert gone.page_content not in repr(guess)
    assert found == retriever.invoke(QUESTION) == ours.invoke(QUESTION)
    assert gone not in found
    assert ours.stats.remembered == 1
    ours.invalidate()
    assert ours.guess(QUESTION) is None
