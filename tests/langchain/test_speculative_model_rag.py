"""Both speculations at once: retrieval ahead of a model that drafts its tokens."""

import random
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_ralmspec import SpeculativeChatModel, SpeculativeLLM, SpeculativeRAG, speculate
from langchain_ralmspec.pipeline import side_effects_of

from ralmspec_plugins import FixedStride, SharedPassageCache
from ralmspec_plugins.decoding import Decoding
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.testing.models import tiny_llama
from tests.drafted_models import Repeating, chat_tokenizer, drafting
from tests.langchain.rag_parts import plain_values
from tests.langchain.stores.worlds import WordEmbeddings
from tests.langchain.test_local_model import chat, made

pytestmark = pytest.mark.filterwarnings(
    "ignore:.langchain-community. is being sunset:DeprecationWarning"
)
TEXT = PromptTemplate.from_template("Read:\n{context}\nNow: {input}\n")
CHAT = ChatPromptTemplate.from_messages([("system", "Read: {context}!"), ("user", "{input}")])
TEXTS = [f"the ships that passed {number} storms" for number in range(12)]
QUESTIONS = ["where?", "are 3 storms passed"]


def rag_over(llm: Any, prompt: Any, **settings: Any) -> SpeculativeRAG:
    store = InMemoryVectorStore.from_texts(TEXTS, WordEmbeddings(), ids=TEXTS)
    retriever = store.as_retriever(search_kwargs={"k": 1})
    given: dict[str, Any] = {"max_tokens": 24, "report": True, **settings}
    if settings.get("workload") == "one_shot":  # its one call is as long as the model is told
        del given["max_tokens"]
    return SpeculativeRAG(retriever=retriever, llm=llm, prompt=prompt, **given)


def own(kind: Any, **settings: Any) -> Any:
    return kind(model=tiny_llama(), tokenizer=chat_tokenizer(), **{"max_tokens": 24, **settings})


def check_equal(fast: SpeculativeRAG, plain: SpeculativeRAG) -> list[Any]:
    """Ask both, the fast one twice: then its drafter knows the texts."""
    replies = []
    for question in QUESTIONS:
        expected, first, again = (
            plain.invoke(question),
            fast.invoke(question),
            fast.invoke(question),
        )
        streamed = "".join(piece.get("answer", "") for piece in fast.stream(question))

        assert expected["answer"]
        assert [expected["answer"]] * 3 == [first["answer"], again["answer"], streamed]
        for one in (first, again):
            assert plain_values(expected["context"]) == plain_values(one["context"])
        replies.append(again)
    return replies


@pytest.mark.parametrize(
    ("workload", "options"),
    [
        ("interval", {}),
        ("interval", {"temperature": 1.2, "seed": 5}),
        ("sentences", {"temperature": 1.2}),
        ("one_shot", {}),
    ],
)
@pytest.mark.parametrize(("kind", "prompt"), [(SpeculativeLLM, TEXT), (SpeculativeChatModel, CHAT)])
def test_answers_by_the_hosts_calls_are_the_plain_loops(
    kind: Any, prompt: Any, workload: Any, options: dict[str, Any]
) -> None:
    """A chat model continues its own message; calls are made on guesses, and tokens drafted."""
    plain = rag_over(own(kind, drafter=None, **options), prompt, workload=workload, speculate=False)
    llm = own(kind, decoding=drafting(Repeating()), **options)
    settings: Any = {"workload": workload, "schedule": FixedStride(stride=2)}
    settings["pool"] = SharedPassageCache()
    with_both = check_equal(rag_over(llm, prompt, **settings), plain)

    assert llm.stats.drafts_accepted > 5
    if workload == "interval":
        stats = [one["ralmspec"]["stats"] for one in with_both]
        assert sum(one["guesses"] for one in stats) > 0, [one["unguessed"] for one in stats]


def test_numbers_that_others_draw_do_not_end_speculation() -> None:
    """The package's own model draws none: those of a handler, or of a thread, are not its own."""

    class Draws(BaseCallbackHandler):
        def on_llm_start(self, *_: Any, **__: Any) -> None:
            random.random()

    settings: Any = {"schedule": FixedStride(stride=2), "pool": SharedPassageCache()}
    rag = rag_over(own(SpeculativeLLM, drafter=None), TEXT, **settings)
    replies = [rag.invoke(QUESTIONS[0], {"callbacks": [Draws()]}) for _ in range(2)]
    stats = replies[-1]["ralmspec"]["stats"]  # by then the cache has passages

    assert stats["guesses"] > 0, stats["unguessed"]


def test_a_model_derived_from_it_is_watched() -> None:
    """Its own code may do anything."""

    class Derived(SpeculativeLLM):
        pass

    assert side_effects_of(own(SpeculativeLLM)) is None
    assert side_effects_of(own(Derived)) is not None


@pytest.mark.parametrize("options", [{}, {"temperature": 1.2}])
@pytest.mark.parametrize(("kind", "prompt"), [(SpeculativeLLM, TEXT), (SpeculativeChatModel, CHAT)])
def test_answers_of_our_model_driven_directly_are_the_plain_loops(
    kind: Any, prompt: Any, options: dict[str, Any]
) -> None:
    """Its drafter and its way of choosing tokens go with it, those bound to its calls, too."""
    settings: Any = {"direct": True, "seed": 3}
    llm = own(kind, decoding=drafting(Repeating())).bind(**options)
    plain = rag_over(own(kind, drafter=None, **options), prompt, speculate=False, **settings)
    replies = check_equal(rag_over(llm, prompt, schedule=FixedStride(stride=2), **settings), plain)
    stats = [one["ralmspec"]["stats"] for one in replies]

    assert sum(one["drafts_accepted"] for one in stats) > 5
    assert sum(one["guesses"] for one in stats) > 0


@pytest.mark.parametrize(("wrapped", "prompt"), [(lambda llm: llm, TEXT), (chat, CHAT)])
def test_a_pipelines_tokens_are_speculated_on(wrapped: Any, prompt: Any) -> None:
    """With `decoding`; copies that the host makes share what was measured."""
    llm = wrapped(made())
    settings: Any = {"direct": True, "decoding": drafting(Repeating())}
    plain = rag_over(llm, prompt, direct=True, speculate=False)
    fast = rag_over(llm, prompt, schedule=FixedStride(stride=2), **settings)
    stats = [one["ralmspec"]["stats"] for one in check_equal(fast, plain)]
    copied = fast.model_copy(update={"max_tokens": 12})

    assert sum(one["drafts_accepted"] for one in stats) > 5
    assert 0 == plain.invoke(QUESTIONS[0])["ralmspec"]["stats"]["drafts_accepted"]
    assert fast._assembly._workload.lm is SpeculativeRAG(
        **{name: getattr(copied, name) for name in type(copied).model_fields}
    )._assembly._workload.lm  # fmt: skip


def test_a_chain_with_it_is_speculated_on() -> None:
    """`speculate()` of a chain over it: one retrieval, and the chain's own answer."""
    store = InMemoryVectorStore.from_texts(TEXTS, WordEmbeddings(), ids=TEXTS)
    retriever = store.as_retriever(search_kwargs={"k": 1})
    from langchain_core.output_parsers import StrOutputParser
    from langchain_core.runnables import RunnablePassthrough

    def chain(llm: Any) -> Any:
        given = {"context": retriever, "input": RunnablePassthrough()}
        return given | TEXT | llm | StrOutputParser()

    plain = chain(own(SpeculativeLLM, drafter=None, max_tokens=12))
    fast = speculate(chain(own(SpeculativeLLM, decoding=drafting(Repeating()), max_tokens=12)))
    expected = [plain.invoke(one) for one in QUESTIONS]

    assert all(expected)
    assert expected == [fast.invoke(one) for one in QUESTIONS]


def test_what_cannot_be_kept_to_is_refused() -> None:
    """Two drafters, a drafter that nobody asks, and settings of calls that are not made."""
    llm = own(SpeculativeLLM, drafter=None)
    for model, settings, message in (
        (llm, {"decoding": Decoding()}, "decoding needs direct=True"),
        (llm, {"direct": True, "decoding": Decoding()}, "which has its own drafter"),
        (llm, {"direct": True, "decoding": 3}, "must be a Decoding or None, got 3"),
        (llm.bind(stop=["x"]), {"direct": True}, "stop and deadline_s of the SpeculativeLLM"),
    ):
        with pytest.raises(ConfigError, match=message):
            rag_over(model, TEXT, **settings)
    with pytest.raises(TypeError, match="did you mean 'max_tokens'"):
        rag_over(llm.bind(max_token=3), TEXT, direct=True)
