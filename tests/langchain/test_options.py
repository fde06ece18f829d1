"""Options without a meaning are refused when the object is made, by name."""

from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.language_models import FakeListLLM
from langchain_core.prompts import PromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_ralmspec import SpeculativeRAG, SpeculativeRetriever, speculate

from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.workloads import Interval
from tests.langchain.rag_parts import HashLLM, HashRetriever, called, documents, rag_of
from tests.langchain.test_cases import WAYS, Found, chain_of

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


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("memos", 1),
        ("k", True),
        *(("memo", one) for one in (True, 5)),
        ("pool", 5),
        *(("max_batch", one) for one in (0, "2", True, 2.0)),
        *(("lanes", one) for one in (0, "2", True)),
        *(("side_by_side", one) for one in (0, "2", None)),
        *(("pure", one) for one in ("no", 0)),
        *(("batching", one) for one in ("always", True)),
        *(("retriever", one) for one in (None, "store", print)),
    ],
)
def test_a_wrong_option_of_a_retriever_is_refused_by_name(name: str, value: Any) -> None:
    """The same for `SpeculativeRetriever`."""
    parts: dict[str, Any] = {"retriever": HashRetriever(documents=documents())}
    SpeculativeRetriever(**parts)

    with pytest.raises(ConfigError, match=name):
        SpeculativeRetriever(**parts | {name: value})


def test_a_wrong_class_is_one_sentence() -> None:
    """Pydantic has an error for each class that a field may have."""
    parts: dict[str, Any] = {"retriever": HashRetriever(documents=documents()), "llm": HashLLM()}
    with pytest.raises(ConfigError) as caught:
        SpeculativeRAG(**parts, schedule="continuous")

    assert str(caught.value) == (
        "SpeculativeRAG: schedule: it must be an instance of Continuous or OptimalStride or "
        "FixedStride, got 'continuous'"
    )


def test_an_unknown_option_names_the_one_that_was_meant() -> None:
    """Of both classes, of `speculate()`, and of a call."""
    retriever, llm = HashRetriever(documents=documents()), HashLLM()
    chain = chain_of(FakeListLLM(responses=["x"]))
    rag = SpeculativeRAG(retriever=retriever, llm=llm)
    for call in (
        lambda: SpeculativeRetriever(retriever=retriever, memos=1),
        lambda: SpeculativeRAG(retriever=retriever, llm=llm, memos=1),
        lambda: speculate(chain, memos=1),
    ):
        with pytest.raises(ConfigError, match=r"memos.*did you mean 'memo'"):
            call()
    with pytest.raises(ConfigError, match=r"max_token .*did you mean 'max_tokens'"):
        rag.invoke("q", max_token=5)
    with pytest.raises(ConfigError, match=r"colour .*known are deadline_s, max_tokens, seed, stop"):
        rag.invoke("q", colour=5)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "given", [{"max_token": 5}, {"max_tokens": 0}, {"stop": 3}, {"seed": 3}], ids=str
)
def test_a_call_is_checked_before_the_query_is_made(given: dict[str, Any], way: str) -> None:
    """The query may be a model's: a refused call costs nothing."""
    made: list[Any] = []

    def query(value: Any) -> str:
        made.append(value)
        return str(value["input"])

    rag = SpeculativeRAG(retriever=Found(), llm=HashLLM(), query=RunnableLambda(query))
    assert called(rag, {"input": "q"}, way)
    assert made.pop() == {"input": "q"}
    with pytest.raises((ConfigError, TypeError), match=next(iter(given))):
        called(rag.bind(**given), {"input": "q"}, way)

    assert made == []
    rag.close()


class Fake(BaseRetriever):
    """Fails where it is asked."""

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        raise AssertionError(query)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("name", "value"), [("max_tokens", 5), ("seed", 3)])
def test_what_would_have_no_effect_is_refused(name: str, value: Any, way: str) -> None:
    """With one call of the model as it is nothing reads these: of the runnable, or of a call."""
    parts: dict[str, Any] = {"retriever": Fake(), "llm": HashLLM(), "workload": "one_shot"}
    with pytest.raises(ConfigError, match=f"{name}.*llm.bind"):
        SpeculativeRAG(**parts, **{name: value})
    with pytest.raises(ConfigError, match=f"{name}.*llm.bind"):
        speculate(chain_of(HashLLM()), **{name: value})
    rag = SpeculativeRAG(**parts)
    with pytest.raises(ConfigError, match=f"{name}.*llm.bind"):
        called(rag.bind(**{name: value}), "q", way)
    rag.close()


@pytest.mark.parametrize(
    ("name", "value"), [("bound", "max_tokens"), ("continuation", "assistant")]
)
def test_settings_of_steps_are_refused_where_there_are_none(name: str, value: Any) -> None:
    """A call as it is, and a model that is driven by its tokens, take none of them."""
    for workload, direct in (("one_shot", False), ("interval", True)):
        with pytest.raises(ConfigError, match=name):
            SpeculativeRAG(
                retriever=Fake(), llm=HashLLM(), workload=workload, direct=direct, **{name: value}
            )


def test_what_has_an_effect_is_taken() -> None:
    """A bound of steps, a stop string of one call, the seed of a workload of one's own."""
    retriever = HashRetriever(documents=documents())
    rag = rag_of(HashLLM(), retriever, "one_shot")
    whole = rag.invoke("q")["answer"]
    mark = whole.split()[2]

    assert whole[: whole.index(mark)] == rag.invoke("q", stop=[mark])["answer"]
    loop = SpeculativeRAG(retriever=retriever, llm=HashLLM(), workload="interval")
    assert len(loop.invoke("q", max_tokens=8)["answer"].split()) == 8
    SpeculativeRAG(retriever=retriever, llm=HashLLM(), workload=Interval, seed=3)
    for one in (rag, loop):
        one.close()


def test_options_of_a_chain_are_refused_too() -> None:
    """Those that `speculate()` passes on."""
    chain = chain_of(FakeListLLM(responses=["x"]))
    for name, value in (("memo", True), ("max_token", 4), ("max_tokens", 0)):
        with pytest.raises(ConfigError, match=name):
            speculate(chain, **{name: value})


def test_a_prompt_without_the_documents_is_refused() -> None:
    """With the variables that it has, and the setting that names another one."""
    parts: dict[str, Any] = {"retriever": Found(), "llm": HashLLM(), "workload": "one_shot"}
    with pytest.raises(ConfigError, match="'context'"):
        SpeculativeRAG(**parts, prompt=PromptTemplate.from_template("{input}"))
    prompt = PromptTemplate.from_template("{facts} {input}")
    with pytest.raises(ConfigError, match="document_variable_name=") as caught:
        SpeculativeRAG(**parts, prompt=prompt)
    remedy = str(caught.value).split()[-1].removesuffix("=")

    rag = SpeculativeRAG(**parts, prompt=prompt, **{remedy: "facts"})
    assert rag.invoke("q")["answer"]
    rag.close()


def test_a_store_in_place_of_its_retriever_is_refused_with_the_remedy() -> None:
    """What a newcomer passes first."""
    store = InMemoryVectorStore(DeterministicFakeEmbedding(size=4))
    with pytest.raises(ConfigError, match=r"retriever: .*as_retriever\(\)"):
        SpeculativeRAG(retriever=store, llm=HashLLM())  # type: ignore[arg-type]
