"""Handlers hear of committed work what the host would tell them, in its order, and of guesses."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.indices.vector_store.retrievers import VectorIndexRetriever
from llama_index.core.instrumentation.events.embedding import EmbeddingEndEvent
from llama_index.core.instrumentation.events.retrieval import RetrievalEndEvent
from llama_index.core.instrumentation.events.synthesis import SynthesizeEndEvent
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import ResponseMode
from llama_index.core.schema import IndexNode
from llama_index_instrumentation.dispatcher import instrument_tags
from llama_index_ralmspec import (
    GuessEvent,
    RollbackEvent,
    SpeculativeQueryEngine,
    VerificationEvent,
)

from ralmspec_plugins import FixedStride, QueryCache
from tests.llama_index.engine_parts import (
    QUESTIONS,
    AsyncWordLLM,
    WordEmbedding,
    WordLLM,
    an_index,
    hearing,
    legacy,
    nodes,
    seen,
    seen_nodes,
)
from tests.llama_index.rag_parts import HashLLM, agoldens, goldens
from tests.llama_index.rag_parts import pair as pair_of

# As HOSTS B.4 has it, with what stands in between.
GOLDEN = [
    "QueryStartEvent",
    "RetrievalStartEvent",
    "EmbeddingStartEvent",
    "EmbeddingEndEvent",
    "RetrievalEndEvent",
    "SynthesizeStartEvent",
    "GetResponseStartEvent",
    "LLMPredictStartEvent",
    "LLMCompletionStartEvent",
    "LLMCompletionEndEvent",
    "LLMPredictEndEvent",
    "GetResponseEndEvent",
    "SynthesizeEndEvent",
    "QueryEndEvent",
]


def host_and_ours(llm: Any, **arguments: Any) -> tuple[Any, SpeculativeQueryEngine]:
    retriever = an_index().as_retriever(similarity_top_k=3)
    host = RetrieverQueryEngine.from_args(retriever, llm=llm, **arguments)
    # Nothing but what searches gave is guessed with: some guesses are wrong.
    return host, SpeculativeQueryEngine.wrap(host, schedule=FixedStride(stride=2), prefetch=3)


@pytest.fixture
def pair() -> Iterator[Any]:
    host, ours = host_and_ours(WordLLM())
    with ours:
        yield host, ours


def test_the_order_is_the_golden_one(pair: Any) -> None:
    """One query tells exactly what the host's engine tells, in this order."""
    _, ours = pair
    with hearing() as heard:
        ours.query(QUESTIONS[0])

    assert [type(event).__name__ for event in heard.events] == GOLDEN


@pytest.mark.parametrize(
    "mode", [ResponseMode.COMPACT, ResponseMode.REFINE, ResponseMode.TREE_SUMMARIZE]
)
def test_events_and_spans_are_the_hosts(mode: ResponseMode) -> None:
    """Also where guesses were wrong: names, order, and the span that each stands in."""
    host, ours = host_and_ours(WordLLM(), response_mode=mode)
    with ours:
        for question in QUESTIONS:
            with hearing() as expected:
                host.query(question)
            with hearing() as heard:
                ours.query(question)

            assert expected.golden == heard.golden


async def test_events_and_spans_are_the_hosts_on_an_event_loop() -> None:
    """The same by `aquery`, whose spans have the asynchronous names."""
    host, ours = host_and_ours(AsyncWordLLM())
    with ours:
        for question in QUESTIONS:
            with hearing() as expected:
                await host.aquery(question)
            with hearing() as heard:
                await ours.aquery(question)

            assert expected.golden == heard.golden


def test_a_stream_is_told_as_the_host_does() -> None:
    """What streams is told while it is read, behind the end of the query."""
    host, ours = host_and_ours(WordLLM(), streaming=True)
    with ours:
        for question in QUESTIONS[:3]:
            with hearing() as expected:
                list(host.query(question).response_gen)
            with hearing() as heard:
                list(ours.query(question).response_gen)

            assert sorted(expected.golden) == sorted(heard.golden)
            last = expected.golden.index(("event", "QueryEndEvent", "RetrieverQueryEngine.query"))
            assert expected.golden[:last] == heard.golden[:last]


def test_older_handlers_hear_the_same() -> None:
    """A legacy callback manager is told the same starts and ends, in the same nesting."""
    manager, handler = legacy()
    host, ours = host_and_ours(WordLLM(), callback_manager=manager)
    host._response_synthesizer.callback_manager = manager  # and its model's
    host.retriever.callback_manager = manager
    host.retriever._embed_model.callback_manager = manager
    with ours:
        for question in QUESTIONS:
            host.query(question)
            expected, handler.heard = handler.heard, []
            ours.query(question)
            heard, handler.heard = handler.heard, []

            assert "llm" in {what for _, what, *_ in expected}
            assert expected == heard


def test_scores_and_nodes_in_events_are_the_searches() -> None:
    """No score of a guess is ever told: neither of the retrieval nor of the synthesis."""
    host, ours = host_and_ours(WordLLM())
    with ours:
        for question in QUESTIONS:
            expected = seen_nodes(host.retriever.retrieve(question))
            with hearing() as heard:
                ours.query(question)
            [retrieval] = [one for one in heard.events if isinstance(one, RetrievalEndEvent)]
            [synthesis] = [one for one in heard.events if isinstance(one, SynthesizeEndEvent)]

            assert expected == seen_nodes(retrieval.nodes)
            assert expected == seen_nodes(synthesis.response.source_nodes)


def test_guesses_verifications_and_rollbacks_are_told() -> None:
    """Our own events say what was guessed, whether it was right, and what was dropped."""
    retriever = an_index(WordEmbedding()).as_retriever(similarity_top_k=3)
    ours = SpeculativeQueryEngine.from_args(
        retriever, llm=WordLLM(), schedule=FixedStride(stride=2)
    )
    with ours, hearing() as heard:
        for question in QUESTIONS:
            ours.query(question)
    guesses = [one for one in heard.own if isinstance(one, GuessEvent)]
    judged = [one for one in heard.own if isinstance(one, VerificationEvent)]
    dropped = [one for one in heard.own if isinstance(one, RollbackEvent)]

    assert guesses
    assert {one.query_str for one in guesses} <= set(QUESTIONS)
    assert sum(not one.right for one in judged) == len(dropped)


def test_a_dropped_call_is_not_heard_of() -> None:
    """As many model calls are told as the host makes, although more were made."""
    llm = WordLLM()
    host, ours = host_and_ours(llm)
    with ours:
        for question in QUESTIONS:
            with hearing() as expected:
                host.query(question)
            with hearing() as heard:
                ours.query(question)
            count = len([1 for one in expected.events if isinstance(one, EmbeddingEndEvent)])

            assert len(expected.events) == len(heard.events)
            assert count == len([1 for one in heard.events if isinstance(one, EmbeddingEndEvent)])
    assert len(llm.prompts) > 2 * len(QUESTIONS)


def test_what_others_tell_meanwhile_is_told_at_once(pair: Any) -> None:
    """A recording holds back what its own call tells, and nothing of other threads."""
    host, ours = pair

    async def both() -> None:
        await asyncio.gather(
            asyncio.to_thread(ours.query, QUESTIONS[0]),
            asyncio.to_thread(host.query, QUESTIONS[1]),
        )

    with hearing() as heard:
        asyncio.run(both())
    names = [type(event).__name__ for event in heard.events]

    assert sorted(GOLDEN * 2) == sorted(names)


def test_a_memo_tells_nobody_elses_tags() -> None:
    """What is remembered of a black box is told under the tags of whoever asks now."""

    class Own(VectorIndexRetriever):
        """No class that is looked into."""

    index = an_index()
    host = RetrieverQueryEngine.from_args(Own(index, similarity_top_k=3), llm=WordLLM())
    tags: list[dict[str, Any]] = []
    with SpeculativeQueryEngine.wrap(host, memo=QueryCache()) as ours:
        for user in ({"user": "ada", "only_ada": 1}, {"user": "bob"}):
            with hearing() as heard, instrument_tags(user):
                ours.query(QUESTIONS[0])
            tags.append({key: value for one in heard.events for key, value in one.tags.items()})

    assert [{"user": "ada", "only_ada": 1}, {"user": "bob"}] == tags


def leading_on() -> Any:
    """Make a retriever of whose nodes one stands for what another retriever finds."""
    embedding = WordEmbedding(asked=[])
    inner = VectorStoreIndex(nodes()[:8], embed_model=embedding).as_retriever(similarity_top_k=2)
    lead = IndexNode(text="the red fox", index_id="foxes", id_="lead")
    index = VectorStoreIndex([lead, *nodes()[8:]], embed_model=embedding)
    return VectorIndexRetriever(index, similarity_top_k=3, object_map={"foxes": inner})


@pytest.mark.parametrize("workload", ["one_shot", "sentences"])
async def test_a_search_that_leads_on_is_told_once_and_whole(
    workload: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its query is embedded for a batch, and again by the host: one retrieval is told, the host's.

    It has more nodes than `similarity_top_k`, and the response has them all.
    """
    hand, ours = pair_of(HashLLM(), leading_on(), workload)
    sizes = set()
    with ours:
        for question in QUESTIONS * 2:
            expected, told = goldens(hand.query, question)
            got, heard = goldens(ours.query, question)
            sizes.add(len(expected.source_nodes))
            assert seen(expected) == seen(got)
            assert told == heard
        for question in QUESTIONS:
            expected, told = await agoldens(hand.aquery, question)
            got, heard = await agoldens(ours.aquery, question)
            assert seen(expected) == seen(got)
            assert told == heard

    assert max(sizes) > 3
    assert caplog.messages == []  # it was known beforehand that it is not to be searched wider
