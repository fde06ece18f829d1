"""The query engine's responses are the host's: text, nodes, scores, order, metadata."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.bridge.pydantic import BaseModel
from llama_index.core.indices.postprocessor import SimilarityPostprocessor
from llama_index.core.postprocessor import LongContextReorder, MetadataReplacementPostProcessor
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import ResponseMode
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index_ralmspec import SpeculativeQueryEngine, stats_of

from ralmspec_plugins import FixedStride, QueryCache
from ralmspec_plugins.speculators.passage_cache import SharedPassageCache
from tests.llama_index.engine_parts import (
    QUESTIONS,
    AsyncWordLLM,
    WordEmbedding,
    WordLLM,
    an_index,
    default_llm,
    seen,
    seen_nodes,
)

MODES = [
    ResponseMode.COMPACT,
    ResponseMode.REFINE,
    ResponseMode.SIMPLE_SUMMARIZE,
    ResponseMode.TREE_SUMMARIZE,
    ResponseMode.ACCUMULATE,
    ResponseMode.COMPACT_ACCUMULATE,
    ResponseMode.NO_TEXT,
    ResponseMode.CONTEXT_ONLY,
    ResponseMode.GENERATION,
]
STREAMING = MODES[:4]


class ScoresIntoTexts(BaseNodePostprocessor):
    """Writes each node's score into its text, where the model sees every digit of it."""

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        for one in nodes:
            one.node.set_content(f"{one.score!r} {one.node.get_content()}")
        return nodes


PROCESSORS: dict[str, list[BaseNodePostprocessor]] = {
    "none": [],
    "cut off": [SimilarityPostprocessor(similarity_cutoff=0.45)],
    "nothing left": [SimilarityPostprocessor(similarity_cutoff=0.999)],
    "reordered": [
        LongContextReorder(),
        MetadataReplacementPostProcessor(target_metadata_key="kind"),
    ],
    "scores shown": [ScoresIntoTexts()],
}


@pytest.fixture(autouse=True)
def _default_llm() -> Iterator[None]:
    """Some synthesizers take `Settings.llm`, whatever they are given."""
    with default_llm():
        yield


@pytest.fixture
def index() -> Any:
    return an_index()


def hosts(index: Any, llm: WordLLM, **arguments: Any) -> RetrieverQueryEngine:
    retriever = index.as_retriever(similarity_top_k=3)
    return RetrieverQueryEngine.from_args(retriever, llm=llm, **arguments)


@pytest.fixture
def engines() -> Iterator[list[SpeculativeQueryEngine]]:
    """Engines that are closed at the end of a test."""
    made: list[SpeculativeQueryEngine] = []
    yield made
    for engine in made:
        engine.close()


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
@pytest.mark.parametrize("schedule", [None, FixedStride(stride=2)], ids=["default", "fixed"])
def test_each_response_mode_is_the_hosts(
    index: Any, engines: list[SpeculativeQueryEngine], mode: ResponseMode, schedule: Any
) -> None:
    """The host's own synthesizer writes: sync, with whatever was guessed from earlier queries."""
    llm = WordLLM(window=700)
    host = hosts(index, llm, response_mode=mode)
    ours = SpeculativeQueryEngine.wrap(host, schedule=schedule, pool=SharedPassageCache())
    engines.append(ours)
    empty = mode is ResponseMode.NO_TEXT
    for question in QUESTIONS:
        expected = seen(host.query(question), empty=empty)

        assert expected[2]
        assert expected == seen(ours.query(question), empty=empty)

        assert expected[2]


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
@pytest.mark.parametrize("kind", [WordLLM, AsyncWordLLM])
async def test_each_response_mode_is_the_hosts_on_an_event_loop(
    index: Any, engines: list[SpeculativeQueryEngine], mode: ResponseMode, kind: type[WordLLM]
) -> None:
    """`aquery` gives what the host's gives, over models with and without async of their own."""
    host = hosts(index, kind(), response_mode=mode)
    ours = SpeculativeQueryEngine.wrap(host, schedule=FixedStride(stride=2))
    engines.append(ours)
    empty = mode is ResponseMode.NO_TEXT
    for question in QUESTIONS[:3]:
        expected = seen(await host.aquery(question), empty=empty)

        assert expected[2]
        assert expected == seen(await ours.aquery(question), empty=empty)

        assert expected[2]


@pytest.mark.parametrize("name", PROCESSORS)
def test_postprocessors_see_the_hosts_scores(
    index: Any, engines: list[SpeculativeQueryEngine], name: str
) -> None:
    """What is cut off, reordered or shown of the scores is as with the host, to the last digit."""
    host = hosts(index, WordLLM(), node_postprocessors=PROCESSORS[name])
    ours = SpeculativeQueryEngine.wrap(host, schedule=FixedStride(stride=2))
    remembering = SpeculativeQueryEngine.wrap(host, memo=QueryCache())
    engines += [ours, remembering]
    empty = name == "nothing left"
    for question in [*QUESTIONS, *QUESTIONS[:2]]:
        expected = seen(host.query(question), empty=empty)

        assert expected == seen(ours.query(question), empty=empty)
        assert expected == seen(remembering.query(question), empty=empty)


@pytest.mark.parametrize("mode", STREAMING, ids=lambda mode: mode.value)
def test_a_stream_adds_up_to_the_hosts(
    index: Any, engines: list[SpeculativeQueryEngine], mode: ResponseMode
) -> None:
    """Streamed pieces concatenate to the host's text; nodes are there before the first piece."""
    host = hosts(index, WordLLM(), response_mode=mode, streaming=True)
    ours = SpeculativeQueryEngine.wrap(host, schedule=FixedStride(stride=2))
    engines.append(ours)
    for question in QUESTIONS[:3]:
        theirs, own = host.query(question), ours.query(question)

        assert seen_nodes(theirs.source_nodes) == seen_nodes(own.source_nodes)
        assert "".join(theirs.response_gen) == "".join(own.response_gen)
        assert theirs.metadata == own.metadata
        assert stats_of(own).segments == 1


async def test_an_asynchronous_stream_adds_up_to_the_hosts(
    index: Any, engines: list[SpeculativeQueryEngine]
) -> None:
    """The same by `aquery` and `async_response_gen`."""
    host = hosts(index, AsyncWordLLM(), streaming=True)
    ours = SpeculativeQueryEngine.wrap(host, schedule=FixedStride(stride=2))
    engines.append(ours)
    for question in QUESTIONS[:3]:
        theirs, own = await host.aquery(question), await ours.aquery(question)

        assert seen_nodes(theirs.source_nodes) == seen_nodes(own.source_nodes)
        expected = [piece async for piece in theirs.async_response_gen()]
        assert "".join(expected) == "".join([piece async for piece in own.async_response_gen()])


class Said(BaseModel):
    """What a model is asked to fill in."""

    words: str


class JsonLLM(WordLLM):
    """Writes what can be read as that."""

    def text_for(self, prompt: str) -> str:
        return json.dumps({"words": super().text_for(prompt)})


@pytest.mark.parametrize("mode", ["compact", "refine", "tree_summarize"])
async def test_a_structured_answer_is_the_hosts(mode: str) -> None:
    """`output_cls` gives a `PydanticResponse`, with nodes and report beside it."""
    retriever = an_index().as_retriever(similarity_top_k=2)
    host = RetrieverQueryEngine.from_args(
        retriever, llm=JsonLLM(), response_mode=ResponseMode(mode), output_cls=Said
    )
    with SpeculativeQueryEngine.wrap(host) as ours:
        for question in QUESTIONS[:3]:
            expected = host.query(question)
            for response in (ours.query(question), await ours.aquery(question)):
                assert seen(expected) == seen(response)
                assert expected.response == response.response
                assert stats_of(response).segments == 1


def test_nothing_found_is_the_hosts_empty_response(engines: list[SpeculativeQueryEngine]) -> None:
    """Over an empty store: the same words, and no nodes."""
    index = an_index()
    index.delete_nodes([f"n{at}" for at in range(24)])
    for streaming in (False, True):
        host = hosts(index, WordLLM(), streaming=streaming)
        ours = SpeculativeQueryEngine.wrap(host)
        engines.append(ours)

        expected = seen(host.query(QUESTIONS[0]), empty=True)
        assert expected == seen(ours.query(QUESTIONS[0]), empty=True)
        assert expected[1:3] == ("Empty Response", [])


def test_a_bundle_with_embedding_strings_is_searched_by_them(
    index: Any, engines: list[SpeculativeQueryEngine]
) -> None:
    """What a query transform made (HyDE's documents, an embedding) decides what is found."""
    host = hosts(index, WordLLM())
    ours = SpeculativeQueryEngine.wrap(host)
    engines.append(ours)
    vector = WordEmbedding().get_text_embedding("seven small lamps")
    for made in (
        {"custom_embedding_strs": ["seven small lamps", "quiet blue hill"]},
        {"embedding": vector},
        {},
    ):
        expected = seen(host.query(QueryBundle("Where is the fox?", **made)))

        assert expected == seen(ours.query(QueryBundle("Where is the fox?", **made)))


def test_a_prompt_that_is_updated_counts_from_then_on(
    index: Any, engines: list[SpeculativeQueryEngine]
) -> None:
    """`get_prompts` and `update_prompts` work as on the host's engine."""
    from llama_index.core import PromptTemplate

    host = hosts(index, WordLLM())
    ours = SpeculativeQueryEngine.from_args(host.retriever, llm=WordLLM())
    engines.append(ours)
    changed = PromptTemplate("Only {context_str}? {query_str}!")
    assert host.get_prompts().keys() == ours.get_prompts().keys()
    before = str(ours.query(QUESTIONS[0]))
    for engine in (host, ours):
        engine.update_prompts({"response_synthesizer:text_qa_template": changed})

    assert before != str(ours.query(QUESTIONS[0]))
    assert str(host.query(QUESTIONS[0])) == str(ours.query(QUESTIONS[0]))


def test_the_plain_loop_and_the_report(index: Any, engines: list[SpeculativeQueryEngine]) -> None:
    """`speculate=False` gives the same; the report can be left out."""
    ours = SpeculativeQueryEngine.from_index(index, llm=WordLLM(), similarity_top_k=3, report=True)
    plain = ours.with_options(speculate=False, report=False)
    engines += [ours, plain]
    first, second = ours.query(QUESTIONS[1]), plain.query(QUESTIONS[1])

    assert seen(first) == seen(second)
    assert [QUESTIONS[1]] == first.metadata["ralmspec"]["queries"]
    assert "ralmspec" not in second.metadata


class ByTenant(BaseRetriever):
    """Finds what belongs to the tenant that the caller has put on his query."""

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        tenant = query_bundle.tenant  # type: ignore[attr-defined]
        return [NodeWithScore(node=TextNode(text=f"secret of {tenant}", id_=tenant), score=1.0)]


def test_what_a_caller_puts_on_a_query_reaches_the_retriever_and_keeps_calls_apart(
    engines: list[SpeculativeQueryEngine],
) -> None:
    """Also with a memo: nobody gets what another one's query has found."""
    host = RetrieverQueryEngine.from_args(ByTenant(), llm=WordLLM())
    ours = SpeculativeQueryEngine.wrap(host, memo=QueryCache())
    engines.append(ours)
    for tenant in ("ada", "bob", "ada"):
        theirs, own = QueryBundle("What is it?"), QueryBundle("What is it?")
        theirs.tenant = own.tenant = tenant  # type: ignore[attr-defined]

        assert seen(host.query(theirs)) == seen(ours.query(own))
