"""Queries are embedded on another machine, and the store is in this process."""

import asyncio
import time
from typing import Any

import pytest
from llama_index.core import VectorStoreIndex

from tests.calls_at_once import CallsAtOnce
from tests.guessing_pays import guessing_has_to_pay  # noqa: F401 a fixture
from tests.llama_index.engine_parts import WordEmbedding, report_in, seen
from tests.llama_index.rag_parts import QUESTIONS, HashLLM, digest, made_nodes, pair


class Hosted(WordEmbedding):
    """Waits for a moment, and embeds most queries alike."""

    calls: Any = None

    def _get_query_embedding(self, query: str) -> list[float]:
        self.calls.call(query)
        vector: list[float] = self._get_text_embedding("ships" if digest(query) % 6 else "storms")
        return vector

    async def _aget_query_embedding(self, query: str) -> list[float]:
        await self.calls.acall(query)
        vector: list[float] = self._get_text_embedding("ships" if digest(query) % 6 else "storms")
        return vector


@pytest.mark.usefixtures("guessing_has_to_pay")
@pytest.mark.parametrize("asynchronous", [False, True])
def test_embeddings_are_hidden_and_made_side_by_side(asynchronous: bool) -> None:
    """In the first request, too. The search takes microseconds: it alone is not worth a guess."""
    calls = CallsAtOnce()
    index = VectorStoreIndex(made_nodes(), embed_model=Hosted(calls=calls))
    retriever = index.as_retriever(similarity_top_k=1)
    llm = HashLLM(hook=lambda _: time.sleep(0.005), ahook=lambda _: asyncio.sleep(0.005))
    pairs = [pair(llm, retriever, "interval") for _ in range(6)]

    expected = [seen(hand.query(one)) for (hand, _), one in zip(pairs, QUESTIONS, strict=False)]
    calls.most = 0
    responses = []
    for (_, ours), one in zip(pairs, QUESTIONS, strict=False):
        responses.append(asyncio.run(ours.aquery(one)) if asynchronous else ours.query(one))
        ours.close()

    assert [seen(response) for response in responses] == expected
    reports = [report_in(response)["stats"] for response in responses]
    assert sum(stats["guesses"] for stats in reports) >= 10
    assert sum(stats["accepted"] for stats in reports) >= 5
    assert calls.most > 2  # one more may be of the host itself, whose search is compared
