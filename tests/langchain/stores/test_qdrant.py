"""Qdrant behind LangChain, in its local mode (for equality, never for speed)."""

from typing import Any, ClassVar

import pytest
from langchain_qdrant import QdrantVectorStore
from qdrant_client import models

from tests.langchain.stores.contract import StoreContract
from tests.langchain.stores.worlds import WordEmbeddings, corpus


def topic(name: str) -> models.Filter:
    match = models.MatchValue(value=name)
    return models.Filter(must=[models.FieldCondition(key="metadata.topic", match=match)])


class QdrantContract(StoreContract):
    """One distance."""

    narrow: ClassVar[dict[str, Any]] = {"filter": topic("t1")}
    nothing: ClassVar[dict[str, Any]] = {"filter": topic("none")}
    distance: models.Distance
    # The local mode's scores of one and the same query change from call to call in the last
    # bits, and with them the order of ties: it differs from itself, unless they are exact.
    coarse_dimension = 64
    coarse_signs = True
    score_error = 1e-6
    queries = 100
    wide_queries = 15

    @pytest.fixture(scope="class")
    @classmethod
    def store(cls, embeddings: WordEmbeddings) -> QdrantVectorStore:
        documents = corpus()
        return QdrantVectorStore.from_texts(
            [document.page_content for document in documents],
            embeddings,
            [document.metadata for document in documents],
            ids=list(range(len(documents))),
            location=":memory:",
            distance=cls.distance,
            vector_name="dense",
        )


class TestQdrant(QdrantContract):
    """Cosine, the wrapper's default."""

    metric = "cosine"
    distance = models.Distance.COSINE

    @pytest.mark.filterwarnings("ignore:Local mode performs exact:UserWarning")
    @pytest.mark.parametrize(
        "settings",
        [
            {"k": 4, "offset": 3},
            {"k": 10, "score_threshold": 0.4},
            {"k": 4, "search_params": models.SearchParams(exact=True)},
        ],
        ids=["offset", "threshold", "params"],
    )
    def test_other_settings(self, store: QdrantVectorStore, settings: dict) -> None:  # type: ignore[type-arg]
        """Offset, raw threshold and parameters are handed on."""
        self._check(store, settings, count=60)


@pytest.mark.slow
class TestQdrantInnerProduct(QdrantContract):
    """Inner product."""

    metric = "ip"
    distance = models.Distance.DOT


@pytest.mark.slow
class TestQdrantEuclid(QdrantContract):
    """Euclidean distance."""

    distance = models.Distance.EUCLID
