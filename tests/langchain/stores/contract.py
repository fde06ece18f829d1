"""What every batch search must keep to, whatever the store."""

import asyncio
import copy
from typing import Any, ClassVar

import pytest
from langchain_core.documents import Document
from langchain_core.vectorstores import VectorStore
from langchain_ralmspec.host_retriever import HostRetriever
from langchain_ralmspec.retriever import SpeculativeRetriever
from langchain_ralmspec.stores.registry import BatchSearch, batch_search_of

from ralmspec_plugins.adapters.retriever_state import BatchMode
from tests.langchain.stores.worlds import WordEmbeddings, batches, questions


def slow(*values: int) -> Any:
    """Have these numbers among the slow tests."""
    return pytest.param(*values, marks=pytest.mark.slow)


class StoreContract:
    """Subclass, give a fixture `store` and say what is true of it.

    `narrow` is a filter that some documents pass, `nothing` one that none passes, as
    `search_kwargs`; `exact` and `wide` are what the adapter must say with plain settings.
    """

    narrow: ClassVar[dict[str, Any]]
    nothing: ClassVar[dict[str, Any]]
    unknown: ClassVar[dict[str, Any]] = {"surprise": True}
    exact = True
    wide = True
    metric = "l2"
    coarse_dimension = 6  # few enough for many ties
    coarse_signs = False  # coarse vectors have exact lengths and cosines
    queries = 200  # in each test of the first k
    wide_queries = 30
    awaits = True  # whether the host's own store works in a new event loop
    score_error = 0.0  # by how much the host's own scores differ from call to call

    @pytest.fixture(params=[False, True], ids=["near", "tied"], scope="class")
    @classmethod
    def embeddings(cls, request: pytest.FixtureRequest) -> WordEmbeddings:
        return WordEmbeddings(
            coarse=request.param,
            dimension=cls.coarse_dimension if request.param else 24,
            signs=request.param and cls.coarse_signs,
        )

    @pytest.mark.parametrize(
        ("k", "share"), [(1, 8), (4, 4), (10, 8), (400, 16), slow(1, 1), slow(4, 1), slow(10, 1)]
    )
    def test_batches_are_the_hosts_single_calls(
        self, store: VectorStore, k: int, share: int
    ) -> None:
        """Documents of any batch: the host's own, in order, with content, metadata and ids."""
        self._check(store, {"k": k}, count=self.queries // share)

    def test_the_default_k(self, store: VectorStore) -> None:
        """A retriever that says no k gets as many documents as the host gives."""
        self._check(store, {}, count=20)

    @pytest.mark.parametrize("count", [30, slow(100)])
    def test_a_filter(self, store: VectorStore, count: int) -> None:
        """What the filter leaves out of single calls, it leaves out of batches."""
        self._check(store, {"k": 4, **self.narrow}, count=count)

    def test_a_filter_that_nothing_passes(self, store: VectorStore) -> None:
        """Empty results are empty lists, one a query."""
        expected = self._check(store, {"k": 4, **self.nothing}, count=12, empty=True)

        assert expected == [[]] * 12

    def test_a_wider_search_starts_alike(self, store: VectorStore) -> None:
        """Where the adapter says wide: the first k of a wider search are the search for k."""
        for settings in ({"k": 1}, {"k": 4}, {"k": 4, **self.narrow}):
            search = self._search(store, settings)
            if not search.wide:
                continue
            self._check(store, settings, count=self.wide_queries, width=search.k + 40)

    def test_what_the_adapter_says(self, store: VectorStore) -> None:
        """Exact, wide and metric are what is documented of this store."""
        search = self._search(store, {"k": 4})

        assert (search.exact, search.wide, search.metric, search.k) == (
            self.exact,
            self.wide,
            self.metric,
            4,
        )

    def test_unknown_settings_are_left_to_the_host(self, store: VectorStore) -> None:
        """A setting that the adapter does not know means no batch search."""
        assert batch_search_of(store.as_retriever(search_kwargs=self.unknown)) is None

    def test_a_strange_k_is_left_to_the_host(self, store: VectorStore) -> None:
        """The host decides what k = 0 or a text means."""
        searches = [batch_search_of(store.as_retriever(search_kwargs={"k": k})) for k in (0, "4")]

        assert searches == [None, None]

    def test_an_overridden_method_is_left_to_the_host(self, store: VectorStore) -> None:
        """A store with somebody's own search method is not looked into."""
        changed = copy.copy(store)
        object.__setattr__(changed, "similarity_search", lambda *_, **__: [])

        assert batch_search_of(changed.as_retriever()) is None

    def test_signatures_tell_settings_apart(self, store: VectorStore) -> None:
        """Equal settings have equal signatures; a filter makes another one."""
        plain, again, narrowed, nothing = (
            HostRetriever(store.as_retriever(search_kwargs={"k": 4, **more})).signature
            for more in ({}, {}, self.narrow, self.nothing)
        )

        assert plain == again
        assert len({plain, narrowed, nothing}) == 3

    def test_vectors_are_the_documents_own(self, store: VectorStore) -> None:
        """Vectors that come with documents have the embedder's dimension."""
        vector = store.embeddings.embed_query("river stone")  # type: ignore[union-attr]
        search = self._search(store, {"k": 4})
        given = [hit.vector for hit in search.search([vector, vector], 4)[0]]

        assert search.metric is None or {len(row) for row in given} == {len(vector)}

    def test_scores_are_the_hosts(self, store: VectorStore) -> None:
        """Scores, where given, are to the bit those of `similarity_search_with_score`."""
        search = self._search(store, {"k": 4})
        asked = questions(40)
        vectors = [store.embeddings.embed_query(text) for text in asked]  # type: ignore[union-attr]
        given = [[hit.score for hit in row] for row in search.search(vectors, 4)]
        hosts = [
            [score for _, score in store.similarity_search_with_score(text, 4)] for text in asked
        ]

        if search.relevance() is None:
            return
        if self.score_error:
            hosts = [pytest.approx(row, abs=self.score_error) for row in hosts]
        assert hosts == given

    @pytest.mark.filterwarnings("ignore:Relevance scores must be between:UserWarning")
    @pytest.mark.parametrize("count", [16, slow(40)])
    @pytest.mark.parametrize("batching", ["exact", "probed"])
    @pytest.mark.parametrize(
        ("search_type", "settings"),
        [
            ("similarity", {"k": 4}),
            ("similarity_score_threshold", {"k": 6}),
            ("mmr", {"k": 3, "fetch_k": 12}),
        ],
        ids=["similarity", "threshold", "mmr"],
    )
    def test_every_search_type_through_the_retriever(
        self,
        store: VectorStore,
        search_type: str,
        settings: dict[str, Any],
        batching: BatchMode,
        count: int,
    ) -> None:
        """`SpeculativeRetriever`: one by one, in batches and side by side, the host's documents."""
        asked = questions(count)
        if "threshold" in search_type:  # between the scores: some pass, some do not
            found = store.similarity_search_with_relevance_scores(asked[count // 2], k=6)
            settings = {**settings, "score_threshold": float(found[2][1])}
        retriever = store.as_retriever(search_type=search_type, search_kwargs=settings)
        speculative = SpeculativeRetriever(retriever=retriever, batching=batching)
        expected = [copy.deepcopy(retriever.invoke(text)) for text in asked]
        batched = [documents for batch in batches(asked) for documents in speculative.batch(batch)]
        awaited = asyncio.run(speculative.abatch(asked[:20])) if self.awaits else expected[:20]

        assert any(expected)
        assert [speculative.invoke(text) for text in asked[:8]] == expected[:8]
        assert batched == expected
        assert awaited == expected[:20]

    def _search(self, store: VectorStore, settings: dict[str, Any]) -> BatchSearch:
        search = batch_search_of(store.as_retriever(search_kwargs=settings))
        assert search is not None
        return search

    def _check(
        self,
        store: VectorStore,
        settings: dict[str, Any],
        count: int = 200,
        width: int | None = None,
        *,
        empty: bool = False,
    ) -> list[list[Document]]:
        retriever = store.as_retriever(search_kwargs=settings)
        search = self._search(store, settings)
        asked = questions(count)
        expected = [copy.deepcopy(retriever.invoke(text)) for text in asked]
        given: list[list[Document]] = []
        for batch in batches(asked):
            vectors = [store.embeddings.embed_query(text) for text in batch]  # type: ignore[union-attr]
            found = search.search(vectors, width or search.k)
            given += [[hit.document for hit in row][: search.k] for row in found]

        assert given == expected
        assert empty or any(expected)
        return expected
