"""Any retriever of LlamaIndex' as a retriever of the core's: the same nodes, scores included."""

import asyncio
import copy
import threading
import time
from contextlib import nullcontext
from typing import Any

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.llms import MockLLM
from llama_index.core.retrievers import (
    QueryFusionRetriever,
    RouterRetriever,
    VectorIndexRetriever,
)
from llama_index.core.schema import IndexNode, NodeWithScore, QueryBundle, TextNode
from llama_index.core.selectors import LLMSingleSelector
from llama_index.core.tools import RetrieverTool
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index_ralmspec.documents import hits_of, nodes_of
from llama_index_ralmspec.host_retriever import HostRetriever
from llama_index_ralmspec.inspection import blocks_loop
from llama_index_ralmspec.stores.registry import BatchSearch, Scored, register_batch_search

from ralmspec_plugins.engine.threads import Engine
from ralmspec_plugins.errors import ConfigError, InputError
from ralmspec_plugins.testing import EchoWorkload
from ralmspec_plugins.types import Hits, Query
from tests.llama_index.conftest import BLACK_BOXES, WordSearch, black_box, indexed
from tests.llama_index.contract import below, topic
from tests.llama_index.engine_parts import made_ahead
from tests.llama_index.worlds import WordEmbedding, batches, corpus, questions

SETTINGS: list[dict[str, Any]] = [
    {"similarity_top_k": 4},
    {"similarity_top_k": 1, "filters": topic("t1")},
    {"similarity_top_k": 50, "filters": below(70)},
    {"similarity_top_k": 4, "filters": topic("none")},
    {"similarity_top_k": 3, "vector_store_query_mode": "mmr"},
]


def asked(count: int) -> list[str]:
    return [text for text in questions(count + 1) if text]


def truth(retriever: BaseRetriever, texts: list[str]) -> list[Hits]:
    """Ask one by one, as a user does."""
    return [hits_of(copy.deepcopy(retriever.retrieve(text))) for text in texts]


async def awaited(host: HostRetriever, texts: list[str]) -> list[Hits]:
    queries = [await host.aencode(text) for text in texts]
    return [hits for batch in batches_of(queries) for hits in await host.asearch(batch)]


def batches_of(queries: list[Query]) -> list[list[Query]]:
    made: Any = batches(queries)  # type: ignore[arg-type]
    return made  # type: ignore[no-any-return]


@pytest.mark.parametrize("count", [20, pytest.param(60, marks=pytest.mark.slow)])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_an_index_gives_what_the_host_gives(
    index: VectorStoreIndex, settings: dict[str, Any], count: int
) -> None:
    """Nodes and scores of mixed batches, synchronous and not, whatever the settings."""
    retriever = index.as_retriever(**settings)
    texts = asked(6 if "vector_store_query_mode" in settings else count)
    expected = truth(retriever, texts)
    host = HostRetriever(retriever)
    queries = [host.encode(text) for text in texts]
    found = [hits for batch in batches_of(queries) for hits in host.search(batch)]

    assert expected == found
    assert expected == asyncio.run(awaited(host, texts))
    assert host.looked_into == ("vector_store_query_mode" not in settings)


@pytest.mark.parametrize("name", BLACK_BOXES)
def test_a_black_box_gives_what_it_gives(name: str) -> None:
    """Nodes and scores of its own calls, synchronous and not."""
    retriever = black_box(name)
    texts = asked(12)
    expected = truth(retriever, texts)
    host = HostRetriever(retriever)

    assert expected == host.search([host.encode(text) for text in texts])
    assert expected == asyncio.run(awaited(host, texts))
    assert (host.looked_into, host.inline_encode, host.pure) == (False, True, True)


def test_each_query_is_embedded_once(index: VectorStoreIndex) -> None:
    """Once by `encode`, and never by the search."""
    host = HostRetriever(index.as_retriever())
    embedding: Any = index._embed_model
    embedding.asked.clear()
    queries = [host.encode(text) for text in ("river", "stone")]
    host.search(queries)

    assert embedding.asked == ["river", "stone"]


@pytest.mark.parametrize("ahead", [False, True])
def test_a_call_made_ahead_is_kept_with_what_it_found(ahead: bool, index: VectorStoreIndex) -> None:
    """The id of its span goes with the vector or the hits; nothing of a call that counts."""
    host, words = HostRetriever(index.as_retriever()), HostRetriever(black_box("words"))
    with made_ahead() if ahead else nullcontext():
        query = host.encode("river")
        [hits] = words.search([words.encode("river stone")])
    records = {hit.features.recording for hit in hits} | {query.encoding.recording}

    assert len(hits) > 0
    assert [ahead] * len(records) == [one is not None for one in records]
    assert all(one is None or one.span_id.startswith("SpeculativeCall.") for one in records)


def test_a_wider_search_begins_with_the_narrow_one(index: VectorStoreIndex) -> None:
    """What a pool gets besides lies behind what the host gives."""
    host = HostRetriever(index.as_retriever(similarity_top_k=4))
    queries = [host.encode(text) for text in asked(30)]
    narrow, wide = host.search(queries), host.search_wide(queries, 12)

    assert narrow == [hits[:4] for hits in wide]
    assert {len(hits) for hits in wide} == {12}


def test_a_pool_over_a_store_guesses_as_the_store_ranks(index: VectorStoreIndex) -> None:
    """A table that holds all nodes gives the store's own order."""
    host = HostRetriever(index.as_retriever(similarity_top_k=5))
    [everything] = host.search_wide([host.encode("river")], 300)
    table = host.table(300)
    for slot, hit in enumerate(everything):
        table.put(slot, hit)
    query = host.encode("comet signal")
    ranked = [everything[slot].passage.id for slot, _ in table.rank(query, range(300), 5)]
    [hits] = host.search([query])

    assert {hit.passage.text for hit in hits} >= {
        hit.passage.text for hit in everything if hit.passage.id in ranked[:3]
    }


class TestHandedOn:
    """What the host does with its store's results."""

    def test_a_node_that_came_twice_is_given_once(self) -> None:
        """Also where a wider search found more: nothing moves up."""
        from faiss import IndexFlatL2
        from llama_index.vector_stores.faiss import FaissVectorStore

        index = indexed(FaissVectorStore(faiss_index=IndexFlatL2(24)), 60)
        index.insert_nodes(corpus(60)[:20])
        retriever = index.as_retriever(similarity_top_k=5)
        host = HostRetriever(retriever)
        texts = asked(30)
        queries = [host.encode(text) for text in texts]
        expected = truth(retriever, texts)

        assert min(map(len, expected)) < 5
        assert expected == host.search(queries)
        assert expected == [hits[:5] for hits in host.search_wide(queries, 20)]

    def test_nodes_that_stand_for_something_are_entered_by_the_host(self) -> None:
        """By an object of their own, or by one of the retriever's map."""
        inner = TextNode(id_="inner", text="inside")
        leading = [
            IndexNode(id_="own", text="river", index_id="x", obj=inner),
            IndexNode(id_="mapped", text="stone", index_id="y"),
            IndexNode(id_="nothing", text="comet", index_id="z"),
        ]
        index = VectorStoreIndex([*leading, *corpus(20)], embed_model=WordEmbedding())
        words = WordSearch([TextNode(id_="w", text="stone")])
        retriever = VectorIndexRetriever(
            index, 3, embed_model=index._embed_model, object_map={"y": words, "x": inner}
        )
        host = HostRetriever(retriever)
        texts = ["river", "stone", "comet", "lantern"]
        expected = truth(retriever, texts)

        assert expected == host.search([host.encode(text) for text in texts])
        assert expected == asyncio.run(awaited(host, texts))
        assert 0 < host.stats.single_calls < 2 * len(texts)

    def test_changes_of_the_index_count_from_the_next_call(self, index: VectorStoreIndex) -> None:
        """Nodes put in and taken out, and other texts in the document store."""
        retriever = index.as_retriever(similarity_top_k=3)
        host = HostRetriever(retriever)
        query = host.encode("river stone")
        before = host.search([query])
        index.insert_nodes([TextNode(id_="new", text="river stone")])
        later = index.as_retriever(similarity_top_k=3)
        index.delete_nodes([before[0][0].passage.id])
        found = HostRetriever(later).search([query])

        assert truth(later, ["river stone"]) == found
        assert truth(retriever, ["river stone"]) == host.search([query])
        assert "new" in {hit.passage.id for hit in found[0]}


class TestBundles:
    """Queries that say more than their text."""

    def test_an_embedding_or_strings_of_its_own(self, index: VectorStoreIndex) -> None:
        """They count for the query of that text, and no other one."""
        retriever = index.as_retriever(similarity_top_k=4)
        vector = index._embed_model.get_query_embedding("comet")
        for bundle in (
            QueryBundle("river", custom_embedding_strs=["copper", "lantern"]),
            QueryBundle("river", embedding=vector),
        ):
            host = HostRetriever(retriever).for_call(bundle)
            expected = hits_of(retriever.retrieve(copy.deepcopy(bundle)))
            given = asyncio.run(awaited(host, ["river", "stone"]))

            assert [expected, *truth(retriever, ["stone"])] == given
            assert [expected] == host.search([host.encode("river")])
            assert [expected] != truth(retriever, ["river"])

    def test_a_black_box_gets_a_copy_of_it(self) -> None:
        """Whatever the host writes into its bundle, the caller's stays."""

        class Writes(BaseRetriever):
            def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
                strings = query_bundle.custom_embedding_strs
                text = " ".join(strings or ["none"])
                query_bundle.embedding = [1.0]
                query_bundle.custom_embedding_strs = ["written"]
                return [NodeWithScore(node=TextNode(id_="n", text=text))]

        bundle = QueryBundle("river", custom_embedding_strs=["a", "b"])
        host = HostRetriever(Writes()).for_call(bundle)
        found = host.search([host.encode(text) for text in ("river", "river", "stone")])

        assert [hits[0].passage.text for hits in found] == ["a b", "a b", "none"]
        assert bundle == QueryBundle("river", custom_embedding_strs=["a", "b"])

    def test_they_are_part_of_the_signature(self, index: VectorStoreIndex) -> None:
        """A plain bundle changes nothing; others keep their calls apart."""
        host = HostRetriever(index.as_retriever())
        bundles = [
            None,
            QueryBundle("river"),
            QueryBundle("river", custom_embedding_strs=["a"]),
            QueryBundle("river", embedding=[1.0]),
            QueryBundle("river", image_path="a.png"),
        ]
        plain, same, *others = [host.for_call(bundle).signature for bundle in bundles]

        assert plain == same == host.signature
        assert len({plain, *others}) == 4


class TestPurity:
    """What is not the same answer twice."""

    def test_a_model_inside_is_recognised(self, index: VectorStoreIndex) -> None:
        """Wherever it is: a fusion that makes up queries, a router that chooses."""
        plain = index.as_retriever()
        tool = RetrieverTool.from_defaults(plain, description="all")
        selector = LLMSingleSelector.from_defaults(llm=MockLLM())
        impure = [
            QueryFusionRetriever([plain], MockLLM(), num_queries=4),
            RouterRetriever(selector, [tool], llm=MockLLM()),
            QueryFusionRetriever(
                [QueryFusionRetriever([plain], MockLLM(), num_queries=2)], MockLLM(), num_queries=1
            ),
        ]
        fusion = QueryFusionRetriever([plain], MockLLM(), num_queries=1)

        assert [HostRetriever(one).pure for one in impure] == [False] * 3
        assert HostRetriever(fusion).pure

    def test_the_caller_knows_better(self, index: VectorStoreIndex) -> None:
        """What the caller says counts, both ways; what is impure is not looked into."""
        fusion = QueryFusionRetriever([index.as_retriever()], MockLLM(), num_queries=4)
        writing = HostRetriever(index.as_retriever(), pure=False)

        assert HostRetriever(fusion, pure=True).pure
        assert (writing.pure, writing.looked_into) == (False, False)

    def test_the_log_names_the_class_of_the_host_s(
        self, index: VectorStoreIndex, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A user has made no `HostRetriever`."""
        Engine(EchoWorkload(), HostRetriever(index.as_retriever(), pure=False)).close()

        assert "HostRetriever(VectorIndexRetriever) is not pure" in caplog.text


class ProbedStore(SimpleVectorStore):
    """Somebody's own store class."""


class Probed:
    """A batch search of somebody's, which may be wrong in the last bit of a score."""

    name, exact, wide, metric, k, signature = "Probed", False, False, None, 4, "probed"

    def __init__(self, retriever: VectorIndexRetriever, wrong: bool) -> None:
        self._retriever = retriever
        self._wrong = wrong

    def search(self, vectors: Any, k: int) -> list[list[Scored]]:
        found = []
        for vector in vectors:
            nodes = self._retriever._get_nodes_with_embeddings(QueryBundle("", embedding=vector))
            error = 1e-15 if self._wrong else 0.0
            found.append([Scored(one.node, None, (one.score or 0.0) + error) for one in nodes])
        return found


@pytest.mark.parametrize("wrong", [False, True])
def test_probes_catch_a_score_that_differs_in_its_last_bits(
    wrong: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A batch search that is not the host's to the bit is found out and left, with a warning."""
    name = f"{ProbedStore.__module__}.{ProbedStore.__qualname__}"

    def factory(retriever: Any) -> BatchSearch:
        return Probed(retriever, wrong)

    register_batch_search(name, factory)
    retriever = indexed(ProbedStore(), 60).as_retriever(similarity_top_k=4)
    host = HostRetriever(retriever, batch="probed")
    texts = asked(12)
    queries = [host.encode(text) for text in texts]

    assert truth(retriever, texts) == host.search(queries)
    assert host.looked_into != wrong
    assert ("differ from single searches" in caplog.text) == wrong
    assert not HostRetriever(retriever).looked_into  # it has to be asked for


class Computing(BaseEmbedding):
    """An embedder whose asynchronous method computes, and stops the thread that it runs in."""

    def _get_query_embedding(self, query: str) -> list[float]:
        time.sleep(0.02)
        return [1.0] * 24

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)

    def _get_text_embedding(self, text: str) -> list[float]:
        return [1.0] * 24


class Waiting(Computing):
    """An embedder that waits, on the event loop of its caller."""

    async def _aget_query_embedding(self, query: str) -> list[float]:
        await asyncio.sleep(0)
        return [float(threading.get_ident())] * 24


class TestTheLoop:
    """What computes runs in a thread, what waits where its caller is."""

    def test_what_blocks_the_loop(self, index: VectorStoreIndex) -> None:
        """By the classes whose coroutines are known to compute, of all parts."""
        store, own = index.vector_store, black_box("words")
        waiting = VectorIndexRetriever(index, embed_model=Waiting())
        given = [
            blocks_loop(own),
            blocks_loop(index.as_retriever()),
            blocks_loop(waiting),
            blocks_loop(QueryFusionRetriever([own], MockLLM(), num_queries=1)),
            blocks_loop(QueryFusionRetriever([own, waiting], MockLLM(), num_queries=1)),
        ]

        assert isinstance(store, SimpleVectorStore)
        assert given == [True, False, False, True, False]

    @pytest.mark.parametrize("name", ["words"])
    def test_the_loop_goes_on(self, name: str, index: VectorStoreIndex) -> None:
        """While a host computes, other tasks run."""
        threads = set()

        class Slow(WordSearch):
            def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
                threads.add(threading.get_ident())
                return super()._retrieve(query_bundle)

        class Noting(Computing):
            def _get_query_embedding(self, query: str) -> list[float]:
                threads.add(threading.get_ident())
                return super()._get_query_embedding(query)

        retriever: BaseRetriever = Slow(corpus(20))
        if name == "index":
            retriever = VectorIndexRetriever(index, embed_model=Noting())
        asyncio.run(awaited(HostRetriever(retriever), ["river"]))

        assert threads
        assert threading.get_ident() not in threads

    def test_what_waits_stays(self, index: VectorStoreIndex) -> None:
        """An embedder of a server keeps to its caller's event loop."""
        host = HostRetriever(VectorIndexRetriever(index, embed_model=Waiting()))
        query = asyncio.run(host.aencode("river"))

        assert query.encoding.vector == [float(threading.get_ident())] * 24


class TestErrors:
    """What goes wrong is the host's own error."""

    def test_a_query_that_the_host_refuses(self, index: VectorStoreIndex) -> None:
        """An empty query has no embedding, and the store says so, alone and in a batch."""
        host = HostRetriever(index.as_retriever())
        with pytest.raises(TypeError) as hosts:
            index.as_retriever().retrieve("")
        with pytest.raises(TypeError) as ours:
            host.search([host.encode("river"), host.encode("")])

        assert str(hosts.value) == str(ours.value)

    def test_what_gives_no_nodes_is_refused(self) -> None:
        """The message says what came instead."""

        class Odd(WordSearch):
            def retrieve(self, str_or_query_bundle: Any) -> Any:
                return ["a text"]

        host = HostRetriever(Odd([]))
        with pytest.raises(InputError, match="list of NodeWithScore"):
            host.search([host.encode("river")])

    def test_settings_are_checked(self, index: VectorStoreIndex) -> None:
        """Unknown ways, and what is no retriever, are refused with what to do."""
        retriever: Any = index.as_retriever()
        with pytest.raises(ConfigError, match="one of exact, probed, off"):
            HostRetriever(retriever, batch="fast")  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="at least 1"):
            HostRetriever(retriever, side_by_side=0)
        with pytest.raises(ConfigError, match="as_retriever"):
            HostRetriever(index)  # type: ignore[arg-type]


def test_nothing_that_callers_do_changes_what_is_found_again() -> None:
    """Nodes and scores that were handed out, or that a host keeps, may be written into."""
    retriever: Any = black_box("words")
    host = HostRetriever(retriever)
    [hits] = host.search([host.encode("river stone")])
    expected = copy.deepcopy(nodes_of(hits))
    for one in (*nodes_of(hits), *retriever.found):
        one.score = -1.0
        one.node.metadata["poison"] = True
        one.node.text = "poison"

    assert expected == nodes_of(hits)
