"""What a retriever of LlamaIndex' is named by, and whether that is all there is to it."""

from typing import Any

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.llms import MockLLM
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.retrievers import (
    QueryFusionRetriever,
    RecursiveRetriever,
    VectorIndexRetriever,
)
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.core.tools import RetrieverTool
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index.core.vector_stores.types import VectorStoreQueryMode
from llama_index_ralmspec.documents import hits_of
from llama_index_ralmspec.host_retriever import HostRetriever
from llama_index_ralmspec.retriever import SpeculativeRetriever
from pydantic import PrivateAttr

from ralmspec_plugins.types import Query
from tests.llama_index.conftest import BLACK_BOXES, WordSearch, black_box, indexed
from tests.llama_index.contract import topic
from tests.llama_index.worlds import WordEmbedding, corpus


class TestSignature:
    """All that answers depend on."""

    def test_each_setting_tells_apart(self, index: VectorStoreIndex) -> None:
        """Numbers, filters, ids, modes, arguments, embedders, maps and indexes count."""
        other = indexed(SimpleVectorStore(), 10)
        settings: list[dict[str, Any]] = [
            {},
            {"similarity_top_k": 3},
            {"filters": topic("t1")},
            {"node_ids": ["a"]},
            {"node_ids": ["a", "b"]},
            {"doc_ids": ["a"]},
            {"vector_store_query_mode": VectorStoreQueryMode.MMR},
            {"vector_store_kwargs": {"mmr_threshold": 0.1}},
            {"alpha": 0.5},
            {"embed_model": WordEmbedding()},
            {"object_map": {"a": TextNode(id_="t", text="a")}},
        ]
        retrievers = [
            *(VectorIndexRetriever(index, **one) for one in settings),
            VectorIndexRetriever(other),
            black_box("words"),
        ]
        signatures = {HostRetriever(one).signature for one in retrievers}
        again = HostRetriever(VectorIndexRetriever(index, node_ids=["a", "b"])).signature

        assert len(signatures) == len(retrievers)
        assert again in signatures

    def test_it_follows_a_change_in_place(self, index: VectorStoreIndex) -> None:
        """Of a number, a filter, a list of ids, and of a part within a black box."""
        retriever: Any = VectorIndexRetriever(index, filters=topic("t1"), node_ids=["a", "b"])
        host = HostRetriever(retriever)
        seen = [host.signature]
        retriever.similarity_top_k = 7
        seen.append(host.signature)
        retriever._filters.filters[0].value = "t2"
        seen.append(host.signature)
        retriever._node_ids.append("c")
        seen.append(host.signature)
        retriever._node_ids[0] = "z"
        seen.append(host.signature)
        fusion: Any = black_box("fusion")
        outer = HostRetriever(fusion)
        seen.append(outer.signature)
        fusion._retrievers[0].similarity_top_k = 3
        seen.append(outer.signature)
        fusion.mode = "simple"
        seen.append(outer.signature)

        assert len(set(seen)) == len(seen)

    def test_a_call_keeps_its_settings(self, index: VectorStoreIndex) -> None:
        """What is changed in the middle of a call counts from the next one on."""
        retriever: Any = index.as_retriever(similarity_top_k=4, filters=topic("t1"))
        expected = hits_of(retriever.retrieve("river"))
        host = HostRetriever(retriever)
        call = host.for_call(None)
        signature = call.signature
        retriever.similarity_top_k = 2
        retriever._filters.filters[0].value = "t2"
        retriever._node_ids.clear()

        assert [expected] == call.search([call.encode("river")])
        assert [expected] == call.search([Query("river")])  # by the host itself
        assert signature == call.signature
        assert signature != host.signature

    def test_what_is_kept_in_an_object_of_its_own_is_no_setting(self) -> None:
        """A retriever of one's own that counts its calls in one keeps its signature."""
        words: Any = black_box("words")
        host = HostRetriever(words)
        before = host.signature
        host.search([host.encode("river")])

        assert words.calls == {"river": 1}
        assert before == host.signature

    @pytest.mark.parametrize("name", ["user", "_user", "__user", "_more"])
    def test_every_attribute_of_a_black_box_counts(self, name: str) -> None:
        """Whatever it is called and whenever it was set, in it or in a part of it."""
        ours: Any = WordSearch([])
        fusion = QueryFusionRetriever([ours], MockLLM(), num_queries=1)
        hosts = [HostRetriever(one) for one in (ours, fusion)]
        seen = [host.signature for host in hosts]
        for user in ("ada", "bob", ["bob"], {"is": "bob"}):
            setattr(ours, name, user)
            seen += [host.signature for host in hosts]
        ours._more = {"is": "cid"}

        assert len(set(seen)) == len(seen) == 10
        assert hosts[0].signature not in seen

    def test_private_attributes_of_models_count(self) -> None:
        """Of a postprocessor in a tool, which is a pydantic model, also those that it hides."""

        class Only(BaseNodePostprocessor):
            _user: str = PrivateAttr(default="")

            def _postprocess_nodes(self, nodes: Any, query_bundle: Any = None) -> Any:
                return [one for one in nodes if one.node.metadata.get("user") == self._user]

        only = Only()
        box: Any = WordSearch([])
        box.tool = RetrieverTool.from_defaults(WordSearch([]), node_postprocessors=[only])
        host = HostRetriever(box)
        before = host.signature
        only._user = "bob"

        assert before != host.signature

    def test_an_embedder_that_counts_is_the_same_one(self) -> None:
        """Embedders, models and stores are only themselves: their own counters do not matter."""

        class Counting(WordEmbedding):
            count: int = 0

            def _get_query_embedding(self, query: str) -> list[float]:
                self.count += 1
                return super()._get_query_embedding(query)

        class Embedding(WordSearch):
            def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
                embedder.get_query_embedding(query_bundle.query_str)
                return super()._retrieve(query_bundle)

        embedder = Counting()
        box: Any = Embedding(corpus(20))
        box.embedder = embedder
        native = VectorIndexRetriever(indexed(SimpleVectorStore(), 10), embed_model=embedder)
        fusion = QueryFusionRetriever([box, native], MockLLM(), num_queries=1)
        hosts = [HostRetriever(one) for one in (box, native, fusion)]
        before = [host.signature for host in hosts]
        for host in hosts:
            host.search([host.encode("river")])

        assert embedder.count == 4
        assert before == [host.signature for host in hosts]

    def test_retrievers_for_many_tables_are_all_looked_at(self) -> None:
        """A recursive retriever with one for each of a hundred documents: the last one counts."""
        inner: dict[str, Any] = {str(at): WordSearch([]) for at in range(100)}
        host = HostRetriever(RecursiveRetriever("0", inner))
        before = host.signature
        inner["99"]._user = "bob"

        assert before != host.signature
        inner["99"].llm = MockLLM()
        assert not HostRetriever(RecursiveRetriever("0", inner)).pure


class Counts(WordSearch):
    """Counts its calls in a number."""

    count = 0

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        self.count += 1
        return super()._retrieve(query_bundle)


@pytest.mark.parametrize(("kind", "complaints"), [(Counts, 1), (WordSearch, 0)])
def test_a_black_box_that_never_stays_is_complained_of(
    kind: type[WordSearch], complaints: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, after three calls, and with what to do."""
    host = HostRetriever(kind(corpus(20)))
    for text in ("river", "stone", "comet", "signal"):
        host.search([host.encode(text)])
    said = [record.getMessage() for record in caplog.records if "itertools" in record.getMessage()]

    assert complaints == len(said)
    assert all("Counts" in one for one in said)


class TestHostsOwn:
    """Whether a signature surely names all that answers depend on."""

    def test_code_of_others_may_read_whose_turn_it_is(self, index: VectorStoreIndex) -> None:
        """A class, a subclass, a postprocessor, a function, a replaced method: wherever it is."""

        class Sub(VectorIndexRetriever):
            pass

        plain, changed = index.as_retriever(), index.as_retriever()
        changed._retrieve = lambda _: []  # type: ignore[method-assign]
        own = WordSearch([])
        with_function = index.as_retriever(vector_store_kwargs={"only": lambda _: True})
        given = [
            HostRetriever(one).look().hosts_own
            for one in (
                own,
                Sub(index),
                changed,
                with_function,
                QueryFusionRetriever([plain, own], MockLLM(), num_queries=1),
                RecursiveRetriever("a", {"a": plain, "b": own}),
            )
        ]

        assert [False] * 6 == given

    @pytest.mark.parametrize("name", BLACK_BOXES)
    def test_black_boxes_are_on_no_list(self, name: str) -> None:
        """The host's own compositions neither: any part of them may be a user's."""
        box = black_box(name)
        given = [HostRetriever(one).look().hosts_own for one in (box, SpeculativeRetriever(box))]

        assert [False] * 2 == given

    def test_what_is_looked_into_is_known(self, index: VectorStoreIndex) -> None:
        """No code takes part in a search that goes to a known store."""
        assert HostRetriever(index.as_retriever(filters=topic("t1"))).look().hosts_own
