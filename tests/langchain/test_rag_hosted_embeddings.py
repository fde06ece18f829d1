"""Queries are embedded on another machine, and the store is in this process."""

import asyncio
import time
from typing import Any

import pytest
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_ralmspec import stats_of

from tests.calls_at_once import CallsAtOnce
from tests.guessing_pays import guessing_has_to_pay  # noqa: F401 a fixture
from tests.langchain.rag_loops import by_hand
from tests.langchain.rag_parts import QUESTIONS, HashLLM, called, digest, documents, rag_of
from tests.langchain.test_rag_equality import values


class Hosted(DeterministicFakeEmbedding):
    """Waits for a moment, and embeds most queries alike."""

    calls: Any

    def embed_query(self, text: str) -> list[float]:
        self.calls.call(text)
        vector: list[float] = super().embed_query("ships" if digest(text) % 6 else "storms")
        return vector

    async def aembed_query(self, text: str) -> list[float]:
        await self.calls.acall(text)
        vector: list[float] = super().embed_query("ships" if digest(text) % 6 else "storms")
        return vector


@pytest.mark.usefixtures("guessing_has_to_pay")
@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream"])
def test_embeddings_are_hidden_and_made_side_by_side(way: str) -> None:
    """In the first request, too. The search takes microseconds: it alone is not worth a guess."""
    calls = CallsAtOnce()
    store = InMemoryVectorStore(Hosted(size=16, calls=calls))
    store.add_documents(documents())
    retriever = store.as_retriever(search_kwargs={"k": 1})
    llm = HashLLM(hook=lambda _: time.sleep(0.005), ahook=lambda _: asyncio.sleep(0.005))
    hand = by_hand(llm, retriever, "interval")

    expected = [values(called(hand, one, "invoke")) for one in QUESTIONS[:6]]
    calls.most = 0
    rags = [rag_of(llm, retriever, "interval") for _ in range(6)]
    replies = [called(rag, one, way) for rag, one in zip(rags, QUESTIONS, strict=False)]

    assert [values(reply) for reply in replies] == expected
    assert sum(stats_of(reply).guesses for reply in replies) >= 10
    assert sum(stats_of(reply).accepted for reply in replies) >= 5
    assert calls.most > 2  # one more may be of the host itself, whose search is compared
