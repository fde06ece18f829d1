"""LangChain's FAISS store with duplicate texts, behind a wait, and a model that waits."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from langchain_community.vectorstores import FAISS
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.language_models import BaseLLM
from langchain_core.outputs import Generation, LLMResult
from langchain_ralmspec import SpeculativeRAG, register_batch_search
from langchain_ralmspec.stores.faiss import faiss_search

WRITE_S = 0.05


class FarFAISS(FAISS):
    """FAISS behind a wait."""

    wait_s = 0.0

    def similarity_search_with_score_by_vector(self, *args: Any, **kwargs: Any) -> Any:
        """Search after the wait."""
        time.sleep(self.wait_s)
        return super().similarity_search_with_score_by_vector(*args, **kwargs)


class FarSearch:
    """A store's batch search behind a wait: one for all queries."""

    def __init__(self, search: Any) -> None:
        """Wait in front of this search."""
        self._search = search

    def __getattr__(self, name: str) -> Any:
        """Return what the search says of itself."""
        return getattr(self._search, name)

    def search(self, vectors: Any, k: int) -> Any:
        """Search after the wait."""
        time.sleep(FarFAISS.wait_s)
        return self._search.search(vectors, k)


class WaitingLLM(BaseLLM):
    """Repeats the end of its prompt after a wait."""

    @property
    def _llm_type(self) -> str:
        return "waiting"

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: Any = None,
        **kwargs: Any,
    ) -> LLMResult:
        time.sleep(WRITE_S)
        return LLMResult(generations=[[Generation(text=prompt[-120:])] for prompt in prompts])


@contextmanager
def duplicate_chain(wait_s: float, texts: Sequence[str]) -> Iterator[Any]:
    """Open one-shot RAG plainly and speculatively, over texts of which some are equal."""
    FarFAISS.wait_s = wait_s
    register_batch_search(
        f"{FarFAISS.__module__}.{FarFAISS.__qualname__}",
        lambda retriever: (found := faiss_search(retriever)) and FarSearch(found),
    )
    store = FarFAISS.from_texts(list(texts), DeterministicFakeEmbedding(size=32))
    retriever = store.as_retriever(search_kwargs={"k": 4})
    ways = [
        SpeculativeRAG.from_llm(
            WaitingLLM(), retriever, workload="one_shot", speculate=speculate, guess_through=True
        )
        for speculate in (False, True)
    ]

    def run(rag: SpeculativeRAG, repetition: int) -> list[Any]:
        reply = rag.invoke(f"{texts[repetition % len(texts)]} {repetition}")
        return [reply["answer"], reply["context"]]

    try:
        yield tuple(lambda repetition, rag=rag: run(rag, repetition) for rag in ways)
    finally:
        for rag in ways:
            rag.close()
