"""Step by step, the engine answers as the loop that is written by hand with the host's objects."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.postprocessor import SimilarityPostprocessor
from llama_index_ralmspec import stats_of

from ralmspec_plugins import Continuous, FixedStride, OptimalStride, QueryCache, SharedPassageCache
from tests.llama_index.engine_parts import EMPTY, seen
from tests.llama_index.rag_parts import (
    MODELS,
    QUESTIONS,
    HashRetriever,
    ScoresIntoTexts,
    SyncRetriever,
    made_nodes,
    pair,
)
from tests.llama_index.worlds import WordEmbedding
from tests.selection import covering

LYING = {"replica": HashRetriever(made_nodes(), salt="lie")}
SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "plainly": {"speculate": False},
    "one lane": {"schedule": Continuous(lanes=1)},
    "stride of 3": {"schedule": FixedStride(stride=3)},
    "stride of 2, overlapping": {"schedule": FixedStride(stride=2, overlap=True)},
    "best stride": {"schedule": OptimalStride(overlap=True)},
    "tiny pool": {"pool": SharedPassageCache(capacity=1)},
    "no pool": {"pool": None},
    "memo": {"memo": QueryCache()},
    "lying replica": LYING,
    "lying replica, one lane": {**LYING, "schedule": Continuous(lanes=1)},
    "lying replica, stride of 3": {**LYING, "schedule": FixedStride(stride=3)},
    "lying replica, no pool": {**LYING, "pool": None, "side_by_side": 1},
}
BY_VECTORS = ("looked into", "all found")  # whose scores are lower
PROCESSORS: dict[str, Callable[[str], tuple[Any, ...]]] = {
    "none": lambda _: (),
    "cut off": lambda retriever: (
        SimilarityPostprocessor(similarity_cutoff=0.1 if retriever in BY_VECTORS else 0.9),
    ),
    "scores shown": lambda _: (ScoresIntoTexts(),),
}


def vectors(k: int = 2) -> Any:
    return VectorStoreIndex(made_nodes(), embed_model=WordEmbedding()).as_retriever(
        similarity_top_k=k
    )


def retrievers() -> dict[str, Any]:
    return {
        "black box": HashRetriever(made_nodes()),
        "without async": SyncRetriever(made_nodes(), k=3),
        "nothing found": HashRetriever(made_nodes(), k=0),
        "looked into": vectors(),
        "all found": vectors(50),
    }


def cases() -> list[tuple[str, str, str, str, str]]:
    """Every setting with every workload; models, retrievers and postprocessors take turns."""
    turns = itertools.cycle(itertools.product(MODELS, retrievers(), PROCESSORS))
    step = itertools.islice(turns, 0, None, 7)  # prime to their number
    return [
        (setting, workload, *next(step))
        for setting in SETTINGS
        for workload in ("sentences", "interval")
    ]


@pytest.mark.parametrize("every", [12, pytest.param(5, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("setting", "workload", "model", "retriever", "processors"), cases())
async def test_the_response_is_that_of_the_loop_by_hand(
    setting: str, workload: str, model: str, retriever: str, processors: str, every: int
) -> None:
    """Text, nodes, scores, metadata, however far ahead and however wrong: sync and async."""
    hand, ours = pair(
        MODELS[model](),
        retrievers()[retriever],
        workload,
        processors=PROCESSORS[processors](retriever),
        **SETTINGS[setting],
    )
    empty, answered = retriever == "nothing found", 0
    with ours:
        for question in QUESTIONS[len(setting) % 5 :: every]:
            expected = seen(hand.query(question), empty=True)

            assert expected == seen(ours.query(question), empty=True)
            assert expected == seen(await ours.aquery(question), empty=True)
            assert empty or expected[2]
            answered += expected[1] not in EMPTY
    assert answered or every > 5, "all texts are empty"  # the model may write none, seldom


@pytest.mark.parametrize(("model", "workload"), covering(MODELS, ["sentences", "interval"]))
async def test_a_stream_adds_up_to_the_loop_by_hand(model: str, workload: str) -> None:
    """Pieces concatenate to the text, sync and async; in the end all nodes are there."""
    llm, retriever = MODELS[model](), HashRetriever(made_nodes())
    hand, _ = pair(llm, retriever, workload)
    _, ours = pair(llm, retriever, workload, streaming=True, **LYING)
    with ours:
        for question in QUESTIONS[:4]:
            expected = hand.query(question)
            stream, astream = ours.query(question), await ours.aquery(question)
            text = "".join(stream.response_gen)
            atext = "".join([piece async for piece in astream.async_response_gen()])

            assert expected.response == text == atext
            hosts, *others = (seen(one, empty=one is stream) for one in (expected, stream, astream))
            assert [hosts[2:]] * 2 == [one[2:] for one in others]


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("model", MODELS)
def test_wrong_guesses_were_made_and_stop_strings_cut(model: str, every: int) -> None:
    """The replica that lies is believed and found out; a stop string ends the same text."""
    llm, retriever = MODELS[model](), HashRetriever(made_nodes())
    ahead = {**LYING, "pool": None, "schedule": FixedStride(stride=3)}  # whatever it costs
    hand, ours = pair(llm, retriever, **ahead)
    with ours:
        for question in QUESTIONS[:3]:
            whole = hand.query(question).response
            stop = (" " + whole.split()[-1],)
            cut, ours_cut = pair(llm, retriever, stop=stop, **LYING)
            with ours_cut:
                expected = seen(cut.query(question), empty=len(whole.split()) == 1)
                assert expected == seen(ours_cut.query(question), empty=len(whole.split()) == 1)
        reports = [stats_of(ours.query(question)) for question in QUESTIONS[::every]]
        wrong = [one.guesses - one.accepted for one in reports]

    assert sum(wrong) > 10
