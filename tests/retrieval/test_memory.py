"""Large arrays are held once, or not at all: counted by Python itself, in bytes."""

import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ralmspec_plugins.retrieval import build_index, load, open_retriever, save
from ralmspec_plugins.types import Passage, Query

COUNT, DIMENSION = 20_000, 800
VECTORS = 4 * COUNT * DIMENSION
QUERY = Query("q", np.ones(DIMENSION, dtype=np.float32))


class Encoder:
    """Vectors of many lengths, made a batch at a time."""

    name = "drawn"

    def __call__(self, text: str) -> Any:
        return self.many([text])[0]

    def many(self, texts: Sequence[str]) -> Any:
        seed = [len(texts), *texts[0].encode()]
        return np.random.default_rng(seed).standard_normal(
            (len(texts), DIMENSION), dtype=np.float32
        )


def passages() -> Iterator[Passage]:
    return (Passage(f"p{row:06d}", f"text {row}") for row in range(COUNT))


def peak(work: Callable[[], Any]) -> float:
    """Run it, and say how much was held at most, as a share of the vectors."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1] / VECTORS
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module", params=["cosine", "l2"])
def metric(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.fixture(scope="module")
def kb(metric: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A knowledge base on the disk."""
    folder = tmp_path_factory.mktemp("memory") / "kb"
    build_index(passages(), folder, Encoder(), metric=metric, k=10)
    return folder


def test_built_in_memory_the_vectors_are_there_once(metric: str, kb: Path) -> None:
    """Encoded in batches into one array, and normalised where they are."""
    texts: Any = load(kb)

    def work() -> None:
        store = open_retriever("numpy-flat", texts.corpus.passages, Encoder(), metric=metric, k=10)
        store.search([QUERY] * 16)

    assert 1 < peak(work) < 1.5


@pytest.mark.parametrize(
    ("name", "metric"), [("numpy-flat", "cosine"), ("numpy-flat", "l2"), ("faiss-flat", "cosine")]
)
def test_built_on_the_disk_they_are_not_there_at_all(
    tmp_path: Path, name: str, metric: str
) -> None:
    """Neither when encoded, nor when measured, digested, saved or searched."""
    pytest.importorskip(name.partition("-")[0])

    def work() -> None:
        store = build_index(
            passages(), tmp_path / "kb", Encoder(), backend=name, metric=metric, k=10
        )
        store.search([QUERY] * 16)

    assert peak(work) < 0.5


@pytest.mark.parametrize("kind", ["float16", "float64"])
def test_given_vectors_are_converted_in_blocks(tmp_path: Path, kind: str) -> None:
    """Of whatever type, the file is mapped and never held."""
    vectors = np.random.default_rng(0).standard_normal((COUNT, DIMENSION)).astype(kind)
    np.save(tmp_path / "v.npy", vectors)
    del vectors

    def work() -> None:
        build_index(passages(), tmp_path / "kb", vectors=tmp_path / "v.npy", metric="cosine")

    assert peak(work) < 0.5


def test_loaded_searched_and_saved_they_stay_on_the_disk(tmp_path: Path, kb: Path) -> None:
    """A mapped knowledge base is opened, searched and copied without being held."""

    def work() -> None:
        store = load(kb, Encoder())
        store.search([QUERY] * 16)
        save(store, tmp_path / "copy")

    assert peak(work) < 0.5
