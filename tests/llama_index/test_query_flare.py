"""FLARE over LlamaIndex's clients and a server with log-probabilities: as the loop by hand."""

import asyncio
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from llama_index.core import PromptTemplate
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.llms.openai_like import OpenAILike
from llama_index_ralmspec import SpeculativeQueryEngine

from ralmspec_plugins import Continuous
from ralmspec_plugins.demo import DEMO_SEED, MODEL, make_world
from ralmspec_plugins.lm.huggingface import HuggingFaceLM
from ralmspec_plugins.testing import WordRetriever
from ralmspec_plugins.types import Query
from ralmspec_plugins.workloads import Flare
from tests.flare_by_hand import LOOK_AHEAD, flare_by_hand
from tests.langchain.openai_server import Served, serving

CONTINUED = {"extra_body": {"continue_final_message": True, "add_generation_prompt": False}}
PROMPT = PromptTemplate("{context_str}\n\n{query_str}")
WORLD = make_world(DEMO_SEED, 100)
WORDS = WordRetriever([f"{one.title}\n{one.text}" for one in WORLD.passages()], k=1)
QUESTIONS = [question.prompt for question in WORLD.questions(2, 1)]
MAX_TOKENS = 24


class Store(BaseRetriever):
    """Ranks by words, and keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        self.asked.append(query_bundle.query_str)
        hits = WORDS.search([Query(query_bundle.query_str)])[0]
        nodes = [TextNode(id_=hit.passage.id, text=hit.passage.text) for hit in hits]
        return [NodeWithScore(node=node, score=1.0) for node in nodes]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(HuggingFaceLM.from_pretrained(MODEL)) as served:
        yield served


def client(served: Served, kind: str, **settings: Any) -> OpenAILike:
    return OpenAILike(
        api_base=served.url,
        api_key="none",
        model="demo",
        temperature=0,
        max_retries=0,
        is_chat_model=kind == "chat",
        **settings,
    )


def by_hand(served: Served, kind: str, store: Store, question: str) -> tuple[str, list[str], int]:
    """Run the loop by hand with the client's own methods; give the nodes, each once."""
    llm = client(served, kind, logprobs=True, top_logprobs=1)

    def write(context: list[NodeWithScore], text: str, bound: int) -> Any:
        shown = "\n\n".join(one.node.get_content() for one in context)
        prompt = PROMPT.format(context_str=shown, query_str=question)
        if kind == "chat":
            messages = [ChatMessage(role=MessageRole.USER, content=prompt)]
            if text:
                messages.append(ChatMessage(role=MessageRole.ASSISTANT, content=text))
            more: dict[str, Any] = CONTINUED if text else {}
            reply: Any = llm.chat(messages, max_tokens=bound, **more)
            piece, choice = reply.message.content or "", reply.raw.choices[0]
            tokens = [(one.token, one.logprob) for one in choice.logprobs.content]
        else:
            reply = llm.complete(prompt + text, formatted=True, max_tokens=bound)
            piece, choice = reply.text, reply.raw.choices[0]
            said = choice.logprobs
            tokens = list(zip(said.tokens, said.token_logprobs, strict=True))
        likely = [(token, math.exp(logprob)) for token, logprob in tokens]
        return piece, likely, choice.finish_reason == "stop"

    text, found, sure = flare_by_hand(write, store.retrieve, question, MAX_TOKENS)
    texts = [one.node.get_content() for nodes in found for one in nodes]
    return text, list(dict.fromkeys(texts)), sure


def engine(
    llm: OpenAILike, store: Store, *, streaming: bool = False, **settings: Any
) -> SpeculativeQueryEngine:
    synthesizer = get_response_synthesizer(
        llm=llm,
        response_mode="simple_summarize",  # type: ignore[arg-type]
        text_qa_template=PROMPT,
        streaming=streaming,
    )
    if llm.is_chat_model:
        settings["continuation"] = CONTINUED
    workload = partial(Flare, look_ahead=LOOK_AHEAD)
    settings = {"workload": workload, "max_tokens": MAX_TOKENS} | settings
    return SpeculativeQueryEngine(store, synthesizer, [], None, **settings)


def as_told(response: Any) -> tuple[str, list[str]]:
    return str(response), [one.node.get_content() for one in response.source_nodes]


async def _awaited(served: Served, kind: str, **settings: Any) -> list[tuple[str, list[str]]]:
    llm = client(served, kind)
    made = engine(llm, Store(), **settings)
    together = await asyncio.gather(*(made.aquery(question) for question in QUESTIONS))
    assert llm._aclient is not None
    await llm._aclient.close()
    return [as_told(response) for response in together]


@pytest.mark.parametrize(("kind", "speculate"), [("text", True), ("chat", True), ("text", False)])
def test_flare_is_the_loop_by_hand(served: Served, kind: str, speculate: bool) -> None:
    """Text and nodes, asked, streamed, awaited at once; sure and unsure sentences."""
    hand = Store()
    expected, sure = [], 0
    for question in QUESTIONS:
        text, nodes, count = by_hand(served, kind, hand, question)
        expected.append((text, nodes))
        sure += count
    ours = Store()
    llm = client(served, kind)
    made = engine(llm, ours, speculate=speculate)
    stream: Any = engine(llm, ours, streaming=True, speculate=speculate).query(QUESTIONS[0])

    assert expected == [as_told(made.query(question)) for question in QUESTIONS]
    assert expected[0][0] == "".join(stream.response_gen)
    assert expected == asyncio.run(_awaited(served, kind, speculate=speculate))
    assert set(hand.asked) <= set(ours.asked)
    assert sure > 0
    assert len(set(hand.asked)) > len(QUESTIONS)
    assert all(len(text) > 20 for text, _ in expected)


def test_the_plain_loop_makes_no_more_calls_than_by_hand(served: Served) -> None:
    """Fewer, where a sentence need not be written again."""
    kind = "chat"
    before = served.count
    text, _, _ = by_hand(served, kind, Store(), QUESTIONS[0])
    middle = served.count
    response = engine(client(served, kind), Store(), speculate=False).query(QUESTIONS[0])
    calls = served.count - middle
    eager = Continuous(min_acceptance_rate=0.0)
    ahead = engine(client(served, kind), Store(), schedule=eager).query(QUESTIONS[0])

    assert text == str(response) == str(ahead)
    assert 0 < calls <= middle - before
