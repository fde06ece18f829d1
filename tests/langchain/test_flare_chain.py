"""LangChain's own FLARE chain beside ours: what its page says differs."""

import math
from typing import Any

import pytest
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.messages import AIMessage
from langchain_core.outputs import Generation, LLMResult
from langchain_core.prompts import PromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda
from langchain_ralmspec.documents import passage_of
from langchain_ralmspec.llm import HostLM
from langchain_ralmspec.prompts import Prompting
from pydantic import Field

from ralmspec_plugins.plain import plain
from ralmspec_plugins.types import Hit, Hits, Query, Request
from ralmspec_plugins.workloads import Flare
from tests.langchain.rag_parts import HashLLM

flare = pytest.importorskip(
    "langchain_classic.chains.flare.base", reason="langchain-classic is not installed"
)
QUESTION = "Who saw it?"
SENTENCES = (" One is sure.", " Two is not.", " Three is sure.")
UNSURE = 0.15  # below both thresholds: 0.2 of the chain, 0.8 and 0.4 of the paper


def scored(text: str) -> list[tuple[str, float]]:
    """Give a sentence's words, one of them unsure in the second sentence."""
    words = [f" {word}" for word in text.split()]
    return [(word, UNSURE if word == " not." else 0.99) for word in words]


class Store(BaseRetriever):
    """Finds a document that names what was asked."""

    asked: list[str] = Field(default_factory=list)

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[Document]:
        self.asked.append(query)
        return [Document(page_content=f"<{query}>", id=query)]


class Searched:
    """The same store for the plain loop."""

    inline_encode = True
    k = 1
    signature = "store"

    def __init__(self, store: Store) -> None:
        self.store = store

    def encode(self, text: str) -> Query:
        return Query(text)

    def search(self, queries: Any) -> list[Hits]:
        found = [self.store.invoke(query.text) for query in queries]
        return [tuple(Hit(passage_of(one)) for one in documents) for documents in found]


class ScoredLLM(HashLLM):
    """Writes the next of the sentences, with the probabilities of its words."""

    def _generate(
        self, prompts: list[str], stop: list[str] | None = None, run_manager: Any = None, **kw: Any
    ) -> LLMResult:
        [prompt] = prompts
        self.prompts.append(prompt)
        number = sum(sentence in prompt for sentence in SENTENCES)
        if number == len(SENTENCES):
            return LLMResult(generations=[[Generation(text="", generation_info={})]])
        words = [*scored(SENTENCES[number]), (" x", 0.99)]
        told = {
            "tokens": [word for word, _ in words],
            "token_logprobs": [math.log(probability) for _, probability in words],
        }
        text = "".join(told["tokens"])  # type: ignore[arg-type]
        return LLMResult(generations=[[Generation(text=text, generation_info={"logprobs": told})]])


def the_chain(store: Store, seen: list[dict[str, str]]) -> Any:
    """Make LangChain's chain over the same sentences; it asks for what is unsure."""

    def respond(given: dict[str, str]) -> AIMessage:
        seen.append(given)
        number = sum(sentence in f" {given['response']}" for sentence in SENTENCES)
        text = SENTENCES[number] if number < len(SENTENCES) else " FINISHED"
        content = [
            {"token": word, "logprob": math.log(probability)} for word, probability in scored(text)
        ]
        return AIMessage(text, response_metadata={"logprobs": {"content": content}})

    return flare.FlareChain(
        question_generator_chain=RunnableLambda(lambda given: f"what is{given['uncertain_span']}"),
        response_chain=RunnableLambda(respond),
        retriever=store,
    )


def test_what_differs_is_what_the_page_says() -> None:
    """The chain looks ahead without documents, and searches first where a word is unsure.

    Ours searches the question first, looks ahead with what was found last, asks with the sentence
    without its unsure words, and keeps what it found for the sentences that follow.
    """
    theirs, seen = Store(), list[dict[str, str]]()
    reply = the_chain(theirs, seen).invoke({"user_input": QUESTION})["response"]
    ours, llm = Store(), ScoredLLM()
    prompt = PromptTemplate.from_template("{context}\n{input}")
    lm = HostLM(llm, Prompting(prompt=prompt), bound="max_tokens", logprobs={"logprobs": 1})
    answer = plain(Flare(lm), Searched(ours), Request(prompt=QUESTION, max_tokens=20))

    assert "".join(SENTENCES).split() == reply.split() == answer.text.split()[: len(reply.split())]
    assert ["what is not."] == theirs.asked
    assert [QUESTION, "Two is"] == ours.asked
    assert ["", "", "<what is not.>", "", ""] == [given["context"] for given in seen]
    shown = [prompt.partition("\n")[0] for prompt in llm.prompts]
    assert [f"<{QUESTION}>"] * 2 + ["<Two is>"] * (len(shown) - 2) == shown


def test_the_chain_streams_nothing_on_the_way() -> None:
    """Its answer comes as one piece, when it is complete."""
    pieces = list(the_chain(Store(), []).stream({"user_input": QUESTION}))

    assert len(pieces) == 1
    assert pieces[0]["response"]
