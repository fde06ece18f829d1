"""Which batch search fits which store: by exact class, from anybody, loaded when it is needed."""

import logging
import subprocess
import sys
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import pytest
from langchain_core.vectorstores import InMemoryVectorStore, VectorStoreRetriever
from langchain_ralmspec.documents import documents_of
from langchain_ralmspec.host_retriever import HostRetriever
from langchain_ralmspec.stores.registry import (
    ENTRY_POINTS,
    BatchSearch,
    Metric,
    Scored,
    batch_search_of,
    qualified_name,
    register_batch_search,
)

from ralmspec_plugins.errors import ConfigError
from tests.langchain.conftest import filled
from tests.langchain.stores.worlds import WordEmbeddings, corpus


class Ranked:
    """Gives the first k of some documents, with scores."""

    name = "ranked"
    exact = True
    wide = True
    metric: Metric | None = None
    signature: Hashable = "ranked"
    k = 3

    def __init__(self, scores: Sequence[float], relevance: Callable[[float], float] | None) -> None:
        self.scores = scores
        self._relevance = relevance

    def relevance(self) -> Callable[[float], float] | None:
        return self._relevance

    def search(self, vectors: Sequence[Any], k: int) -> list[list[Scored]]:
        documents = corpus(len(self.scores))
        found = [
            Scored(document, None, score)
            for document, score in zip(documents, self.scores, strict=True)
        ]
        return [found[:k] for _ in vectors]


def made(retriever: VectorStoreRetriever) -> BatchSearch:
    """Be the function that somebody registers by an entry point."""
    return Ranked([0.0, 0.0, 0.0], None)


def failing(retriever: VectorStoreRetriever) -> BatchSearch:
    """Be one with a bug."""
    raise ZeroDivisionError


def retriever_over(kind: type[InMemoryVectorStore], **settings: Any) -> VectorStoreRetriever:
    return filled(kind(WordEmbeddings()), corpus(9)).as_retriever(**settings)


def offered(folder: Path, kind: type, value: str) -> None:
    """Install a package that offers a batch search for a class."""
    info = folder / "somebody-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: somebody\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{ENTRY_POINTS}]\n{qualified_name(kind)} = {value}\n")


class Offered(InMemoryVectorStore):
    """Has a batch search in somebody's package."""


class BadlyOffered(InMemoryVectorStore):
    """Has one that cannot be imported."""


class BadlyMade(InMemoryVectorStore):
    """Has one that fails when it is made."""


def test_entry_points_of_others_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that is installed only has to name the class."""
    offered(tmp_path, Offered, f"{__name__}:made")
    monkeypatch.syspath_prepend(tmp_path)
    found = batch_search_of(retriever_over(Offered))

    assert isinstance(found, Ranked)


@pytest.mark.parametrize(
    ("kind", "value"), [(BadlyOffered, "no.such.module:made"), (BadlyMade, f"{__name__}:failing")]
)
def test_a_broken_one_is_logged_once_and_passed_over(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kind: type[InMemoryVectorStore],
    value: str,
) -> None:
    """The store is searched through the host, as if nothing had been offered."""
    offered(tmp_path, kind, value)
    monkeypatch.syspath_prepend(tmp_path)
    retriever = retriever_over(kind)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            host = HostRetriever(retriever)
            found = documents_of(host.search([host.encode("river")])[0])

            assert found == retriever.invoke("river")

    assert len(caplog.records) == 1


def test_a_subclass_of_a_known_store_is_not_known() -> None:
    """It may have changed anything."""

    class Sub(InMemoryVectorStore):
        pass

    assert batch_search_of(retriever_over(InMemoryVectorStore)) is not None
    assert batch_search_of(retriever_over(Sub)) is None


def test_names_are_checked() -> None:
    """A class is named with its module."""
    with pytest.raises(ConfigError, match="got 'FAISS'"):
        register_batch_search("FAISS", made)


class Thresholded(InMemoryVectorStore):
    """A store with relevances."""

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        return lambda score: 1.0 - score / 2


@pytest.mark.parametrize(
    ("scores", "threshold", "narrow", "wide"),
    [
        ([0.2, 0.4, 0.6, 0.8, 1.0, 1.2], 0.55, 3, 4),  # the fourth is as relevant
        ([0.2, 0.4, 1.6, 0.2, 0.2, 0.2], 0.55, 2, 2),  # nothing behind a cut counts
        ([1.6, 1.6, 1.6, 0.2, 0.2, 0.2], 0.55, 0, 0),
        ([0.2, 0.4, 0.6, 1.6, 0.2, 0.2], 0.55, 3, 3),
        ([0.2, 0.4, 0.6, 0.8, 1.0, 1.2], None, 3, 6),
        ([0.5, 1.0, 1.0, 1.0, 1.0, 1.2], 0.5, 3, 5),  # just relevant enough
    ],
)
def test_thresholds_cut_as_the_host_does(
    scores: list[float], threshold: float | None, narrow: int, wide: int
) -> None:
    """The host cuts its k; what is found wider goes on only where nothing was cut."""
    register_batch_search(
        qualified_name(Thresholded), lambda _: Ranked(scores, lambda score: 1.0 - score / 2)
    )
    retriever = retriever_over(
        Thresholded,
        search_type="similarity_score_threshold",
        search_kwargs={"score_threshold": 0.5, "k": 3},
    )
    host = HostRetriever(retriever, kwargs={"score_threshold": threshold})
    queries = [host.encode("a"), host.encode("b")]

    assert [len(hits) for hits in host.search(queries)] == [narrow] * 2
    assert [len(hits) for hits in host.search_wide(queries, 6)] == [wide] * 2


@pytest.mark.filterwarnings("ignore:Relevance scores must be between")
@pytest.mark.parametrize("scores", [[3.0, 0.1, 0.1], [-1.0, 0.1, 0.1]])
def test_relevances_that_the_host_warns_of_are_left_to_the_host(scores: list[float]) -> None:
    """The warning is the host's, and so are the documents."""
    register_batch_search(
        qualified_name(Thresholded), lambda _: Ranked(scores, lambda score: 1.0 - score / 2)
    )
    retriever = retriever_over(
        Thresholded,
        search_type="similarity_score_threshold",
        search_kwargs={"score_threshold": 0.1, "k": 3},
    )
    host = HostRetriever(retriever)
    found = host.search([host.encode("river"), host.encode("stone")])

    assert [documents_of(hits) for hits in found] == [
        retriever.invoke("river"),
        retriever.invoke("stone"),
    ]
    assert host.stats.single_calls == 2


def test_no_store_is_imported_for_its_name() -> None:
    """Importing the retriever imports no store library, and no LangChain beyond its core."""
    program = (
        "import sys, langchain_ralmspec.retriever; "
        "print([name for name in ('faiss', 'chromadb', 'qdrant_client', 'lancedb', 'pymilvus', "
        "'langchain_community', 'langchain_classic', 'torch') if name in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert found.stdout.strip() == "[]"
