"""`direct=True`: the sources are those of all steps, whole, streamed and awaited; never none."""

from collections.abc import Iterator
from typing import Any

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.postprocessor import SimilarityPostprocessor
from llama_index_ralmspec import SpeculativeQueryEngine

from ralmspec_plugins import FixedStride
from tests.llama_index.engine_parts import an_index
from tests.llama_index.test_local_model import made

QUESTION = "Where does the red fox run?"


@pytest.fixture(params=[False, True], ids=["plain", "speculative"])
def settings(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {"direct": True, "workload": "interval", "max_tokens": 12,
            "speculate": request.param, "schedule": FixedStride(stride=2)}  # fmt: skip


@pytest.fixture
def index() -> Iterator[VectorStoreIndex]:
    return an_index()


def sources(response: Any) -> list[tuple[str, float]]:
    return [(one.node.node_id, one.score) for one in response.source_nodes]


async def test_the_sources_are_there(index: VectorStoreIndex, settings: dict[str, Any]) -> None:
    """Of every step, each once, with scores; equal in all ways of asking."""
    with SpeculativeQueryEngine.from_index(
        index, llm=made(), similarity_top_k=3, **settings
    ) as engine:
        whole = engine.query(QUESTION)
        awaited = await engine.aquery(QUESTION)
    with SpeculativeQueryEngine.from_index(
        index, llm=made(), similarity_top_k=3, streaming=True, **settings
    ) as streaming:
        stream = streaming.query(QUESTION)
        text = "".join(stream.response_gen)
    found = sources(whole)

    assert len(found) >= 3
    assert len(dict(found)) == len(found)
    assert {name for name, _ in found} <= whole.metadata.keys()
    assert found == sources(awaited) == sources(stream)
    assert str(whole) == str(awaited) == text != ""


def test_the_sources_are_those_behind_a_postprocessor_that_keeps_all(
    index: VectorStoreIndex, settings: dict[str, Any]
) -> None:
    """With one they were there; without one they are the same."""
    found = []
    for processors in ([], [SimilarityPostprocessor(similarity_cutoff=-9.0)]):
        with SpeculativeQueryEngine.from_index(
            index, llm=made(), similarity_top_k=3, node_postprocessors=processors, **settings
        ) as engine:
            found.append(sources(engine.query(QUESTION)))

    assert found[0]
    assert found[0] == found[1]
