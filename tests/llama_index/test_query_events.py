"""Handlers hear each call that was made when it is made, and of ours which of them count."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.indices.vector_store.retrievers import VectorIndexRetriever
from llama_index.core.instrumentation.events.llm import LLMCompletionEndEvent
from llama_index.core.instrumentation.span import active_span_id
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import ResponseMode
from llama_index.core.schema import IndexNode
from llama_index_instrumentation.dispatcher import instrument_tags
from llama_index_ralmspec import (
    SPECULATIVE,
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


def test_a_query_where_nothing_is_guessed_is_the_hosts_to_the_order() -> None:
    """Without anything to guess with, the host's own parts run as in the host's engine."""
    host, _ = host_and_ours(WordLLM())
    order = []
    for engine in (host, SpeculativeQueryEngine.wrap(host, pool=None)):
        with hearing() as heard:
            engine.query(QUESTIONS[0])
        order.append(
            [what[1].class_name() if what[0] == "event" else what[0] for what in heard.all]
        )

    assert len(order[0]) > 20
    assert order[0] == order[1]


@pytest.mark.parametrize(
    "mode", [ResponseMode.COMPACT, ResponseMode.REFINE, ResponseMode.TREE_SUMMARIZE]
)
def test_events_and_spans_are_the_hosts(mode: ResponseMode) -> None:
    """Also where guesses were wrong: names and number, and the span that each stands in."""
    host, ours = host_and_ours(WordLLM(), response_mode=mode)
    with ours:
        for question in QUESTIONS:
            with hearing() as expected:
                host.query(question)
            with hearing() as heard:
                ours.query(question)

            assert len(expected.golden) > 10
            assert expected.golden == heard.golden
            assert expected.retrievals == heard.retrievals


async def test_events_and_spans_are_the_hosts_on_an_event_loop() -> None:
    """The same by `aquery`, whose spans have the asynchronous names."""
    host, ours = host_and_ours(AsyncWordLLM())
    with ours:
        for question in QUESTIONS:
            with hearing() as expected:
                await host.aquery(question)
            with hearing() as heard:
                await ours.aquery(question)

            assert len(expected.golden) > 10
            assert expected.golden == heard.golden
            assert expected.retrievals == heard.retrievals


def test_a_stream_is_told_as_the_host_does() -> None:
    """As much is told of the calls that count as the host tells."""
    host, ours = host_and_ours(WordLLM(), streaming=True)
    with ours:
        for question in QUESTIONS[:3]:
            with hearing() as expected:
                list(host.query(question).response_gen)
            with hearing() as heard:
                list(ours.query(question).response_gen)

            assert len(expected.golden) > 10
            assert expected.golden == heard.golden


def test_older_handlers_hear_of_each_call_once() -> None:
    """A legacy callback manager is told a start and an end for each call that is paid for."""
    manager, handler = legacy()
    llm = WordLLM()
    host, ours = host_and_ours(llm, callback_manager=manager)
    host._response_synthesizer.callback_manager = manager  # and its model's
    host.retriever.callback_manager = manager
    host.retriever._embed_model.callback_manager = manager
    with ours:
        for question in QUESTIONS:
            llm.prompts.clear()
            handler.heard = []
            ours.query(question)
            starts = [one[1] for one in handler.heard if one[0] == "start"]
            ends = [one[1] for one in handler.heard if one[0] == "end"]

            assert starts.count("llm") == len(llm.prompts) >= 1
            assert [1, 1] == [starts.count("query"), starts.count("embedding")]
            assert sorted(starts) == sorted(ends)


def test_scores_and_nodes_in_events_are_the_searches() -> None:
    """No score of a guess is told: neither of the retrieval nor of the response."""
    host, ours = host_and_ours(WordLLM())
    with ours:
        for question in QUESTIONS:
            expected = host.retriever.retrieve(question)
            with hearing() as heard:
                response = ours.query(question)

            ids, scores = [one.node_id for one in expected], [one.score for one in expected]
            assert len(ids) == 3
            assert [(ids, scores)] == heard.retrievals
            assert seen_nodes(expected) == seen_nodes(response.source_nodes)


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


def test_a_dropped_call_is_heard_of_under_a_tag_and_never_committed() -> None:
    """Each real call of the model is told once; those that count are as many as the host's."""
    llm = WordLLM()
    host, ours = host_and_ours(llm)
    dropped = 0
    with ours:
        for question in QUESTIONS:
            llm.prompts.clear()
            with hearing() as heard:
                ours.query(question)
            real, count = len(llm.prompts), calls_of(heard.events)
            with hearing() as expected:
                host.query(question)

            assert calls_of(expected.events) == count == 1
            assert real == count + calls_of(heard.dropped)
            assert all(one.tags.get(SPECULATIVE) for one in heard.dropped)
            dropped += calls_of(heard.dropped)
            named = [
                id_ for one in heard.own if isinstance(one, RollbackEvent) for id_ in one.span_ids
            ]
            assert len(set(named)) == calls_of(heard.dropped)
    assert dropped


def calls_of(events: list[Any]) -> int:
    return len([1 for one in events if isinstance(one, LLMCompletionEndEvent)])


def test_tags_of_the_caller_stay_beside_ours() -> None:
    """Calls made ahead have the caller's tags too, and those that are not have only these."""
    _, ours = host_and_ours(WordLLM())
    tags = []
    with ours, instrument_tags({"user": "ada"}):
        for question in QUESTIONS:
            with hearing() as heard:
                ours.query(question)
            tags += [one.tags for one in (*heard.events, *heard.dropped)]

    assert {"ada"} == {one.get("user") for one in tags}
    assert {True, None} == {one.get(SPECULATIVE) for one in tags}


def test_spans_are_current_while_their_work_runs() -> None:
    """What a retriever or a model sees as the active span is its own, made ahead or not."""
    active = []

    class Watching(WordLLM):
        def _called(self, prompt: str) -> str:
            active.append(active_span_id.get())
            return super()._called(prompt)

    _, ours = host_and_ours(Watching())
    with ours, hearing() as heard:
        for question in QUESTIONS:
            ours.query(question)

    assert len(active) > len(QUESTIONS)
    assert {"Watching.complete"} == {span.rsplit("-", 5)[0] for span in active}
    assert set(active) <= heard.parents.keys()


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
    """Its query is embedded for a batch, and again by the host, and both are told as they happen.

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
            assert told
            assert not Counter(told) - Counter(heard)
        for question in QUESTIONS:
            expected, told = await agoldens(hand.aquery, question)
            got, heard = await agoldens(ours.aquery, question)
            assert seen(expected) == seen(got)
            assert not Counter(told) - Counter(heard)

    assert max(sizes) > 3
    assert caplog.messages == []  # it was known beforehand that it is not to be searched wider
