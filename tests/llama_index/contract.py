"""What every batch search must keep to, whatever the store."""

import asyncio
import copy
from typing import Any, ClassVar

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.indices.vector_store.retrievers import VectorIndexRetriever
from llama_index.core.schema import NodeWithScore
from llama_index.core.vector_stores.types import (
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQueryMode,
)
from llama_index_ralmspec.host_retriever import HostRetriever
from llama_index_ralmspec.stores.registry import batch_search_of

from ralmspec_plugins.adapters.batch_search import BatchSearch
from tests.llama_index.worlds import WordEmbedding, batches, questions


def slow(*values: int) -> Any:
    """Have these numbers among the slow tests."""
    return pytest.param(*values, marks=pytest.mark.slow)


def topic(name: str) -> MetadataFilters:
    """Let through the nodes of a topic."""
    return MetadataFilters(filters=[MetadataFilter(key="topic", value=name)])


def below(number: int) -> MetadataFilters:
    """Let through the nodes of two topics with smaller numbers."""
    return MetadataFilters(
        filters=[
            MetadataFilter(key="number", value=number, operator=FilterOperator.LT),
            MetadataFilter(key="topic", value=["t1", "t2"], operator=FilterOperator.IN),
        ]
    )


class StoreContract:
    """Subclass, give a fixture `index` and say what is true of it.

    `narrowed` are settings that some nodes pass; `nothing` such that none passes, or `None`
    where the host raises an error for it.
    """

    narrowed: ClassVar[list[dict[str, Any]]] = [{"filters": topic("t1")}, {"filters": below(70)}]
    nothing: ClassVar[dict[str, Any] | None] = {"filters": topic("none")}
    exact = True
    wide = True
    metric: str | None = "l2"
    queries = 200  # of a k; by default a share of them
    coarse_dimension = 6  # few enough for many ties
    score_error = 0.0  # by how much the host's own scores differ from call to call

    @pytest.fixture(params=[False, True], ids=["near", "tied"], scope="class")
    @classmethod
    def embedding(cls, request: pytest.FixtureRequest) -> WordEmbedding:
        dimension = cls.coarse_dimension if request.param else 24
        return WordEmbedding(dimension=dimension, coarse=request.param)

    @pytest.mark.parametrize(
        ("k", "share"), [(1, 10), (4, 4), (10, 10), (400, 16), slow(1, 4), slow(4, 1), slow(10, 4)]
    )
    def test_batches_are_the_hosts_single_calls(
        self, index: VectorStoreIndex, k: int, share: int
    ) -> None:
        """Nodes of any batch: the host's own, in order, with scores to the last bit."""
        self._check(index, {"similarity_top_k": k}, self.queries // share)

    @pytest.mark.parametrize("share", [10, slow(4)])
    def test_filters(self, index: VectorStoreIndex, share: int) -> None:
        """What settings leave out of single calls, they leave out of batches."""
        for settings in self.narrowed:
            self._check(index, {"similarity_top_k": 4, **settings}, self.queries // share)

    def test_a_filter_that_nothing_passes(self, index: VectorStoreIndex) -> None:
        """Empty results are empty lists, one a query."""
        if self.nothing is None:
            return
        expected = self._check(index, {"similarity_top_k": 4, **self.nothing}, 12, empty=True)

        assert expected == [[]] * 12

    @pytest.mark.parametrize("share", [10, slow(4)])
    def test_a_wider_search_starts_alike(self, index: VectorStoreIndex, share: int) -> None:
        """Where the adapter says wide: the first k of a wider search are the search for k."""
        for settings in ({"similarity_top_k": 1}, {"similarity_top_k": 4}, *self.narrowed[:1]):
            search = self._search(index, settings)
            if search.wide:
                self._check(index, settings, self.queries // share, width=search.k + 40)

    def test_what_the_adapter_says(self, index: VectorStoreIndex) -> None:
        """Exact, wide and metric are what is documented of this store."""
        search = self._search(index, {"similarity_top_k": 4})
        given = (search.exact, search.wide, search.metric, search.k)

        assert given == (self.exact, self.wide, self.metric, 4)

    @pytest.mark.parametrize(
        "settings",
        [
            {"vector_store_kwargs": {"surprise": True}},
            {"vector_store_query_mode": VectorStoreQueryMode.MMR},
            {"vector_store_query_mode": VectorStoreQueryMode.HYBRID},
            {"vector_store_query_mode": VectorStoreQueryMode.SPARSE},
            {"vector_store_query_mode": VectorStoreQueryMode.TEXT_SEARCH},
            {"similarity_top_k": 0},
            {"similarity_top_k": "4"},
        ],
        ids=str,
    )
    def test_other_settings_are_left_to_the_host(
        self, index: VectorStoreIndex, settings: dict[str, Any]
    ) -> None:
        """What the adapter does not know means no batch search."""
        assert batch_search_of(_retriever(index, settings)) is None

    def test_an_overridden_method_is_left_to_the_host(self, index: VectorStoreIndex) -> None:
        """A retriever or store with somebody's own method is not looked into."""
        own, changed = _retriever(index, {}), _retriever(index, {})
        own._retrieve = lambda *_: []  # type: ignore[method-assign]
        changed._vector_store = copy.copy(changed._vector_store)
        object.__setattr__(changed._vector_store, "query", lambda *_, **__: None)

        assert batch_search_of(own) is None
        assert batch_search_of(changed) is None

    def test_signatures_tell_settings_apart(self, index: VectorStoreIndex) -> None:
        """Equal settings have equal signatures; a filter makes another one."""
        plain, again, *others = (
            HostRetriever(_retriever(index, settings)).signature
            for settings in ({}, {}, *self.narrowed)
        )

        assert plain == again
        assert len({plain, *others}) == 1 + len(others)

    def test_vectors_are_the_nodes_own(self, index: VectorStoreIndex) -> None:
        """Vectors that come with nodes have the embedder's dimension."""
        vector = index._embed_model.get_query_embedding("river stone")
        search = self._search(index, {"similarity_top_k": 4})
        given = [hit.vector for hit in search.search([vector, vector], 4)[0]]

        assert search.metric is None or {len(row) for row in given} == {len(vector)}

    def test_a_pool_shows_the_hosts_scores(self, index: VectorStoreIndex) -> None:
        """But for the last bits: a guess of all nodes' vectors has scores like the host's."""
        settings = {"similarity_top_k": 5}
        host = HostRetriever(_retriever(index, settings), batch="probed")
        if self.metric is None:
            return
        query = host.encode("river stone")
        table = host.table(5)
        [hits] = host.search([query, host.encode("comet")])[:1]
        for slot, hit in enumerate(hits):
            table.put(slot, hit)
        shown = sorted(score for _, score in table.rank(query, range(5), 5))

        assert table.scored
        assert shown == pytest.approx(sorted(hit.score or 0.0 for hit in hits), abs=1e-5)

    def _search(self, index: VectorStoreIndex, settings: dict[str, Any]) -> BatchSearch:
        search = batch_search_of(_retriever(index, settings))
        assert search is not None
        return search

    def _check(
        self,
        index: VectorStoreIndex,
        settings: dict[str, Any],
        count: int,
        width: int | None = None,
        *,
        empty: bool = False,
    ) -> list[list[NodeWithScore]]:
        retriever = _retriever(index, settings)
        search: Any = self._search(index, settings)
        asked = [text for text in questions(count + 1) if text]
        expected = [copy.deepcopy(retriever.retrieve(text)) for text in asked]
        given: list[list[NodeWithScore]] = []
        for at, batch in enumerate(batches(asked)):
            vectors = [index._embed_model.get_query_embedding(text) for text in batch]
            if at % 5 and not getattr(search, "awaited", None):
                found = search.search(vectors, width or search.k)
            else:
                found = self._awaited(search, vectors, width or search.k)
            given += [
                [NodeWithScore(node=hit.document, score=hit.score) for hit in row[: search.k]]
                for row in found
            ]

        if self.score_error:
            for hosts, ours in zip(expected, given, strict=True):
                _close(hosts, ours, self.score_error)
        assert expected == given
        assert empty or any(expected)
        return expected

    def _awaited(self, search: Any, vectors: list[Any], k: int) -> Any:
        if not hasattr(search, "asearch"):  # it runs in a thread
            return search.search(vectors, k)
        return asyncio.run(search.asearch(vectors, k))


def _retriever(index: VectorStoreIndex, settings: dict[str, Any]) -> VectorIndexRetriever:
    return VectorIndexRetriever(index, embed_model=index._embed_model, **settings)


def _close(hosts: list[NodeWithScore], ours: list[NodeWithScore], error: float) -> None:
    """Have scores be the host's that are as good as equal."""
    for one, other in zip(hosts, ours, strict=True):
        if one.score == pytest.approx(other.score, abs=error):
            other.score = one.score
