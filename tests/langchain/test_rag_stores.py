"""Whole requests over real stores: the answers, and the documents, of a loop written by hand."""

import itertools
import random
import re
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import chromadb
import pytest
from chromadb.config import Settings
from langchain_chroma import Chroma
from langchain_community.retrievers import BM25Retriever
from langchain_community.vectorstores import FAISS, LanceDB
from langchain_core.documents import Document
from langchain_core.language_models import BaseLLM
from langchain_core.outputs import Generation, LLMResult
from langchain_core.retrievers import BaseRetriever
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_huggingface import HuggingFacePipeline
from langchain_qdrant import QdrantVectorStore
from langchain_ralmspec import SpeculativeRAG
from qdrant_client import models
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from ralmspec_plugins import Continuous, FixedStride, OptimalStride, SharedPassageCache
from ralmspec_plugins.demo import MODEL
from ralmspec_plugins.workloads import Interval
from tests.langchain.rag_parts import PROMPT, digest, plain_values
from tests.langchain.stores.worlds import WORDS, WordEmbeddings, corpus, questions

REQUESTS = [20, pytest.param(200, marks=pytest.mark.slow)]  # for a store, over all its settings
STEPS, WORDS_A_STEP, QUERY_WORDS = 3, 3, 12
pytestmark = pytest.mark.filterwarnings(
    "ignore:legacy embedding function:DeprecationWarning",
    "ignore:No results found for the query:UserWarning",
)

_names = itertools.count()
Store = Callable[[Path], list[BaseRetriever]]


class Drifting(BaseLLM):
    """Writes words of the documents' vocabulary, chosen by all that it is given."""

    @property
    def _llm_type(self) -> str:
        return "drifting"

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: Any = None,
        max_tokens: int = WORDS_A_STEP,
        **kwargs: Any,
    ) -> LLMResult:
        [prompt] = prompts
        dice = random.Random(digest(prompt))
        text = "".join(f" {word}" for word in dice.choices(WORDS, k=max_tokens))
        return LLMResult(generations=[[Generation(text=text)]])


def by_hand(
    llm: Any, retriever: BaseRetriever, question: str, **bound: Any
) -> tuple[str, list[tuple[Any, ...]]]:
    """Answer with the host's own objects."""
    text, context = "", list[Document]()
    for _ in range(STEPS):
        found = retriever.invoke(asking(question, text))
        known = [_identity(one) for one in context]
        context += [one for one in found if _identity(one) not in known]
        shown = "\n\n".join(one.page_content for one in found)
        piece = llm.invoke(PROMPT.format(context=shown, input=question) + text, **bound)
        text += piece
        if not piece:
            break
    return text, plain_values(context)


def asking(question: str, text: str) -> str:
    """Ask with the last words of question and text; a Chinese character counts as a word."""
    if not text:
        return question
    line = " ".join(f"{question} {text}".split())
    starts = [one.start() for one in re.finditer(r"[\u4e00-\u9fff]|[^\s\u4e00-\u9fff]+", line)]
    return line[starts[-QUERY_WORDS:][0] :]


def _identity(document: Document) -> Any:
    return document.id or (document.page_content, sorted(document.metadata.items()))


def speculative(llm: Any, retriever: BaseRetriever, **settings: Any) -> SpeculativeRAG:
    return SpeculativeRAG.from_llm(
        llm,
        retriever,
        PROMPT,
        workload=partial(Interval, interval=WORDS_A_STEP, query_tokens=QUERY_WORDS),
        max_tokens=STEPS * WORDS_A_STEP,
        **settings,
    )


def of_store(store: Any, narrow: dict[str, Any], nothing: dict[str, Any]) -> list[BaseRetriever]:
    """Search a store in all ways: few, many, all, filtered, nothing found."""
    ways = ({"k": 1}, {"k": 4}, {"k": 4, **narrow}, {"k": 2, **nothing}, {"k": 500})
    return [store.as_retriever(search_kwargs=way) for way in ways]


def faiss(folder: Path) -> list[BaseRetriever]:
    store = FAISS.from_documents(corpus(), WordEmbeddings())
    return of_store(store, {"filter": {"topic": "t1"}}, {"filter": {"topic": "none"}})


def chroma(folder: Path) -> list[BaseRetriever]:
    client = chromadb.EphemeralClient(Settings(anonymized_telemetry=False))
    store = Chroma(f"requests-{next(_names)}", WordEmbeddings(), client=client)
    store.add_documents(corpus())
    return of_store(store, {"filter": {"topic": "t1"}}, {"filter": {"topic": "none"}})


def lancedb(folder: Path) -> list[BaseRetriever]:
    store = LanceDB(uri=str(folder), embedding=WordEmbeddings())
    store.add_documents(corpus())
    topic = "metadata.topic"
    return of_store(
        store,
        {"filter": {topic: "t1"}, "prefilter": True},
        {"filter": {topic: "none"}, "prefilter": True},
    )


def in_memory(folder: Path) -> list[BaseRetriever]:
    store = InMemoryVectorStore.from_documents(corpus(), WordEmbeddings())
    return of_store(
        store,
        {"filter": lambda document: document.metadata["topic"] == "t1"},
        {"filter": lambda document: document.metadata["topic"] == "none"},
    )


def qdrant(folder: Path) -> list[BaseRetriever]:
    def topic(name: str) -> dict[str, Any]:
        match = models.MatchValue(value=name)
        condition = models.FieldCondition(key="metadata.topic", match=match)
        return {"filter": models.Filter(must=[condition])}

    documents = corpus()
    store = QdrantVectorStore.from_texts(
        [document.page_content for document in documents],
        WordEmbeddings(),
        [document.metadata for document in documents],
        ids=list(range(len(documents))),
        location=":memory:",
    )
    return of_store(store, topic("t1"), topic("none"))


def bm25(folder: Path) -> list[BaseRetriever]:
    """Documents without ids, among them many that are the same."""
    documents = [Document(one.page_content, metadata={"odd": 1}) for one in corpus()]
    return [BM25Retriever.from_documents(documents, k=k) for k in (1, 4, 500)]


STORES: dict[str, Store] = {
    "faiss": faiss,
    "chroma": chroma,
    "lancedb": lancedb,
    "in memory": in_memory,
    "qdrant": qdrant,
    "bm25": bm25,
}


@pytest.fixture(autouse=True)
def _wrappers_warn() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No results found for the query")
        yield


@pytest.mark.parametrize("requests", REQUESTS)
@pytest.mark.parametrize("name", STORES)
def test_random_requests_are_answered_as_by_hand(name: str, requests: int, tmp_path: Path) -> None:
    """Text and documents of many requests, one by one and in batches, on every schedule."""
    llm, dice, done, full = Drifting(), random.Random(3), 0, 0
    ways = STORES[name](tmp_path)
    pools = (SharedPassageCache(), SharedPassageCache(capacity=5), None)
    schedules = (Continuous(), FixedStride(stride=3, overlap=True), OptimalStride(), None)
    for seed, retriever in enumerate(ways):
        asked = questions(requests // len(ways) + 3, seed=seed)
        expected = [by_hand(llm, retriever, one, max_tokens=WORDS_A_STEP) for one in asked]
        rag = speculative(
            llm,
            retriever,
            pool=dice.choice(pools),
            schedule=dice.choice(schedules),
            bound="max_tokens",
        )
        half = len(asked) // 2
        full += sum(bool(text and found) for text, found in expected)
        replies = [rag.invoke(one) for one in asked[:half]] + rag.batch(list(asked[half:]))
        rag.close()

        assert expected == [(one["answer"], plain_values(one["context"])) for one in replies]
        done += len(asked)
    assert done >= requests
    assert full > done / 2  # one way of five finds nothing


@pytest.fixture(scope="module")
def demo() -> HuggingFacePipeline:
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(MODEL),
        AutoTokenizer.from_pretrained(MODEL),
    )
    made = pipeline("text-generation", model=model, tokenizer=tokenizer, do_sample=False)
    return HuggingFacePipeline(pipeline=made)


@pytest.mark.parametrize("name", STORES)
def test_a_real_model_answers_as_by_hand(
    name: str, tmp_path: Path, demo: HuggingFacePipeline
) -> None:
    """The same with the demo model in a pipeline, by the host's own calls."""
    bound = {"pipeline_kwargs": {"max_new_tokens": WORDS_A_STEP, "return_full_text": False}}
    retriever = STORES[name](tmp_path)[1]
    asked = [one[:200] for one in questions(6, seed=5)[2:]]
    expected = [by_hand(demo, retriever, one, **bound) for one in asked]
    assert all(text and found for text, found in expected)
    rag = speculative(demo, retriever)
    replies = [rag.invoke(one) for one in asked]
    rag.close()

    assert expected == [(one["answer"], plain_values(one["context"])) for one in replies]
