"""A model driven directly, inside the runnable: its answers, and what is told of it."""

from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_ralmspec import SpeculativeRAG, stats_of

from ralmspec_plugins.decoding import (
    Accepted,
    CostCurve,
    Decoding,
    DraftContext,
    SuffixDrafter,
    TokenTree,
)
from tests.langchain.rag_parts import plain_values
from tests.langchain.stores.worlds import WordEmbeddings
from tests.langchain.test_local_model import chat, made

pytestmark = pytest.mark.filterwarnings(
    "ignore:.langchain-community. is being sunset:DeprecationWarning"
)
TEXT = PromptTemplate.from_template("Read:\n{context}\nNow: {input}\n")
CHAT = ChatPromptTemplate.from_messages([("system", "Read: {context}!"), ("user", "{input}")])
TEXTS = [f"the ships that passed {number} storms" for number in range(12)]


class Calls(BaseCallbackHandler):
    """Notes searches and model runs, with what they were given and gave."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Any]] = []
        self.parents: set[Any] = set()
        self.root: Any = None

    def on_chain_start(self, *args: Any, run_id: Any, **kwargs: Any) -> None:
        self.root = run_id

    def on_retriever_start(self, serialized: Any, query: str, **kwargs: Any) -> None:
        self.seen.append(("search", query))
        self.parents.add(kwargs["parent_run_id"])

    def on_llm_start(self, serialized: Any, prompts: list[str], **kwargs: Any) -> None:
        self.seen.append(("start", prompts[0]))
        self.parents.add(kwargs["parent_run_id"])

    def on_chat_model_start(self, serialized: Any, messages: Any, **kwargs: Any) -> None:
        self.seen.append(("start", [(one.type, one.content) for one in messages[0]]))
        self.parents.add(kwargs["parent_run_id"])

    def on_llm_end(self, response: Any, **kwargs: Any) -> None:
        self.seen.append(("end", response.generations[0][0].text))


def rag_over(llm: Any, prompt: Any, **settings: Any) -> SpeculativeRAG:
    store = InMemoryVectorStore.from_texts(TEXTS, WordEmbeddings(), ids=TEXTS)
    retriever = store.as_retriever(search_kwargs={"k": 1})
    return SpeculativeRAG(
        retriever=retriever,
        llm=llm,
        prompt=prompt,
        direct=True,
        max_tokens=16,
        report=True,
        **settings,
    )


@pytest.mark.parametrize(
    ("wrapped", "prompt"), [(lambda llm: llm, TEXT), (chat, CHAT)], ids=["text", "chat"]
)
def test_a_trace_shows_what_the_model_saw_and_wrote(
    wrapped: Callable[[Any], Any], prompt: Any
) -> None:
    """Each committed segment is told as one run, behind its search, and they add up."""
    calls = Calls()
    llm = wrapped(made())
    reply = rag_over(llm, prompt).invoke("where?", {"callbacks": [calls]})
    kinds = [kind for kind, _ in calls.seen]
    steps = len(reply["ralmspec"]["queries"])

    assert kinds == ["search", "start", "end"] * steps
    assert calls.parents == {calls.root}
    written = [value for kind, value in calls.seen if kind == "end"]
    assert reply["answer"] == "".join(written)
    given = [value for kind, value in calls.seen if kind == "start"]
    for step, (seen, query) in enumerate(zip(given, reply["ralmspec"]["queries"], strict=True)):
        found = reply["context"][0].page_content if not step else ""
        before = "".join(written[:step])
        shown = seen if isinstance(seen, str) else "".join(content for _, content in seen)
        assert found in shown
        assert shown.endswith(before)
        assert query


def test_its_answers_are_the_plain_loops() -> None:
    """Over sync, async, streams and batches, with one model."""
    llm = made()
    plain, rag = rag_over(llm, TEXT, speculate=False), rag_over(llm, TEXT)
    asked = [f"where are {number} storms?" for number in range(6)]
    expected = [plain.invoke(one) for one in asked]
    streamed = ["".join(piece.get("answer", "") for piece in rag.stream(one)) for one in asked]

    assert [one["answer"] for one in expected] == streamed
    for ours, theirs in zip(rag.batch(list(asked)), expected, strict=True):
        assert ours["answer"] == theirs["answer"]
        assert plain_values(ours["context"]) == plain_values(theirs["context"])


async def test_nobody_hears_of_it_but_handlers_that_listen() -> None:
    """`astream_events` has the model's runs; without handlers nothing is formatted."""
    events = [
        event async for event in rag_over(made(), TEXT).astream_events("where?", version="v2")
    ]
    starts = [event for event in events if event["event"] == "on_llm_start"]
    ends = [event for event in events if event["event"] == "on_llm_end"]

    assert len(starts) == len(ends) > 0
    assert {event["name"] for event in starts} == {"HuggingFacePipeline"}


class Constant:
    """Drafts one token again and again: right where the model repeats it."""

    def __init__(self, token: int) -> None:
        self.token = token

    def propose(self, context: DraftContext, budget: int) -> TokenTree:
        return TokenTree.of([[self.token] * min(4, budget)])

    def update(self, accepted: Accepted) -> None:
        """Learn nothing."""


@pytest.mark.parametrize("speculate", [False, True])
def test_passes_are_in_the_report(speculate: bool) -> None:
    """With and without drafts: equal answers, and what they took, also streamed."""
    llm, free = made(), CostCurve((1, 33), (1.0, 1.0))
    drafting = Decoding(drafter=[SuffixDrafter(), Constant(5)], costs=free)
    rags = [
        rag_over(llm, TEXT, speculate=speculate, decoding=decoding) for decoding in (None, drafting)
    ]
    slow, fast = (rag.invoke("the ships that passed the ships that") for rag in rags)
    streamed = list(rags[1].stream("the ships that passed the ships that"))
    [report] = [piece for piece in streamed if "ralmspec" in piece]

    assert slow["answer"]
    assert slow["answer"] == fast["answer"]
    for stats in map(stats_of, (slow, fast, report)):
        assert stats.tokens_written >= 16
        assert stats.model_passes >= stats.tokens_written - stats.drafts_accepted
        assert stats.tokens_per_pass == stats.tokens_written / stats.model_passes
        assert stats.decisions_retaken >= 0
    assert stats_of(slow).drafts_accepted == 0
