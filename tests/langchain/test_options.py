"""Options without a meaning are refused when the object is made, by name."""

from typing import Any

import pytest
from langchain_core.language_models import FakeListLLM
from langchain_core.prompts import PromptTemplate
from langchain_ralmspec import SpeculativeRAG, speculate

from ralmspec_plugins.errors import ConfigError
from tests.langchain.rag_parts import HashLLM, HashRetriever, documents
from tests.langchain.test_cases import Found, chain_of

WRONG: list[tuple[str, Any]] = [
    *(("max_tokens", one) for one in (0, -1, "5", 2.5, True)),
    *(("deadline_s", one) for one in (-1, 0, float("nan"), "1", True)),
    *(("stop", one) for one in ([""], ("",), ["a", ""], [1], 5)),
    *(("seed", one) for one in ("1", None, 1.5)),
    *(("memo", one) for one in (True, 5, "memo")),
    *(("pool", one) for one in (True, 5)),
    *(("speculate", one) for one in ("yes", 1, None)),
    *(("side_by_side", one) for one in (0, -1, "2")),
    *(("prefetch", one) for one in (0, "2", True)),
    *(("workload", one) for one in ("sentence", 5)),
    *(("batching", one) for one in ("always", True)),
    *(("schedule", one) for one in ("continuous", 3)),
    *(("sentence_stop", one) for one in ("", 5)),
    *(("output", one) for one in ("text", None)),
    *(("pure", one) for one in ("no", 0)),
    *(("prompt", one) for one in ("{context}", 5)),
    *(("retriever", one) for one in (None, "store", print)),
    *(("llm", one) for one in (None, "gpt")),
    *(("format_docs", one) for one in ("x", 5)),
    *(("replica", one) for one in (True, "x")),
    ("max_token", 5),
    ("k", 4),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_wrong_option_of_a_rag_is_refused_by_name(name: str, value: Any) -> None:
    """At once, as a `ConfigError`."""
    parts: dict[str, Any] = {"retriever": HashRetriever(documents=documents()), "llm": HashLLM()}
    SpeculativeRAG(**parts)

    with pytest.raises(ConfigError, match=name):
        SpeculativeRAG(**parts | {name: value})


@pytest.mark.parametrize(("name", "value"), [*WRONG[:16], ("k", 4), ("max_token", 5)])
def test_a_wrong_option_of_a_call_is_refused_by_name(name: str, value: Any) -> None:
    """Before anything is searched."""
    retriever = HashRetriever(documents=documents())
    rag = SpeculativeRAG(retriever=retriever, llm=HashLLM())

    with pytest.raises((ConfigError, TypeError), match=name):
        rag.invoke("q", **{name: value})
    assert retriever.asked == []


def test_options_of_a_chain_are_refused_too() -> None:
    """Those that `speculate()` passes on."""
    chain = chain_of(FakeListLLM(responses=["x"]))
    for name, value in (("memo", True), ("max_token", 4), ("max_tokens", 0)):
        with pytest.raises(ConfigError, match=name):
            speculate(chain, **{name: value})


def test_a_prompt_without_the_documents_is_refused() -> None:
    """With the variables that it has."""
    with pytest.raises(ConfigError, match="'context'"):
        SpeculativeRAG(
            retriever=Found(), llm=HashLLM(), prompt=PromptTemplate.from_template("{input}")
        )
