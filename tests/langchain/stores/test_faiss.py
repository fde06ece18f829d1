"""FAISS behind LangChain: flat indexes in certified batches, others as they are."""

from dataclasses import replace
from typing import Any, ClassVar

import faiss
import numpy as np
import pytest
from langchain_community.docstore.in_memory import InMemoryDocstore
from langchain_community.vectorstores import FAISS
from langchain_community.vectorstores.utils import DistanceStrategy
from langchain_ralmspec.stores.registry import batch_search_of

from tests.langchain.stores.contract import StoreContract
from tests.langchain.stores.worlds import WordEmbeddings, corpus, questions


class TestFaiss(StoreContract):
    """The wrapper's default: a flat L2 index."""

    narrow: ClassVar[dict[str, Any]] = {"filter": {"topic": "t1"}, "fetch_k": 60}
    nothing: ClassVar[dict[str, Any]] = {"filter": {"topic": "none"}}

    @pytest.fixture(scope="class")
    @classmethod
    def store(cls, embeddings: WordEmbeddings) -> FAISS:
        return FAISS.from_documents(corpus(), embeddings)

    @pytest.mark.parametrize(
        "settings",
        [
            {"k": 4, "filter": lambda metadata: metadata["number"] % 3 == 0},
            {"k": 4, "filter": {"number": {"$lt": 50}}, "fetch_k": 7},
            {"k": 30, "filter": {"topic": "t1"}, "fetch_k": 20},
            {"k": 4, "score_threshold": 0.9},
            {"k": 10, "score_threshold": 6.0, "filter": {"topic": "t1"}, "fetch_k": 80},
        ],
        ids=["function", "narrow fetch", "k above fetch", "threshold", "both"],
    )
    def test_filters_and_raw_thresholds(self, store: FAISS, settings: dict[str, Any]) -> None:
        """Whatever the wrapper does behind the scan, batches do too."""
        self._check(store, settings, count=100)

    def test_thresholds_make_no_wide_search(self, store: FAISS) -> None:
        """A raw threshold need not cut a prefix."""
        assert not self._search(store, {"k": 4, "score_threshold": 0.9}).wide

    def test_equal_vectors_are_no_doubt(self) -> None:
        """The host orders equal vectors by position, so one search is enough, also widely."""
        few, again, equal = self._asked_again(DistanceStrategy.EUCLIDEAN_DISTANCE)

        assert few < 20
        assert again == few
        assert equal > 100

    def test_queries_with_ties_of_products_are_asked_again(self) -> None:
        """Each is counted, and few are where no passage stands twice."""
        few, again, equal = self._asked_again(DistanceStrategy.MAX_INNER_PRODUCT)

        assert few < 20
        assert again > 150
        assert equal > 100

    def _asked_again(self, strategy: DistanceStrategy) -> tuple[int, int, int]:
        """Search a store, then with each passage twice: widely, and as the host does.

        Returns:
            How many queries were asked again before and after, and how many found both twins.
        """
        texts = {document.page_content: document for document in corpus()}
        embeddings = WordEmbeddings()
        store = FAISS.from_documents(list(texts.values()), embeddings, distance_strategy=strategy)
        asked: list[Any] = []
        found: Any = self._search(store, {"k": 4})
        search = replace(
            found, single=lambda vector, k: (asked.append(vector), found.single(vector, k))[1]
        )
        vectors = [embeddings.embed_query(text) for text in questions(200)]
        search.search(vectors, 4)
        few = len(asked)
        store.add_documents([texts[text] for text in texts], ids=[f"again-{at}" for at in texts])
        batch = [[hit.document for hit in hits] for hits in search.search(vectors, 10)]
        singly = [[hit.document for hit in found.single(vector, 4)] for vector in vectors]
        twins = sum(len({one.page_content for one in own}) < 4 for own in singly)

        assert singly == [own[:4] for own in batch]
        return few, len(asked) - few, twins

    def test_a_bad_filter_raises_the_hosts_error(self, store: FAISS) -> None:
        """The host's words reach the caller."""
        search = self._search(store, {"filter": {"$what": 1}})

        with pytest.raises(ValueError, match="unsupported operator"):
            search.search([store.embeddings.embed_query("river")], 4)  # type: ignore[union-attr]


class TestFaissInnerProduct(StoreContract):
    """A flat index of inner products, vectors of any length."""

    narrow: ClassVar[dict[str, Any]] = {"filter": {"topic": "t1"}, "fetch_k": 60}
    nothing: ClassVar[dict[str, Any]] = {"filter": {"topic": "none"}}
    metric = "ip"

    @pytest.fixture(scope="class")
    @classmethod
    def store(cls, embeddings: WordEmbeddings) -> FAISS:
        return FAISS.from_documents(
            corpus(), embeddings, distance_strategy=DistanceStrategy.MAX_INNER_PRODUCT
        )

    def test_rows_that_came_and_went_count_in_the_error_bound(
        self, embeddings: WordEmbeddings
    ) -> None:
        """After rows were added or deleted, the largest norm is read again."""
        store = FAISS.from_documents(
            corpus(60), embeddings, distance_strategy=DistanceStrategy.MAX_INNER_PRODUCT
        )
        self._check(store, {"k": 4}, count=40)
        store.delete([f"doc-{number}" for number in range(20)])
        self._check(store, {"k": 4}, count=40)
        store.add_documents(corpus(80)[60:])
        self._check(store, {"k": 4}, count=40)

    def test_few_fetched_rows_are_not_filled_up(self, embeddings: WordEmbeddings) -> None:
        """A tie decides which rows the host filters; the scan's choice adds nothing to them."""
        texts = [document.page_content for document in corpus(40)]
        store = FAISS.from_texts(
            [text for text in texts for _ in range(6)],
            embeddings,
            [{"half": at % 2} for at in range(6 * len(texts))],
            distance_strategy=DistanceStrategy.MAX_INNER_PRODUCT,
        )
        settings = {"k": 4, "filter": {"half": 1}, "fetch_k": 3}
        search: Any = self._search(store, settings)
        vectors = [embeddings.embed_query(text) for text in questions(100)]
        batch = [[hit.document for hit in hits] for hits in search.search(vectors, 8)]
        singly = [[hit.document for hit in search.single(vector, 4)] for vector in vectors]

        assert batch == singly
        assert 0 < sum(map(len, singly)) < 4 * len(singly)


class TestFaissNormalised(StoreContract):
    """`normalize_L2`: passages and queries get unit length, each by itself."""

    narrow: ClassVar[dict[str, Any]] = {"filter": {"topic": "t1"}, "fetch_k": 60}
    nothing: ClassVar[dict[str, Any]] = {"filter": {"topic": "none"}}
    metric = "cosine"

    @pytest.fixture(scope="class")
    @classmethod
    def store(cls, embeddings: WordEmbeddings) -> FAISS:
        return FAISS.from_documents(corpus(), embeddings, normalize_L2=True)


class TestFaissApproximate(StoreContract):
    """An HNSW index: batches agree here, but nothing is promised."""

    narrow: ClassVar[dict[str, Any]] = {"filter": {"topic": "t1"}, "fetch_k": 60}
    nothing: ClassVar[dict[str, Any]] = {"filter": {"topic": "none"}}
    exact = False
    wide = False
    metric = None  # type: ignore[assignment]

    @pytest.fixture(scope="class")
    @classmethod
    def store(cls, embeddings: WordEmbeddings) -> FAISS:
        store = FAISS(
            embeddings, faiss.IndexHNSWFlat(embeddings.dimension, 16), InMemoryDocstore(), {}
        )
        store.add_documents(corpus())
        return store


@pytest.fixture
def two_threads() -> Any:
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(2)
    yield
    faiss.omp_set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("metric", ["l2", pytest.param("ip", marks=pytest.mark.slow)])
def test_the_kernels_of_a_large_index(metric: str) -> None:
    """From 10,000 rows on, one query runs through another kernel than a batch: nothing shows.

    The scores differ (asserted, so that the test is one); rows in steps of 3e-7 put many
    rankings within the kernels' error, which only the certificate tells apart.
    """
    dimension, rows = 64, 12_000
    random = np.random.default_rng(3)
    vectors = random.standard_normal((rows, dimension)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[1::2] = vectors[::2] + 3e-7 * random.standard_normal((rows // 2, dimension))
    embeddings = WordEmbeddings(dimension=dimension)
    strategy = {"ip": DistanceStrategy.MAX_INNER_PRODUCT, "l2": DistanceStrategy.EUCLIDEAN_DISTANCE}
    store = FAISS.from_embeddings(
        [(f"text {number}", row.tolist()) for number, row in enumerate(vectors)],
        embeddings,
        distance_strategy=strategy[metric],
    )
    retriever = store.as_retriever(search_kwargs={"k": 3})
    search = batch_search_of(retriever)
    assert search is not None
    asked = questions(60)
    queries = np.asarray([embeddings.embed_query(text) for text in asked], dtype=np.float32)
    together, _ = store.index.search(queries, 3)
    alone = np.concatenate([store.index.search(query[None], 3)[0] for query in queries])
    expected = [retriever.invoke(text) for text in asked]
    given = [
        [hit.document for hit in row][:3]
        for width in (3, 40)
        for row in search.search(queries.tolist(), width)
    ]

    assert (together != alone).any()
    assert given == expected * 2


def test_a_batch_beyond_the_blas_threshold() -> None:
    """2,000 queries of 64 dimensions run through a third kernel: the documents are the same."""
    embeddings = WordEmbeddings(dimension=64)
    store = FAISS.from_documents(corpus(), embeddings)
    retriever = store.as_retriever()
    search = batch_search_of(retriever)
    assert search is not None
    asked = questions(100) * 21
    vectors = {text: embeddings.embed_query(text) for text in asked}
    expected = {text: retriever.invoke(text) for text in vectors}
    found = search.search([vectors[text] for text in asked], 4)

    assert len(asked) * 64 > 128_000
    assert [[hit.document for hit in row] for row in found] == [expected[text] for text in asked]
