"""Multi-hop and Iter-RetGen in LangChain: as the loop by hand with the host's own objects."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.outputs import Generation, GenerationChunk, LLMResult
from langchain_core.prompts import PromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
from langchain_ralmspec.rag import SpeculativeRAG
from pydantic import Field

from ralmspec_plugins import FixedStride
from ralmspec_plugins.errors import ConfigError
from tests.langchain.rag_parts import HashLLM, Log, digest, told

TEXTS = [f"passage {number} of ships no {number * 7}" for number in range(9)]
QUESTION = "Who saw it?"
PROMPT = PromptTemplate.from_template("{context}Ask in tags. {input}\n")


class Store(BaseRetriever):
    """Ranks by a digest: nobody can guess what it finds."""

    asked: list[str] = Field(default_factory=list)

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[Document]:
        self.asked.append(query)
        ranked = sorted(TEXTS, key=lambda text: digest(query + text))
        return [Document(page_content=text) for text in ranked[:2]]


class Liar(Store):
    """Finds something else."""

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[Document]:
        return [Document(page_content=f"not {query}")]


def wrong() -> dict[str, Any]:
    """Give settings with which turns are written on wrong guesses, and dropped."""
    return {"replica": Liar(), "pool": None, "schedule": FixedStride(stride=3)}


class TagLLM(HashLLM):
    """Asks three times for a digest of what it reads, then answers with one."""

    cuts: bool = True  # whether it is told where to stop, and cuts that off

    def _generate(
        self, prompts: list[str], stop: list[str] | None = None, run_manager: Any = None, **kw: Any
    ) -> LLMResult:
        [prompt] = prompts
        self.prompts.append(prompt)
        if prompt.count("<information>") < 3:
            text = f"I look. <search>x{digest(prompt):08x}</search> and on"
        else:
            text = f"So <answer>x{digest(prompt):08x}</answer> it is"
        if self.cuts:
            text = text[: min(text.find(mark) for mark in stop or () if mark in text)]
        return LLMResult(generations=[[Generation(text=text, generation_info={})]])

    def _stream(
        self, prompt: str, stop: list[str] | None = None, run_manager: Any = None, **kw: Any
    ) -> Iterator[GenerationChunk]:
        whole = self._generate([prompt], stop).generations[0][0].text
        yield from (GenerationChunk(text=letter) for letter in whole)


def by_hand(llm: Any, store: Store) -> Runnable[str, dict[str, Any]]:
    """Make the loop: write until a tag closes, put in what is found, and write on."""

    def run(question: str, config: RunnableConfig) -> dict[str, Any]:
        return _written(llm, store, question, config)

    return RunnableLambda(run, name="SpeculativeRAG")


def _written(llm: Any, store: Store, question: str, config: RunnableConfig) -> dict[str, Any]:
    prompt, read, written = PROMPT.format(context="", input=question), "", ""
    context: list[Document] = []
    while True:
        bound = {"stop": ["</search>", "</answer>"], "max_tokens": 256}
        text = llm.invoke(prompt + read, config, **bound)
        text = text.partition("</search>")[0].partition("</answer>")[0]
        if "<answer>" in text:
            answer = f"{written}{text}</answer>"
            return {"input": question, "context": context, "answer": answer}
        text += "</search>"
        query = text.rpartition("<search>")[2].partition("</search>")[0]
        found = store.invoke(query, config)
        context += [one for one in found if one not in context]
        lines = [f"Doc {n}(Title: ) {one.page_content}" for n, one in enumerate(found, start=1)]
        written += text
        read += text + "\n\n<information>" + "\n".join(lines) + "</information>\n\n"


@pytest.mark.parametrize("cuts", [True, False])
@pytest.mark.parametrize("speculate", [True, False])
def test_multi_hop_is_the_loop_by_hand(*, cuts: bool, speculate: bool) -> None:
    """The same text, and the same queries in the same order, called and streamed."""
    hand = Store()
    expected = by_hand(TagLLM(cuts=cuts), hand).invoke(QUESTION)
    store, options = Store(), {"workload": "multi_hop", "prompt": PROMPT, "speculate": speculate}
    rag = SpeculativeRAG.from_llm(TagLLM(cuts=cuts), store, bound="max_tokens", **options)
    pieces = list(rag.stream({"input": QUESTION}))
    streamed = "".join(piece["answer"] for piece in pieces if "answer" in piece)

    assert expected == rag.invoke({"input": QUESTION})
    assert expected == asyncio.run(rag.ainvoke({"input": QUESTION}))
    assert expected["answer"] == streamed
    assert expected["context"] == [one for piece in pieces for one in piece.get("context", [])]
    assert expected["answer"].count("<search>") == 3
    assert set(hand.asked) <= set(store.asked)
    assert len(expected["context"]) >= 3


@pytest.mark.parametrize("speculate", [True, False])
def test_handlers_hear_of_each_hop(*, speculate: bool) -> None:
    """A search and a call of the model for each, nested and in order as by hand; nothing else."""
    settings = wrong() if speculate else {"speculate": False}
    llm = TagLLM()
    rag = SpeculativeRAG.from_llm(
        llm, Store(), bound="max_tokens", workload="multi_hop", prompt=PROMPT, **settings
    )
    logs = Log(), Log()
    by_hand(TagLLM(), Store()).invoke(QUESTION, {"callbacks": [logs[0]]})
    rag.invoke(QUESTION, {"callbacks": [logs[1]]})

    assert told(logs[0]) == told(logs[1])
    assert (3, 4) == (logs[1].names.count("on_retriever_end"), logs[1].names.count("on_llm_end"))
    assert (len(llm.prompts) > 4) is speculate  # what was written on wrong guesses is not told


def test_a_stream_has_settled_text_alone() -> None:
    """Each piece is there to stay, behind wrong guesses too; hops come as they are committed."""
    rag = SpeculativeRAG.from_llm(
        TagLLM(), Store(), bound="max_tokens", workload="multi_hop", prompt=PROMPT, **wrong()
    )
    pieces = list(rag.stream({"input": QUESTION}))
    answer, at = rag.invoke(QUESTION)["answer"], 0
    hops = [number for number, piece in enumerate(pieces) if "context" in piece]

    for piece in pieces:
        assert answer.startswith(piece.get("answer", ""), at)
        at += len(piece.get("answer", ""))
    assert at == len(answer)
    assert len(hops) > 1  # a hop that finds nothing new adds no documents
    assert "answer" in pieces[hops[0] + 1]


class Answering(HashLLM):
    """Answers a whole question by a digest."""

    def _generate(
        self, prompts: list[str], stop: list[str] | None = None, run_manager: Any = None, **kw: Any
    ) -> LLMResult:
        self.prompts.append(prompts[0])
        return LLMResult(generations=[[Generation(text=f"x{digest(prompts[0]):08x}")]])


@pytest.mark.parametrize("speculate", [True, False])
def test_iter_retgen_is_the_loop_by_hand(*, speculate: bool) -> None:
    """Three calls of the host's own, without a bound, each with what the answer before found."""
    question, llm, store = QUESTION, Answering(), Store()
    prompt = PromptTemplate.from_template("{context}\n{input}")
    query, answer = question, ""
    for _ in range(3):
        context = "\n\n".join(one.page_content for one in store.invoke(query))
        answer = llm.invoke(prompt.format(context=context, input=question))
        query = f"{answer} {question}"
    ours = Store()
    rag = SpeculativeRAG.from_llm(
        Answering(), ours, workload="iter_retgen", prompt=prompt, speculate=speculate
    )
    reply = rag.invoke({"input": question})

    assert answer == reply["answer"]
    assert set(store.asked) <= set(ours.asked)
    assert len(set(store.asked)) == 3


def test_flare_needs_a_model_with_log_probabilities() -> None:
    """One that is not known to give them is refused at once."""
    with pytest.raises(ConfigError, match="logprobs"):
        SpeculativeRAG.from_llm(HashLLM(), Store(), workload="flare", bound="max_tokens")


class Scored(HashLLM):
    """Gives log-probabilities in OpenAI's form where it is asked for them."""

    def _words(
        self, prompt: str, stop: list[str] | None, kwargs: dict[str, Any]
    ) -> tuple[list[str], dict[str, Any]]:
        words, info = super()._words(prompt, stop, kwargs)
        if kwargs.get("logprobs"):
            scores = [-(digest(prompt + word) % 5) / 4 for word in words]
            info["logprobs"] = {"tokens": words, "token_logprobs": scores}
        return words, info


def test_flare_takes_what_asks_for_log_probabilities() -> None:
    """What the refusal names as its remedy; the answer is the plain loop's."""
    settings = {"workload": "flare", "bound": "max_tokens", "logprobs": {"logprobs": True}}
    stores = [Store(), Store()]
    replies = [
        SpeculativeRAG.from_llm(Scored(), store, speculate=speculate, **settings).invoke("Who?")
        for store, speculate in zip(stores, (True, False), strict=True)
    ]

    assert replies[0] == replies[1]
    assert replies[0]["answer"]
    assert len(set(stores[1].asked)) > 1  # the question, and sentences that were unsure
    assert set(stores[1].asked) <= set(stores[0].asked)


def test_logprobs_are_refused_where_nothing_reads_them() -> None:
    """As every setting without an effect."""
    for workload in ("sentences", "one_shot"):
        with pytest.raises(ConfigError, match="logprobs"):
            SpeculativeRAG.from_llm(
                Scored(), Store(), workload=workload, logprobs={"logprobs": True}
            )
