"""LlamaIndex's own iterative engines: over ours as over the host's, and what they do otherwise."""

from collections.abc import Iterator
from typing import Any

import pytest
from llama_index.core.indices.query.query_transform.base import StepDecomposeQueryTransform
from llama_index.core.query_engine import (
    FLAREInstructQueryEngine,
    MultiStepQueryEngine,
    RetrieverQueryEngine,
)
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index_ralmspec import SpeculativeQueryEngine

from tests.llama_index.rag_parts import QUESTIONS, HashLLM, HashRetriever, digest, made_nodes


class InstructedLLM(HashLLM):
    """Writes pieces with `[Search(...)]` in them, three times, and then that it is done."""

    def written(self, prompt: str, kwargs: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
        word = f"x{digest(prompt):08x}"
        if "Lookahead Template:" in prompt:
            return [f"Filled {word}."], {}
        if "Existing Answer" in prompt or "Answer:" not in prompt:
            begun = prompt.rpartition("Query")[2].count("Filled")
            return [f"It is [Search(what {word})]." if begun < 3 else f"done {word}"], {}
        return super().written(prompt, kwargs)


class DecomposingLLM(HashLLM):
    """Makes a new question of what was answered before."""

    def written(self, prompt: str, kwargs: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
        if "New question:" in prompt:
            return [f"What of x{digest(prompt):08x}?"], {}
        return super().written(prompt, kwargs)


def engines(llm: Any) -> Iterator[tuple[Any, HashRetriever]]:
    """Give the host's engine and ours, each with the same parts of its own."""
    for ours in (False, True):
        store = HashRetriever(made_nodes())
        host = RetrieverQueryEngine.from_args(store, llm=llm, response_mode="simple_summarize")
        yield SpeculativeQueryEngine.wrap(host) if ours else host, store


def as_told(response: Any) -> tuple[str, list[str]]:
    return str(response), [one.node.get_content() for one in response.source_nodes]


@pytest.mark.parametrize("question", QUESTIONS[:2])
def test_flare_by_instruction_is_the_same_over_ours(question: str) -> None:
    """Text, sources and queries; it lists a source as often as it was found, ours each once."""
    told, asked = [], []
    for inner, store in engines(InstructedLLM()):
        made = FLAREInstructQueryEngine(inner, llm=InstructedLLM(), max_iterations=6)
        told.append(as_told(made.query(question)))
        asked.append(sorted(set(store.asked)))

    assert told[0] == told[1]
    assert asked[0] == asked[1]
    text, sources = told[0]
    assert text.count("Filled") == 3
    assert len(asked[0]) == 3
    assert question not in asked[0]  # it searches only what the model asks for
    assert len(sources) > len(set(sources))


@pytest.mark.parametrize("question", QUESTIONS[:2])
def test_multi_step_is_the_same_over_ours(question: str) -> None:
    """Text, sources and queries: each step's question is answered, the next made of the answer."""
    told, asked = [], []
    for inner, store in engines(DecomposingLLM()):
        made = MultiStepQueryEngine(
            inner,
            StepDecomposeQueryTransform(llm=DecomposingLLM()),
            get_response_synthesizer(llm=DecomposingLLM()),
            num_steps=3,
        )
        told.append(as_told(made.query(question)))
        asked.append(list(dict.fromkeys(store.asked)))

    assert told[0] == told[1]
    assert asked[0] == asked[1]
    assert len(asked[0]) == 3
    assert question not in asked[0]
    assert told[0][0]
    assert len(told[0][1]) >= 3
