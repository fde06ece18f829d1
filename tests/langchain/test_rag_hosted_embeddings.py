"""Queries are embedded on another machine, and the store is in this process."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_ralmspec import stats_of

from ralmspec_plugins.scheduling import encoder_time
from ralmspec_plugins.scheduling.cost_model import Costs
from tests.calls_at_once import CallsAtOnce
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


@pytest.fixture(autouse=True)
def as_users_have_it() -> Iterator[None]:
    """Undo what tests/conftest.py sets, so that guessing has to pay."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Costs, "SIDE_BY_SIDE_S", 0.003)
        patch.setattr(Costs, "WORTH_GUESSING", 0.05)
        patch.setattr(Costs, "WORTH_WRITING", 0.05)
        patch.setattr(encoder_time, "BY_PROCESS", 0.95)  # the model of these tests computes, too
        yield


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
