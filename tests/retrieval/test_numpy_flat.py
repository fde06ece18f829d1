"""Scans on several threads: which of them run side by side."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from ralmspec_plugins.retrieval import HashingEncoder, NumpyFlat
from ralmspec_plugins.retrieval.dense import DenseCorpus
from ralmspec_plugins.retrieval.numpy_flat import scan
from ralmspec_plugins.retrieval.ranking import IntArray, Vectors
from ralmspec_plugins.testing.contracts import invented_passages, invented_queries


@pytest.mark.parametrize(("blas_threads", "most"), [(2, 1), (1, 4)])
def test_products_on_all_of_blas_threads_take_turns(
    blas_threads: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where one product takes all cores, concurrent searches run one after the other."""
    pytest.importorskip("threadpoolctl")
    info = [{"user_api": "blas", "num_threads": blas_threads}, {"user_api": "openmp"}]
    monkeypatch.setattr("threadpoolctl.threadpool_info", lambda: info)
    together = threading.Barrier(most, timeout=20)
    running: list[int] = []
    at_once: list[int] = []

    def watched(corpus: DenseCorpus, queries: Vectors, k: int) -> list[IntArray]:
        running.append(1)
        together.wait()
        at_once.append(len(running))
        together.wait()
        running.pop()
        return scan(corpus, queries, k)

    monkeypatch.setattr("ralmspec_plugins.retrieval.numpy_flat.scan", watched)
    retriever = NumpyFlat.build(invented_passages(50), HashingEncoder(16), k=3)
    queries = [[retriever.encode(text)] for text in invented_queries(4)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(retriever.search, queries))

    assert [most] * 4 == at_once
    monkeypatch.undo()
    assert [retriever.search(query) for query in queries] == found


def test_an_encoder_says_how_many_queries_it_encodes_at_a_time() -> None:
    """One, unless it is told."""

    class Hosted(HashingEncoder):
        inline = False
        lanes = 6

    passages = invented_passages(3)
    indexes = [
        NumpyFlat.build(passages, encoder=encoder) for encoder in (HashingEncoder(), Hosted())
    ]

    assert [index.encode_lanes for index in indexes] == [1, 6]
