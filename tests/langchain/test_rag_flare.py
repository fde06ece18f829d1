"""FLARE over OpenAI's clients and a server that gives log-probabilities: as the loop by hand."""

import asyncio
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import httpx
import pytest
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.prompts import PromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_openai import ChatOpenAI, OpenAI
from langchain_ralmspec.rag import SpeculativeRAG
from pydantic import Field

from ralmspec_plugins import Continuous
from ralmspec_plugins.demo import DEMO_SEED, MODEL, make_world
from ralmspec_plugins.lm.huggingface import HuggingFaceLM
from ralmspec_plugins.testing import WordRetriever
from ralmspec_plugins.types import Query
from ralmspec_plugins.workloads import Flare
from tests.flare_by_hand import LOOK_AHEAD, flare_by_hand
from tests.langchain.openai_server import Served, serving

CONTINUED = {"extra_body": {"continue_final_message": True, "add_generation_prompt": False}}
PROMPT = PromptTemplate.from_template("{context}\n\n{input}")
WORLD = make_world(DEMO_SEED, 100)
PASSAGES = WORLD.passages()
WORDS = WordRetriever([f"{one.title}\n{one.text}" for one in PASSAGES], k=1)
QUESTIONS = [question.prompt for question in WORLD.questions(2, 1)]
MAX_TOKENS = 24


class Store(BaseRetriever):
    """Ranks by words, and keeps what it was asked."""

    asked: list[str] = Field(default_factory=list)

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[Document]:
        self.asked.append(query)
        hits = WORDS.search([Query(query)])[0]
        return [Document(page_content=hit.passage.text, id=hit.passage.id) for hit in hits]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(HuggingFaceLM.from_pretrained(MODEL)) as served:
        yield served


def client(served: Served, kind: str, **settings: Any) -> Any:
    given = {"base_url": served.url, "api_key": "none", "model": "demo", "temperature": 0}
    return {"text": OpenAI, "chat": ChatOpenAI}[kind](**given, max_retries=0, **settings)


def by_hand(llm: Any, store: Store, question: str) -> tuple[str, list[str], int]:
    """Run the loop by hand with the client's own methods; give the documents, each once."""

    def write(context: list[Document], text: str, bound: int) -> Any:
        shown = "\n\n".join(document.page_content for document in context)
        prompt = PROMPT.format(context=shown, input=question)
        if isinstance(llm, ChatOpenAI):
            messages = [("user", prompt), *([("assistant", text)] if text else [])]
            more = CONTINUED if text else {}
            message = llm.invoke(messages, max_tokens=bound, logprobs=True, **more)
            piece, told = str(message.text), message.response_metadata
            tokens = [(one["token"], one["logprob"]) for one in told["logprobs"]["content"]]
        else:
            call = llm.generate([prompt + text], max_tokens=bound, logprobs=1).generations[0][0]
            piece, told = call.text, call.generation_info
            said = told["logprobs"]
            tokens = list(zip(said["tokens"], said["token_logprobs"], strict=True))
        likely = [(token, math.exp(logprob)) for token, logprob in tokens]
        return piece, likely, told["finish_reason"] == "stop"

    text, found, sure = flare_by_hand(write, store.invoke, question, MAX_TOKENS)
    texts = [document.page_content for documents in found for document in documents]
    return text, list(dict.fromkeys(texts)), sure


def flare(llm: Any, store: Store, **settings: Any) -> SpeculativeRAG:
    settings = {"workload": partial(Flare, look_ahead=LOOK_AHEAD), "prompt": PROMPT} | settings
    if isinstance(llm, ChatOpenAI):
        settings["continuation"] = CONTINUED
    return SpeculativeRAG.from_llm(llm, store, max_tokens=MAX_TOKENS, **settings)


def as_told(reply: dict[str, Any]) -> tuple[str, list[str]]:
    return reply["answer"], [document.page_content for document in reply["context"]]


def streamed(pieces: list[dict[str, Any]]) -> tuple[str, list[str]]:
    documents = [one for piece in pieces for one in piece.get("context", [])]
    return "".join(piece.get("answer", "") for piece in pieces), [
        document.page_content for document in documents
    ]


async def _awaited(served: Served, kind: str, **settings: Any) -> list[Any]:
    async with httpx.AsyncClient() as connections:
        llm = client(served, kind, http_async_client=connections)
        rag = flare(llm, Store(), **settings)
        batched = await rag.abatch(QUESTIONS)
        return [
            streamed([piece async for piece in rag.astream(QUESTIONS[0])]),
            *(as_told(reply) for reply in batched),
        ]


@pytest.mark.parametrize(("kind", "speculate"), [("text", True), ("chat", True), ("text", False)])
def test_flare_is_the_loop_by_hand(served: Served, kind: str, speculate: bool) -> None:
    """Text and documents, in a batch, streamed, awaited; sure and unsure sentences."""
    llm, hand = client(served, kind), Store()
    expected, sure = [], 0
    for question in QUESTIONS:
        text, documents, count = by_hand(llm, hand, question)
        expected.append((text, documents))
        sure += count
    ours = Store()
    rag = flare(llm, ours, speculate=speculate)

    assert expected == [as_told(reply) for reply in rag.batch(QUESTIONS)]
    assert expected[0] == streamed(list(rag.stream(QUESTIONS[0])))
    awaited = asyncio.run(_awaited(served, kind, speculate=speculate))
    assert [expected[0], *expected] == awaited
    assert set(hand.asked) <= set(ours.asked)
    assert sure > 0
    assert len(set(hand.asked)) > len(QUESTIONS)
    assert all(len(text) > 20 for text, _ in expected)


def test_the_plain_loop_makes_no_more_calls_than_by_hand(served: Served) -> None:
    """Fewer, where a sentence need not be written again; ahead there are guesses."""
    llm = client(served, "text")
    before = served.count
    text, _, _ = by_hand(llm, Store(), QUESTIONS[0])
    middle = served.count
    reply = flare(llm, Store(), speculate=False).invoke(QUESTIONS[0])
    calls = served.count - middle
    eager = Continuous(min_acceptance_rate=0.0)
    ahead = flare(llm, Store(), schedule=eager, report=True).invoke(QUESTIONS[0])

    assert text == reply["answer"] == ahead["answer"]
    assert 0 < calls <= middle - before
    assert ahead["ralmspec"]["stats"]["guesses"] > 0
