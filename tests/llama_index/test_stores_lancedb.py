"""LanceDB behind LlamaIndex, with a table on disk."""

from pathlib import Path
from typing import Any, ClassVar

import pytest
from lancedb.index import IvfPq
from llama_index.core import VectorStoreIndex
from llama_index.vector_stores.lancedb import LanceDBVectorStore
from llama_index_ralmspec.stores.registry import batch_search_of

from tests.llama_index.contract import StoreContract, topic
from tests.llama_index.test_stores import indexed
from tests.llama_index.worlds import WordEmbedding

# The store's own call of its client.
pytestmark = pytest.mark.filterwarnings("ignore:table_names:DeprecationWarning")


class TestLanceDB(StoreContract):
    """A scanned table."""

    narrowed: ClassVar[list[dict[str, Any]]] = [
        {"filters": topic("t1")},
        {"vector_store_kwargs": {"where": "metadata.number < 70"}},
    ]
    nothing = None  # the host raises an error for it
    queries = 32

    @pytest.fixture(scope="class")
    @classmethod
    def index(
        cls, embedding: WordEmbedding, tmp_path_factory: pytest.TempPathFactory
    ) -> VectorStoreIndex:
        uri = str(tmp_path_factory.mktemp("lance"))
        return indexed(LanceDBVectorStore(uri=uri, overfetch_factor=1), embedding)


@pytest.mark.slow
class TestLanceDBLong(TestLanceDB):
    """The same with more queries."""

    queries = 200


def test_more_is_fetched_where_the_store_says_so(tmp_path: Path) -> None:
    """With `overfetch_factor` the store gives so many times as many nodes."""
    index = indexed(LanceDBVectorStore(uri=str(tmp_path), overfetch_factor=3), WordEmbedding(), 60)
    contract = TestLanceDB()
    expected = contract._check(index, {"similarity_top_k": 4}, 12)

    assert contract._search(index, {"similarity_top_k": 4}).k == 12
    assert {len(nodes) for nodes in expected} == {12}


def test_an_index_ends_the_promise(tmp_path: Path) -> None:
    """As soon as the table has an index on its vectors, its search is approximate."""
    store = LanceDBVectorStore(uri=str(tmp_path))
    index = indexed(store, WordEmbedding(dimension=16))
    search = TestLanceDB()._search(index, {"similarity_top_k": 4})
    before = search.exact
    ivf = IvfPq(distance_type="l2", num_partitions=2, num_sub_vectors=4)
    store.table.create_index("vector", config=ivf)

    assert (before, search.exact) == (True, False)


def test_other_searches_are_left_to_the_host(tmp_path: Path) -> None:
    """Refined ones, and those of text, are not searched in batches."""
    for number, settings in enumerate(({"refine_factor": 2}, {"query_type": "hybrid"})):
        store: Any = LanceDBVectorStore(uri=str(tmp_path / str(number)), **settings)
        index = indexed(store, WordEmbedding(), 10)

        assert batch_search_of(index.as_retriever()) is None


@pytest.mark.parametrize("settings", [{"overfetch_factor": 2}, {"refine_factor": 2}], ids=str)
def test_a_store_that_is_set_otherwise_is_asked_singly(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    """What was made for other settings of the store promises nothing, and asks the host."""
    store = LanceDBVectorStore(uri=str(tmp_path))
    embedding = WordEmbedding()
    retriever = indexed(store, embedding, 40).as_retriever(similarity_top_k=3)
    search: Any = batch_search_of(retriever)
    before = search.exact
    for name, value in settings.items():
        setattr(store, name, value)
    vectors = [embedding.get_query_embedding(text) for text in ("river stone", "comet")]
    found = [[hit.document for hit in hits] for hits in search.search(vectors, search.k)]
    expected = [[one.node for one in retriever.retrieve(text)] for text in ("river stone", "comet")]

    assert (before, search.exact) == (True, False)
    assert expected == found
