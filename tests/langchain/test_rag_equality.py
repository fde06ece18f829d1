"""The runnable answers as the loop that is written by hand with the host's own objects."""

import itertools
from typing import Any

import pytest
from langchain_core.runnables import Runnable

from ralmspec_plugins import Continuous, FixedStride, OptimalStride, SharedPassageCache
from tests.langchain.rag_loops import by_hand
from tests.langchain.rag_parts import (
    QUESTIONS,
    HashChat,
    HashLLM,
    HashRetriever,
    ThreadedLLM,
    documents,
    plain_values,
    rag_of,
    vector_store,
)
from tests.selection import covering

MODELS = {"text": HashLLM, "chat": HashChat, "text in threads": ThreadedLLM}
LYING = {"replica": HashRetriever(documents=documents(), salt="lie")}
SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "plainly": {"speculate": False},
    "one lane": {"schedule": Continuous(lanes=1)},
    "stride of 3": {"schedule": FixedStride(stride=3)},
    "stride of 2, overlapping": {"schedule": FixedStride(stride=2, overlap=True)},
    "best stride": {"schedule": OptimalStride(overlap=True)},
    "tiny pool": {"pool": SharedPassageCache(capacity=1)},
    "no pool": {"pool": None},
    "lying replica": LYING,
    "lying replica, one lane": {**LYING, "schedule": Continuous(lanes=1)},
    "lying replica, stride of 3": {**LYING, "schedule": FixedStride(stride=3)},
    "lying replica, no pool": {**LYING, "pool": None, "side_by_side": 1},
}


def retrievers() -> dict[str, Any]:
    return {
        "black box": HashRetriever(documents=documents()),
        "without ids": HashRetriever(
            documents=[*documents(6, ids=False), *documents(2, ids=False)]
        ),
        "looked into": vector_store(documents()).as_retriever(search_kwargs={"k": 2}),
    }


def values(reply: dict[str, Any], *, empty: bool = False) -> tuple[Any, ...]:
    """Give what a reply says.

    Args:
        reply: of a runnable.
        empty: whether the answer may be empty, as that of a model now and then; else that is
            asserted, as it is of the documents, lest nothing be compared with nothing.
    """
    assert reply["context"]
    assert empty or reply["answer"].strip()
    return reply["input"], plain_values(reply["context"]), reply["answer"]


def cases() -> list[tuple[str, str, str, str]]:
    """Every setting with every workload; models and retrievers take turns."""
    turns = itertools.cycle(itertools.product(MODELS, retrievers()))
    return [
        (setting, workload, *next(turns))
        for setting in SETTINGS
        for workload in ("sentences", "interval")
    ]


def pair(setting: str, workload: str, model: str, retriever: str) -> tuple[Runnable[Any, Any], Any]:
    llm, found = MODELS[model](), retrievers()[retriever]
    return by_hand(llm, found, workload), rag_of(llm, found, workload, **SETTINGS[setting])


@pytest.mark.parametrize("every", [9, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("setting", "workload", "model", "retriever"), cases())
async def test_the_answer_is_that_of_the_loop_by_hand(
    setting: str, workload: str, model: str, retriever: str, every: int
) -> None:
    """Text, documents and their order, however far ahead and however wrong: sync and async."""
    hand, rag = pair(setting, workload, model, retriever)
    questions = QUESTIONS[len(setting) % 3 :: every]
    expected = [values(hand.invoke(question), empty=True) for question in questions]

    assert expected == [values(rag.invoke(question), empty=True) for question in questions]
    awaited = [await rag.ainvoke(question) for question in questions]
    assert expected == [values(one, empty=True) for one in awaited]
    assert any(answer for *_, answer in expected)
    rag.close()


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("model", "retriever"), covering(MODELS, retrievers()))
def test_wrong_guesses_were_made_and_stop_strings_cut(
    model: str, retriever: str, every: int
) -> None:
    """The replica that lies is believed and found out; a stop string ends the same text."""
    llm, found = MODELS[model](), retrievers()[retriever]
    ahead = {**LYING, "pool": None, "schedule": FixedStride(stride=3)}  # whatever it costs
    hand, rag = by_hand(llm, found, "interval"), rag_of(llm, found, "interval", **ahead)
    for question in QUESTIONS[:3]:
        whole = hand.invoke(question)["answer"]
        stop = (" " + whole.split()[-1],)
        cut = by_hand(MODELS[model](), retrievers()[retriever], "interval", stop=stop)

        assert values(cut.invoke(question)) == values(rag.invoke(question, stop=list(stop)))
    stats = [rag.invoke(question)["ralmspec"]["stats"] for question in QUESTIONS[::every]]

    assert sum(stat["guesses"] for stat in stats) > 0
    assert sum(stat["guesses"] - stat["accepted"] for stat in stats) > 10
    rag.close()
