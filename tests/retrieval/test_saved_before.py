"""Knowledge bases in `saved/`, written before the modules moved, still open and search alike."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from ralmspec_plugins.errors import IndexFileError
from ralmspec_plugins.knn.ann_index import HnswRecipe, IvfPqRecipe
from ralmspec_plugins.retrieval import load
from ralmspec_plugins.retrieval.faiss_ann import Hnsw, IvfPq

SAVED = Path(__file__).parent / "saved"
DENSE = [("p3", 0.80904), ("p2", 0.707107)]
FOUND = {
    "numpy-flat": DENSE,
    "faiss-hnsw": DENSE,
    "bm25s": [("p1", 0.960652), ("p0", 0.606668)],
}


@pytest.mark.parametrize("backend", FOUND)
def test_a_knowledge_base_of_before_opens(backend: str) -> None:
    """Every file is checked against its digest, and a search finds what it found then."""
    if backend == "faiss-hnsw":
        pytest.importorskip("faiss")
    if backend == "bm25s":
        pytest.importorskip("bm25s")
    retriever = load(SAVED / backend)
    hits = retriever.search([retriever.encode("the keeper and the storm")])[0]

    assert FOUND[backend] == [(hit.passage.id, pytest.approx(hit.score, abs=1e-5)) for hit in hits]
    assert all(hit.passage.text and hit.passage.title is not None for hit in hits)


def test_settings_of_before_make_the_recipes_of_now() -> None:
    """What a saved index does not say of its making is what it was then."""
    passages: dict[str, Any] = {"lists": None, "probes": 8, "pieces": 16, "refine": 16}
    keys: dict[str, Any] = {
        "lists": None,
        "pieces": None,
        "sample": 131_072,
        "seed": 0,
        "probes": 32,
    }
    graph: dict[str, Any] = {"links": 32, "build_list": 40, "search_list": 64}

    assert IvfPq(**passages) == IvfPq()
    assert Hnsw(**graph) == Hnsw(storage="float32")
    assert IvfPqRecipe(**keys) == IvfPqRecipe()
    assert HnswRecipe(**graph) == HnswRecipe(storage="float16")


def test_an_older_format_is_refused_with_a_remedy(tmp_path: Path) -> None:
    """Version 1 had no offsets and no places: the message says to build it again."""
    folder = shutil.copytree(SAVED / "numpy-flat", tmp_path / "kb")
    record = folder / "kb.json"
    record.write_text(record.read_text().replace('"version": 2', '"version": 1'))

    with pytest.raises(IndexFileError, match="again"):
        load(folder)
