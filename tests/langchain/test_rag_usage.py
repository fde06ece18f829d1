"""A reply says what its answer took, and what the calls took that are not in it."""

from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.globals import set_llm_cache
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.vectorstores import InMemoryVectorStore
from pydantic import Field

from ralmspec_plugins import FixedStride
from ralmspec_plugins.errors import ConfigError
from tests.langchain.fake_models import turns
from tests.langchain.rag_loops import by_hand
from tests.langchain.rag_parts import (
    QUESTIONS,
    HashChat,
    HashLLM,
    HashRetriever,
    HostError,
    digest,
    documents,
    rag_of,
    words_after,
)
from tests.langchain.test_rag_equality import values

LIAR = HashRetriever(documents=documents(), salt="lie")
WRONG: dict[str, Any] = {"replica": LIAR, "pool": None, "schedule": FixedStride(stride=3)}


class Sometimes(HashRetriever):
    """Finds for half of the queries what the right one does."""

    def _ranked(self, query: str) -> list[Document]:
        self.salt = "lie" if digest(query) % 2 else ""
        return super()._ranked(query)


class Counting(HashChat):
    """Counts what it reads; writes the same whatever the documents are."""

    def _words(
        self, messages: list[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any]
    ) -> tuple[list[str], str]:
        prompt = turns(messages)
        self.prompts.append(prompt)
        if self.hook is not None:
            self.hook(prompt)
        tokens = kwargs.get("max_tokens", self.max_tokens)
        return words_after(prompt.partition("Question:")[2], tokens, stop)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: Any = None,
        **kw: Any,
    ) -> ChatResult:
        words, why = self._words(messages, stop, kw)
        read = len(turns(messages))
        message = AIMessage(
            content="".join(words),
            response_metadata={"finish_reason": why},
            usage_metadata={
                "input_tokens": read,
                "output_tokens": len(words),
                "total_tokens": read + len(words),
            },
        )
        self.written.append("".join(words))
        return ChatResult(generations=[ChatGeneration(message=message)])


@pytest.mark.parametrize("kind", [Counting, HashChat])
async def test_all_calls_are_in_it_either_way(kind: Any) -> None:
    """What was made is what is in the answer and what was dropped: calls, and tokens written."""
    llm, retriever = kind(), HashRetriever(documents=documents())
    rag = rag_of(llm, retriever, "interval", **WRONG)
    dropped = 0
    for question in QUESTIONS[:5]:
        llm.prompts.clear()
        llm.written.clear()
        report = rag.invoke(question)["ralmspec"]
        of_answer, beside = report["usage"], report["dropped"]
        written = sum(len(text.split()) for text in llm.written)

        assert len(llm.prompts) == len(report["queries"]) + beside["calls"]
        assert written == of_answer["output_tokens"] + beside["usage"]["output_tokens"]
        assert 0 == beside["unreported"]
        dropped += beside["calls"]
    assert dropped > 5
    rag.close()


async def test_the_answer_s_usage_is_the_plain_loop_s() -> None:
    """Also where dropped segments come back: their documents have cost what the right ones cost."""
    llm, retriever = Counting(), HashRetriever(documents=documents())
    plain = rag_of(llm, retriever, "interval", speculate=False)
    half_right = Sometimes(documents=documents())
    rag = rag_of(llm, retriever, "interval", **{**WRONG, "replica": half_right})
    reused = 0
    for question in QUESTIONS[:12]:
        expected = plain.invoke(question)["ralmspec"]
        for reply in (rag.invoke(question), await rag.ainvoke(question)):
            assert expected["usage"] == reply["ralmspec"]["usage"]
            reused += reply["ralmspec"]["stats"]["reused"]
        assert {"calls": 0, "unreported": 0, "usage": None} == expected["dropped"]
        assert expected["usage"]["input_tokens"] > 100
    assert reused > 2
    plain.close()
    rag.close()


def test_calls_that_say_nothing_are_counted() -> None:
    """A model that does not report: no usage, and still so many calls beside the answer."""
    llm, retriever = HashLLM(), HashRetriever(documents=documents())
    rag = rag_of(llm, retriever, "interval", **WRONG)
    report = rag.invoke(QUESTIONS[0])["ralmspec"]
    rag.close()

    assert report["usage"] is None
    assert report["dropped"]["usage"] is None
    assert 0 < report["dropped"]["calls"] == report["dropped"]["unreported"]
    assert len(llm.prompts) == len(report["queries"]) + report["dropped"]["calls"]


def test_calls_that_fail_are_counted() -> None:
    """Those behind wrong guesses all fail: they were made, and nobody knows what they cost."""
    llm, retriever = HashChat(), HashRetriever(documents=documents())
    expected = by_hand(llm, retriever, "interval").invoke(QUESTIONS[0])
    right = set(llm.prompts)

    def fails(prompt: str) -> None:
        if prompt not in right:
            raise HostError("wrong branch")

    llm.hook = fails
    rag = rag_of(llm, retriever, "interval", **WRONG)
    reply = rag.invoke(QUESTIONS[0])
    rag.close()

    assert values(expected) == values(reply)
    assert 0 < reply["ralmspec"]["dropped"]["calls"] == reply["ralmspec"]["dropped"]["unreported"]


class Bare(BaseChatModel):
    """Reports no usage, as most local servers."""

    prompts: list[Any] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "bare"

    def _generate(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        self.prompts.append(messages)
        return ChatResult(generations=[ChatGeneration(message=AIMessage("an answer"))])


class Streaming(HashChat):
    """Has its field set, and streams where anybody listens."""

    streaming: bool = True


@pytest.mark.parametrize("kind", [Bare, HashChat, Streaming])
async def test_what_the_cache_answers_is_asked_once(kind: Any) -> None:
    """As by hand, with a handler and without; a hit's usage need not be complete."""
    llm, retriever = kind(), HashRetriever(documents=documents())
    rag = rag_of(llm, retriever, "one_shot")
    set_llm_cache(InMemoryCache())
    try:
        config: Any = {"callbacks": [BaseCallbackHandler()]}
        first = rag.invoke(QUESTIONS[0], config)
        asked = len(llm.prompts)
        again = [rag.invoke(QUESTIONS[0]), await rag.ainvoke(QUESTIONS[0], config)]
    finally:
        set_llm_cache(None)
        rag.close()

    assert [values(first)] * 2 == [values(reply) for reply in again]
    assert 1 == asked == len(llm.prompts)


@pytest.mark.parametrize("kind", [Counting, HashChat, HashLLM])
async def test_dropped_calls_stay_within_a_bound(kind: Any) -> None:
    """Tokens by the model's report, or what a call may write; the call in flight may exceed it."""
    llm, retriever = kind(), HashRetriever(documents=documents())
    free = rag_of(llm, retriever, "interval", **WRONG)
    cost = free.invoke(QUESTIONS[0])["ralmspec"]["stats"]["wasted_tokens"]
    for most in (0, cost // 4):
        rag = rag_of(llm, retriever, "interval", **WRONG, max_wasted_tokens=most)
        for reply in (rag.invoke(QUESTIONS[0]), await rag.ainvoke(QUESTIONS[0])):
            stats = reply["ralmspec"]["stats"]
            call = max(span["tokens"] for span in stats["timeline"])
            assert stats["wasted_tokens"] <= max(0, most - 1 + call * (most > 0)) < cost
            assert stats["limited_by"] == "max_wasted_tokens"
            assert free.invoke(QUESTIONS[0])["answer"] == reply["answer"] != ""
            usage = reply["ralmspec"]["dropped"]["usage"]
            assert usage is None or usage["total_tokens"] == stats["wasted_tokens"]
        rag.close()
    free.close()


def test_dropped_embeddings_stay_within_a_bound() -> None:
    """Queries that are no part of the answer are embedded at most so often; none with 0."""
    store = InMemoryVectorStore.from_documents(documents(), DeterministicFakeEmbedding(size=8))
    retriever = store.as_retriever()
    free = rag_of(HashChat(), retriever, "interval", **WRONG)
    expected = free.invoke(QUESTIONS[0])
    assert expected["ralmspec"]["stats"]["wasted_encodings"] > 1
    for most in (0, 1):
        rag = rag_of(HashChat(), retriever, "interval", **WRONG, max_wasted_encodings=most)
        reply = rag.invoke(QUESTIONS[0])
        stats = reply["ralmspec"]["stats"]
        rag.close()

        assert stats["wasted_encodings"] <= most
        assert stats["limited_by"] == "max_wasted_encodings"
        assert expected["answer"] == reply["answer"] != ""
        assert expected["context"] == reply["context"]
    free.close()


def test_a_share_of_the_calls_of_all_answers_is_kept() -> None:
    """With 0.1 nothing is begun on a guess before nine calls were made, over all questions."""
    retriever = HashRetriever(documents=documents())
    free = rag_of(HashLLM(), retriever, "interval", **WRONG)
    rag = rag_of(HashLLM(), retriever, "interval", **WRONG, max_wasted_share=0.1)
    calls = wasted = 0
    limited, texts = set(), set()
    for question in QUESTIONS * 4:
        reply, expected = rag.invoke(question), free.invoke(question)
        stats = reply["ralmspec"]["stats"]
        calls += stats["segments"] + stats["wasted_segments"]
        wasted += stats["wasted_segments"]
        limited.add(stats["limited_by"])
        assert wasted <= 0.1 * calls
        assert expected["answer"] == reply["answer"]
        texts.add(reply["answer"])
    rag.close()
    free.close()

    assert wasted > 0
    assert "max_wasted_share" in limited
    assert len(texts) > 9


def test_a_bound_is_checked_at_once() -> None:
    """With the name of what was wrong."""
    with pytest.raises(ConfigError, match="max_wasted_share must be from 0 to 1"):
        rag_of(HashLLM(), HashRetriever(documents=[]), max_wasted_share=1.5)
    for name in ("max_wasted_tokens", "max_wasted_encodings"):
        with pytest.raises(ConfigError, match=f"{name} must be a whole number of at least 0"):
            rag_of(HashLLM(), HashRetriever(documents=[]), **{name: -1})
