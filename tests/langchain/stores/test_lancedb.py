"""LanceDB behind LangChain, with a table on disk."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from lancedb.index import IvfPq
from langchain_community.vectorstores import LanceDB
from langchain_ralmspec.stores.registry import batch_search_of

from tests.langchain.stores.contract import StoreContract
from tests.langchain.stores.worlds import WordEmbeddings, corpus


@pytest.fixture(autouse=True)
def empty_results_warn() -> Iterator[None]:
    """Let the wrapper warn, as it does for every empty result."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No results found for the query")
        yield


class TestLanceDB(StoreContract):
    """A scanned table, L2, filtered before ranking."""

    narrow: ClassVar[dict[str, Any]] = {"filter": {"metadata.topic": "t1"}, "prefilter": True}
    nothing: ClassVar[dict[str, Any]] = {"filter": {"metadata.topic": "none"}, "prefilter": True}
    queries = 100
    wide_queries = 15

    @pytest.fixture(scope="class")
    @classmethod
    def store(cls, embeddings: WordEmbeddings, tmp_path_factory: pytest.TempPathFactory) -> LanceDB:
        store = LanceDB(uri=str(tmp_path_factory.mktemp("lance")), embedding=embeddings)
        store.add_documents(corpus())
        return store

    def test_a_filter_behind_the_ranking_promises_nothing(self, store: LanceDB) -> None:
        """The rows that fell away are not seen, so their ties are not either."""
        settings = {"k": 10, "filter": "metadata.topic = 't1'"}
        search = self._search(store, settings)

        assert (search.exact, search.wide) == (False, False)
        self._check(store, settings, count=60)

    def test_other_metrics_promise_nothing(self, store: LanceDB) -> None:
        """Only L2 is certified."""
        search = self._search(store, {"k": 4, "metrics": "cosine"})

        assert (search.exact, search.metric) == (False, "cosine")

    def test_full_text_search_is_left_to_the_host(self, store: LanceDB) -> None:
        """Only vectors are searched in batches."""
        settings = {"query_type": "hybrid"}

        assert batch_search_of(store.as_retriever(search_kwargs=settings)) is None


def test_an_index_ends_the_promise(tmp_path: Path) -> None:
    """As soon as the table has an index on its vectors, its search is approximate."""
    embeddings = WordEmbeddings(dimension=16)
    store = LanceDB(uri=str(tmp_path), embedding=embeddings)
    store.add_documents(corpus(300))
    contract = TestLanceDB()
    search = contract._search(store, {"k": 4})
    before = search.exact
    ivf = IvfPq(distance_type="l2", num_partitions=2, num_sub_vectors=4)
    store.get_table().create_index("vector", config=ivf)

    assert (before, search.exact) == (True, False)
