"""Postprocessors and synthesizers run when and on what they do at the host, and see its query."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.response.schema import Response
from llama_index.core.postprocessor import (
    LongContextReorder,
    SentenceEmbeddingOptimizer,
    SimilarityPostprocessor,
)
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import CompactAndRefine
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index_ralmspec import SpeculativeQueryEngine, stats_of
from pydantic import ValidationError

from ralmspec_plugins import FixedStride, QueryCache
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.speculators.passage_cache import SharedPassageCache
from tests.llama_index.engine_parts import (
    QUESTIONS,
    AsyncWordLLM,
    WordEmbedding,
    WordLLM,
    an_index,
    hearing,
    nodes,
    seen,
)
from tests.llama_index.rag_parts import HashRetriever

AHEAD = {
    "schedule": FixedStride(stride=1, overlap=True)
}  # a guess is written on where there is one


class Seeing(BaseNodePostprocessor):
    """Keeps what it was given, in order."""

    given: list[Any] = []  # noqa: RUF012 a pydantic field

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        assert query_bundle is not None
        self.given.append(
            (
                [(one.node_id, one.score) for one in nodes],
                query_bundle.query_str,
                dict(vars(query_bundle)),
            )
        )
        return nodes


class Once(BaseNodePostprocessor):
    """Passes on a node the first time alone, over all queries: what came before decides."""

    passed: set[str] = set()  # noqa: RUF012 a pydantic field

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        new = [one for one in nodes if one.node_id not in self.passed]
        self.passed.update(one.node_id for one in new)
        return new


class Counting(CompactAndRefine):
    """Counts its answers, and says which one this is."""

    def synthesize(self, query: Any, nodes: Any, *args: Any, **kwargs: Any) -> Any:
        self.count = getattr(self, "count", 0) + 1
        response = super().synthesize(query, nodes, *args, **kwargs)
        return Response(f"{self.count}: {response}", response.source_nodes, response.metadata)


@dataclass
class Numbered(Response):
    """A response with something more."""

    number: int = 0


class Gives(CompactAndRefine):
    """Gives what it is told to, whatever that is."""

    gives: Any

    def synthesize(self, query: Any, nodes: Any, *args: Any, **kwargs: Any) -> Any:
        return self.gives


class Boxed(BaseRetriever):
    """Hides a retriever: nothing is known of this one."""

    def __init__(self, inner: BaseRetriever) -> None:
        super().__init__()
        self.inner = inner

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return self.inner.retrieve(query_bundle)


class Marks(BaseRetriever):
    """Puts on the query what it found out about it."""

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        query_bundle.intent = f"to know {query_bundle.query_str}"  # type: ignore[attr-defined]
        return []


class Rewrites(BaseRetriever):
    """Puts another question into the query."""

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        query_bundle.query_str = f"{query_bundle.query_str} Please."
        return [NodeWithScore(node=TextNode(text="It is red.", id_="red"), score=1.0)]


@pytest.fixture
def index() -> VectorStoreIndex:
    return an_index()


def pair(
    retriever: BaseRetriever, *processors: BaseNodePostprocessor, **options: Any
) -> tuple[RetrieverQueryEngine, SpeculativeQueryEngine]:
    """The host's engine, and ours over the same parts."""
    host = RetrieverQueryEngine.from_args(
        retriever, llm=WordLLM(), node_postprocessors=list(processors)
    )
    return host, SpeculativeQueryEngine.wrap(
        host, **{"pool": SharedPassageCache(), **AHEAD, **options}
    )


def answers(
    engine: Any, questions: Any = QUESTIONS, *, empty: bool = False
) -> list[tuple[Any, ...]]:
    return [seen(engine.query(question), empty=empty) for question in questions]


@pytest.fixture(params=["looked into", "black box"])
def retriever(request: Any, index: VectorStoreIndex) -> BaseRetriever:
    inner = index.as_retriever(similarity_top_k=3)
    return inner if request.param == "looked into" else Boxed(inner)


def test_a_postprocessor_sees_the_hosts_calls_and_no_other(retriever: BaseRetriever) -> None:
    """Nodes, scores, questions, their order and number, with a pool that would have guesses."""
    seeing = Seeing(given=[])
    host, ours = pair(retriever, seeing)
    answers(host)
    expected = list(seeing.given)
    seeing.given.clear()
    with ours:
        answers(ours)

    assert expected == seeing.given


@pytest.mark.parametrize("workload", ["sentences", "interval"])
def test_it_does_step_by_step_too(retriever: BaseRetriever, workload: Any) -> None:
    """As in the plain loop, which is the loop by hand."""
    seeing = Seeing(given=[])
    options = {"workload": workload, "bound": "max_tokens", "max_tokens": 32}
    _, ours = pair(retriever, seeing, **options)
    with ours, ours.with_options(speculate=False) as plain:
        before = answers(plain, QUESTIONS[:2])
        expected = list(seeing.given)
        seeing.given.clear()

        assert before == answers(ours, QUESTIONS[:2])
        assert expected == seeing.given


def test_a_postprocessor_with_a_memory_answers_as_at_the_host(retriever: BaseRetriever) -> None:
    """What it has passed on for a guess would be missing from the answer."""
    expected = answers(pair(retriever, Once(passed=set()))[0], empty=True)
    assert sum(bool(one[2]) for one in expected) > 2
    with pair(retriever, Once(passed=set()))[1] as ours:
        assert expected == answers(ours, empty=True)


def test_a_synthesizer_of_ones_own_is_called_as_often_as_at_the_host(
    retriever: BaseRetriever,
) -> None:
    """It need not be pure: here its answers are numbered."""
    host = RetrieverQueryEngine(retriever, Counting(llm=WordLLM()))
    expected = answers(host)
    own = RetrieverQueryEngine(retriever, Counting(llm=WordLLM()))
    with SpeculativeQueryEngine.wrap(own, **AHEAD) as ours:
        assert expected == answers(ours)


@pytest.mark.parametrize("given", ["a text", None, 3])
def test_what_is_no_response_is_the_hosts_affair(index: VectorStoreIndex, given: Any) -> None:
    """The host refuses it where it tells of it, and so do we: with its own error."""
    synthesizer = Gives(llm=WordLLM())
    synthesizer.gives = given
    host = RetrieverQueryEngine(index.as_retriever(), synthesizer)
    with pytest.raises(ValidationError) as expected:
        host.query(QUESTIONS[0])
    with SpeculativeQueryEngine.wrap(host) as ours, pytest.raises(ValidationError) as raised:
        ours.query(QUESTIONS[0])

    assert str(expected.value) == str(raised.value)


def test_a_response_keeps_its_class_and_its_synthesizer_its_metadata(
    index: VectorStoreIndex,
) -> None:
    """The report goes into a copy: here the synthesizer gives the same one each time."""
    synthesizer = Gives(llm=WordLLM())
    synthesizer.gives = Numbered("It is red.", [], {"page": 3}, number=7)
    host = RetrieverQueryEngine(index.as_retriever(), synthesizer)
    with SpeculativeQueryEngine.wrap(host, report=True) as ours:
        response: Any = ours.query(QUESTIONS[0])

    assert (Numbered, 7) == (type(response), response.number)
    assert {"page", "ralmspec"} == set(response.metadata)
    assert {"page": 3} == synthesizer.gives.metadata


def test_a_method_that_was_replaced_is_not_known(index: VectorStoreIndex) -> None:
    """Of a class that is known by name, and of one object that was changed afterwards."""
    processor = SimilarityPostprocessor(similarity_cutoff=0.1)
    _, ours = pair(index.as_retriever(), processor)
    with ours:
        answers(ours)
        known = stats_of(ours.query(QUESTIONS[0])).guesses
        processor.__dict__["_postprocess_nodes"] = lambda nodes, _: nodes[:1]
        changed = stats_of(ours.query(QUESTIONS[1])).guesses

    assert (1, 0) == (known, changed)


def test_users_may_say_that_theirs_are_pure(index: VectorStoreIndex) -> None:
    """Then it is run on guesses, too, and the answers are the host's all the same."""
    seeing = Seeing(given=[])
    host, ours = pair(index.as_retriever(similarity_top_k=2), seeing, guess_through=True)
    expected = answers(host, QUESTIONS * 2)
    usual = len(seeing.given)
    seeing.given.clear()
    with ours:
        assert expected == answers(ours, QUESTIONS * 2)

    assert usual < len(seeing.given)


def test_users_may_have_all_of_them_wait(index: VectorStoreIndex) -> None:
    """With parts that are known, and no postprocessor at all: no guess is made."""
    _, ours = pair(index.as_retriever(), LongContextReorder(), guess_through=False)
    with ours:
        made = [stats_of(ours.query(question)).guesses for question in QUESTIONS * 2]

    assert [0] * 10 == made


def test_the_memo_answers_nevertheless(index: VectorStoreIndex) -> None:
    """It is trusted: the second time nothing is searched, and the postprocessor runs once."""
    seeing = Seeing(given=[])
    host, ours = pair(index.as_retriever(similarity_top_k=3), seeing, memo=QueryCache())
    expected = [*answers(host), *answers(host)]
    usual = len(seeing.given)
    seeing.given.clear()
    with ours:
        found = answers(ours)
        before = ours.stats.queries

        assert expected == [*found, *answers(ours)]
        assert before == ours.stats.queries
    assert usual == len(seeing.given)


def test_who_guesses_nothing_is_told_why(
    index: VectorStoreIndex, caplog: pytest.LogCaptureFixture
) -> None:
    """The log names the classes, and what to say; nothing is logged of parts that are known."""
    with caplog.at_level(logging.WARNING):
        pair(index.as_retriever(), LongContextReorder())
        pair(index.as_retriever(), Seeing(given=[]), guess_through=False)

        assert [] == caplog.messages

        pair(index.as_retriever(), Seeing(given=[]), LongContextReorder())

    [message] = caplog.messages
    assert "Seeing" in message
    assert "guess_through=True" in message
    assert "LongContextReorder" not in message


# The query


def test_what_a_search_puts_on_the_query_is_seen_behind_it(retriever: BaseRetriever) -> None:
    """Postprocessors see the embedding, and so does who gave the query."""
    for memo in (None, QueryCache()):
        seeing = Seeing(given=[])
        host, ours = pair(retriever, seeing, memo=memo)
        theirs, own = QueryBundle(QUESTIONS[0]), QueryBundle(QUESTIONS[0])
        with ours:
            host.query(theirs)
            ours.query(own)

        assert isinstance(own.embedding, list)
        assert vars(theirs) == vars(own)
        assert seeing.given[0] == seeing.given[1]


def test_parts_that_are_known_do_not_keep_it_from_the_caller(retriever: BaseRetriever) -> None:
    """With guesses, and without: the caller's query has the embedding."""
    host, ours = pair(retriever)
    with ours:
        answers(ours)
        for question in QUESTIONS:
            theirs, own = QueryBundle(question), QueryBundle(question)

            assert seen(host.query(theirs)) == seen(ours.query(own))
            assert vars(theirs) == vars(own)


async def test_it_is_left_as_it_is_where_the_host_does(retriever: BaseRetriever) -> None:
    """The host's asynchronous search keeps the embedding to itself."""
    seeing = Seeing(given=[])
    host, ours = pair(retriever, seeing)
    theirs, own = QueryBundle(QUESTIONS[0]), QueryBundle(QUESTIONS[0])
    with ours:
        await host.aquery(theirs)
        await ours.aquery(own)

    assert vars(theirs) == vars(own)
    assert seeing.given[0] == seeing.given[1]


def test_what_a_retriever_of_ones_own_puts_there_is_seen() -> None:
    """Whatever it is, also where nothing is found."""
    seeing = Seeing(given=[])
    host, ours = pair(Marks(), seeing)
    theirs, own = QueryBundle(QUESTIONS[0]), QueryBundle(QUESTIONS[0])
    with ours:
        expected = seen(host.query(theirs), empty=True)
        assert expected == seen(ours.query(own), empty=True)
    assert "to know" in own.intent  # type: ignore[attr-defined]
    assert vars(theirs) == vars(own)
    assert seeing.given[0] == seeing.given[1]


def test_another_question_is_answered_or_refused() -> None:
    """The synthesizer gets it as at the host; where it may run before the search, it is refused."""
    host, ours = pair(Rewrites(), guess_through=False)
    with ours:
        for question in QUESTIONS[:2]:
            assert seen(host.query(question)) == seen(ours.query(question))
        with (
            ours.with_options(guess_through=None) as guessing,
            pytest.raises(ConfigError, match="guess_through=False"),
        ):
            guessing.query(QUESTIONS[0])


def test_a_replica_that_could_not_guess_is_refused(index: VectorStoreIndex) -> None:
    """The message says what excludes what."""
    with pytest.raises(ConfigError, match="guess_through=False"):
        pair(index.as_retriever(), replica=index.as_retriever(), guess_through=False)


def test_a_replica_puts_nothing_on_the_query(index: VectorStoreIndex) -> None:
    """Its embedding is another one."""
    near = WordEmbedding(dim=5, asked=[])
    replica = an_index(near).as_retriever(similarity_top_k=3)
    _, ours = pair(index.as_retriever(similarity_top_k=3), replica=replica, pool=None)
    own = QueryBundle(QUESTIONS[0])
    with ours:
        ours.query("the first one, with which nothing is known of the model")
        near.asked.clear()
        ours.query(own)

    assert [QUESTIONS[0]] == near.asked
    assert 16 == len(own.embedding or [])


class Reversed(WordEmbedding):
    """Another embedder than the index's."""

    def _vector(self, text: str) -> list[float]:
        return [-value for value in reversed(super()._vector(text))]


def test_the_hosts_optimizer_answers_as_at_the_host() -> None:
    """It takes the embedding that the search has left, and not its own embedder's."""
    texts = [f"{one} {other}" for one, other in zip(QUESTIONS, reversed(QUESTIONS), strict=True)]
    index = VectorStoreIndex([TextNode(text=text) for text in texts], embed_model=WordEmbedding())
    optimizer = SentenceEmbeddingOptimizer(
        embed_model=Reversed(asked=[]),
        percentile_cutoff=0.5,
        tokenizer_fn=lambda text: text.split("?"),
    )
    host, ours = pair(index.as_retriever(), optimizer)
    with ours:
        assert answers(host) == answers(ours)


@pytest.fixture
def told() -> Callable[[Any], list[tuple[str, Any]]]:
    """What is told of one query: each event's query, as it is when all is over."""

    def of(engine: Any) -> list[tuple[str, Any]]:
        with hearing() as heard:
            engine.query(QueryBundle(QUESTIONS[0]))
        found = []
        for event in heard.events:
            query = getattr(event, "query", getattr(event, "str_or_query_bundle", None))
            name = type(event).__name__
            if isinstance(query, QueryBundle) and not name.startswith("Retrieval"):
                found.append((name, dict(vars(query))))
        return found

    return of


@pytest.mark.parametrize("processors", [(), (Seeing(given=[]),)], ids=["known", "unknown"])
def test_events_hold_the_query_as_the_hosts_do(
    retriever: BaseRetriever, told: Any, processors: Any
) -> None:
    """With its embedding: of the query and the synthesis. The retrieval has an event of ours."""
    host, ours = pair(retriever, *processors)
    with ours:
        expected = told(host)

        assert expected == told(ours)
        assert expected == told(ours)
    assert 3 <= len(expected)


async def test_an_asynchronous_model_makes_no_difference(retriever: BaseRetriever) -> None:
    """Postprocessors see the host's calls by `aquery`, too."""
    seeing = Seeing(given=[])
    host = RetrieverQueryEngine.from_args(
        retriever, llm=AsyncWordLLM(), node_postprocessors=[seeing]
    )
    expected = [seen(await host.aquery(question)) for question in QUESTIONS]
    usual = list(seeing.given)
    seeing.given.clear()
    with SpeculativeQueryEngine.wrap(host, **AHEAD) as ours:
        assert expected == [seen(await ours.aquery(question)) for question in QUESTIONS]
    assert usual == seeing.given


class Insists(BaseNodePostprocessor):
    """Adds to the question that the synthesizer is given."""

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        assert query_bundle is not None
        query_bundle.query_str += " Really?"
        return nodes


def test_each_call_has_a_query_of_its_own(index: VectorStoreIndex) -> None:
    """What a call on a guess writes into its query is not seen by the call that counts."""
    liar = HashRetriever(nodes(), k=3)
    host, ours = pair(
        index.as_retriever(similarity_top_k=3),
        Insists(),
        replica=liar,
        pool=None,
        guess_through=True,
        schedule=FixedStride(stride=2),
    )
    with ours:
        for question in QUESTIONS:
            expected, got = host.query(question), ours.query(question)

            assert str(expected) == str(got)
            assert 1 == stats_of(got).guesses - stats_of(got).accepted


class Halved(BaseRetriever):
    """Finds what another one finds, with half of its scores."""

    def __init__(self, inner: BaseRetriever) -> None:
        super().__init__()
        self._inner = inner

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        found = self._inner.retrieve(query_bundle)
        return [NodeWithScore(node=one.node, score=(one.score or 0.0) / 2) for one in found]


def test_a_cut_off_is_made_by_the_scores_of_the_search(index: VectorStoreIndex) -> None:
    """A guess has the right nodes and scores that are too low: what it leaves is not kept."""
    inner = index.as_retriever(similarity_top_k=3)
    cut = SimilarityPostprocessor(similarity_cutoff=0.3)
    host, ours = pair(inner, cut, replica=Halved(inner), pool=None, schedule=FixedStride(stride=2))
    expected = answers(host)
    with ours:
        ours.query("the first one, with which nothing is known of the model")
        got = [ours.query(question) for question in QUESTIONS]

    assert expected == [seen(one) for one in got]
    assert [1] * 5 == [stats_of(one).guesses for one in got]
    assert any(len(host.query(one).source_nodes) for one in QUESTIONS)
