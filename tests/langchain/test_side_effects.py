"""Models whose calls leave traces: none is made that the plain loop would not have made."""

import asyncio
import random
from typing import Any

import numpy as np
import pytest
from langchain_core.language_models import LLM, FakeListLLM, GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.prompts import PromptTemplate
from langchain_ralmspec import SpeculativeRAG
from langchain_ralmspec.pipeline import side_effects_of

from ralmspec_plugins import FixedStride, SharedPassageCache
from ralmspec_plugins.protocols import speculative
from tests.langchain.rag_parts import SENTENCES, HashRetriever, documents

PROMPT = PromptTemplate.from_template("{context} {input}")
QUESTIONS = ("Who came?", "What was it?", "Where to?")


class Noted:
    """Which calls were made on guesses: an object of its own, so that it is no setting."""

    def __init__(self) -> None:
        self.ahead: list[bool] = []


class Draws(LLM):
    """Writes a sentence with a number of process-wide random state, from its n-th call on."""

    source: str = "python"
    begins: int = 0
    noted: Any = None
    held: Any = None

    @property
    def _llm_type(self) -> str:
        return "draws"

    def _call(self, prompt: str, stop: Any = None, run_manager: Any = None, **_: Any) -> str:
        self.noted.ahead.append(speculative.get())
        if len(self.noted.ahead) <= self.begins:
            return f"A word {len(prompt)}."
        if self.source == "python":
            number = random.random()
        elif self.source == "numpy":
            number = float(np.random.random())  # noqa: NPY002
        elif self.source == "generator":
            number = self.held.random()
        elif self.source == "taken":
            number = self.held.pop(0)
        else:
            number = float(pytest.importorskip("torch").rand(1))
        return f" One {number:.6f}. Two"


def seeded(source: str) -> None:
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    if source == "torch":
        pytest.importorskip("torch").manual_seed(1)


def rag_of(llm: Any, **settings: Any) -> SpeculativeRAG:
    """Over a liar of a replica: all its guesses are wrong, unless they are not asked for."""
    found = documents()
    steps: dict[str, Any] = {
        "bound": lambda _: {},
        "continuation": "assistant" if isinstance(llm, GenericFakeChatModel) else None,
    }
    if settings.get("workload") == "one_shot":  # one call writes all: they would have no effect
        steps = {}
    return SpeculativeRAG(
        retriever=HashRetriever(documents=found),
        replica=HashRetriever(documents=found, salt="lie"),
        llm=llm,
        prompt=PROMPT,
        **steps,
        **{"workload": SENTENCES, "schedule": FixedStride(stride=3, overlap=True)} | settings,
    )


def answers(rag: SpeculativeRAG, way: str) -> list[str]:
    """Ask all questions, one after the other, in one of the ways."""

    async def asked() -> list[Any]:
        return [await rag.ainvoke(one) for one in QUESTIONS]

    def streamed(question: str) -> str:
        return "".join(piece.get("answer", "") for piece in rag.stream(question))

    with_one = {"max_concurrency": 1}
    if way == "invoke":
        return [rag.invoke(one)["answer"] for one in QUESTIONS]
    if way == "ainvoke":
        return [one["answer"] for one in asyncio.run(asked())]
    if way == "stream":
        return [streamed(one) for one in QUESTIONS]
    return [one["answer"] for one in rag.batch(list(QUESTIONS), with_one)]


KINDS = ("python", "numpy", "torch", "list", "iterator", "generator", "taken")


def texts() -> list[str]:
    return [f" It is {number}. And" for number in range(40)]


@pytest.mark.parametrize("workload", [SENTENCES, "one_shot"])
@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "batch"])
@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_those_of_the_plain_loop(kind: str, way: str, workload: Any) -> None:
    """Random numbers are drawn, and answers taken off a queue, by the calls that count alone."""
    outcomes = []
    for options in ({"speculate": False}, {}, {"pool": SharedPassageCache()}):
        llm: Any
        if kind == "list":
            llm = FakeListLLM(responses=texts())
        elif kind == "iterator":
            llm = GenericFakeChatModel(messages=iter(map(AIMessage, texts())))
        else:
            held = np.random.default_rng(1) if kind == "generator" else list(range(99))
            llm = Draws(source=kind, noted=Noted(), held=held)
            seeded(kind)
        rag = rag_of(llm, workload=workload, **options)
        outcomes.append(answers(rag, way))
        rag.close()
    assert outcomes[0] == outcomes[1] == outcomes[2]
    assert len(set(outcomes[0])) == len(QUESTIONS)


@pytest.mark.parametrize("begins", [0, 1, 3])
def test_no_call_is_made_ahead_once_it_is_seen(begins: int) -> None:
    """Within the request that has found it, and in all that follow."""
    llm = Draws(begins=begins, noted=Noted())
    rag = rag_of(llm, pool=SharedPassageCache())
    for question in QUESTIONS:
        rag.invoke(question)
    ahead = llm.noted.ahead
    seen = rag.model_copy(update={"seed": 7})  # as configurable fields copy it
    before = len(ahead)
    seen.invoke("And then?")

    assert any(ahead[: begins + 1]) == (begins > 0)
    assert not any(ahead[begins + 1 :])
    assert len(ahead) > before > begins + 1
    rag.close()


def test_the_caller_may_say_that_it_makes_no_difference() -> None:
    """Then calls are made on guesses."""
    llm = Draws(noted=Noted())
    rag = rag_of(llm, guess_through=True)
    for question in QUESTIONS:
        rag.invoke(question)

    assert any(llm.noted.ahead)
    rag.close()


def test_known_servers_are_not_watched() -> None:
    """What their clients count is nobody's answer; what is around a model does not hide it."""
    openai = pytest.importorskip("langchain_openai")
    remote = openai.ChatOpenAI(api_key="-", base_url="http://127.0.0.1:9")
    local = FakeListLLM(responses=["x"])

    assert side_effects_of(remote) is None
    assert side_effects_of(remote.with_retry()) is None
    assert side_effects_of(remote.with_fallbacks([local])) is not None
    assert side_effects_of(local.with_retry()) is not None
    assert side_effects_of(PROMPT | local) is not None
