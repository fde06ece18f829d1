"""Count what reaches a vector store and a model when a LangChain loop speculates.

What is counted, and over what, says `round_trips.py`; the store here is LangChain's FAISS,
the loop `SpeculativeRAG` with the "interval" workload.

    python benchmarks/langchain_round_trips.py DATA \
        benchmarks/results/langchain_round_trips.json
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from langchain_community.vectorstores import FAISS
from langchain_core.embeddings import Embeddings
from langchain_core.language_models import BaseLLM
from langchain_core.outputs import Generation, LLMResult
from langchain_core.prompts import PromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_ralmspec import SpeculativeRAG, register_batch_search
from langchain_ralmspec.stores.faiss import faiss_search
from round_trips import (
    END,
    QUERY_WORDS,
    STEP_WORDS,
    STEPS,
    MiniLM,
    RemoteSearch,
    Wire,
    World,
    last_words,
    main,
)

from ralmspec_plugins.adapters.retriever_state import HostStats
from ralmspec_plugins.workloads import Interval

WANTED = 3.0
PROMPT = PromptTemplate.from_template(f"{{context}}{END}{{input}} ")


class KeptEmbeddings(Embeddings):
    """MiniLM's vectors."""

    def __init__(self, encoder: MiniLM) -> None:
        self._encoder = encoder

    def embed_query(self, text: str) -> list[float]:
        return self._encoder.vector(text)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]


class RemoteFAISS(FAISS):
    """FAISS behind a wire."""

    wire = Wire()

    def similarity_search_with_score_by_vector(self, *args: Any, **kwargs: Any) -> Any:
        self.wire.search()
        return super().similarity_search_with_score_by_vector(*args, **kwargs)


class Articles(BaseLLM):
    """Goes on with the article that the prompt's question begins."""

    world: Any

    @property
    def _llm_type(self) -> str:
        return "articles"

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: Any = None,
        max_tokens: int = 0,
        **kwargs: Any,
    ) -> LLMResult:
        said = [self.world.said(prompt, max_tokens) for prompt in prompts]
        return LLMResult(generations=[[Generation(text=text)] for text in said])


class ChainLoop:
    """The loop over a LangChain retriever and model."""

    def __init__(self, retriever: BaseRetriever, llm: Articles) -> None:
        self._retriever = retriever
        self._llm = llm

    def by_hand(self, question: str) -> Any:
        text, used = "", []
        for _ in range(STEPS):
            documents = self._retriever.invoke(last_words(question, text))
            used += [one for one in documents if one not in used]
            context = "\n\n".join(one.page_content for one in documents)
            prompt = PROMPT.format(context=context, input=question) + text
            text += self._llm.invoke(prompt, max_tokens=STEP_WORDS)
        return text, used

    @contextmanager
    def ours(self, **chosen: Any) -> Iterator["ChainOurs"]:
        rag = SpeculativeRAG.from_llm(
            self._llm,
            self._retriever,
            PROMPT,
            workload=partial(Interval, interval=STEP_WORDS, query_tokens=QUERY_WORDS),
            bound="max_tokens",
            max_tokens=STEPS * STEP_WORDS,
            report=True,
            **chosen,
        )
        yield ChainOurs(rag)
        rag.close()


class ChainOurs:
    """`SpeculativeRAG`."""

    def __init__(self, rag: SpeculativeRAG) -> None:
        self._rag = rag

    @property
    def stats(self) -> HostStats:
        return self._rag.stats

    def answer(self, question: str) -> tuple[Any, Mapping[str, Any]]:
        reply = self._rag.invoke(question)
        return (reply["answer"], reply["context"]), reply["ralmspec"]["stats"]


def loop_over(world: World, k: int) -> ChainLoop:
    """Put the passages into a store, and the loop over it."""
    RemoteFAISS.wire = world.wire
    register_batch_search(
        f"{RemoteFAISS.__module__}.{RemoteFAISS.__qualname__}",
        lambda retriever: (found := faiss_search(retriever)) and RemoteSearch(found, world.wire),
    )
    texts = [row["text"] for row in world.rows]
    store: RemoteFAISS = RemoteFAISS.from_embeddings(
        list(zip(texts, world.vectors, strict=True)),
        KeptEmbeddings(world.encoder),
        metadatas=[{"title": row["title"]} for row in world.rows],
        ids=[row["id"] for row in world.rows],
    )
    return ChainLoop(store.as_retriever(search_kwargs={"k": k}), Articles(world=world))


if __name__ == "__main__":
    sys.exit(main(__doc__.splitlines()[0], loop_over, WANTED))
