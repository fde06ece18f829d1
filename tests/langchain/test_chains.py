"""`speculate(chain)`: what users have already, taken over exactly or refused clearly."""

from collections.abc import Callable
from operator import itemgetter
from typing import Any

import pytest
from langchain_classic.chains import create_history_aware_retriever, create_retrieval_chain
from langchain_classic.chains.combine_documents import create_stuff_documents_chain
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.language_models import BaseLLM, GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import JsonOutputParser, StrOutputParser
from langchain_core.outputs import Generation, LLMResult
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import (
    Runnable,
    RunnableConfig,
    RunnableLambda,
    RunnableParallel,
    RunnablePassthrough,
)
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_ralmspec import SpeculativeChain, SpeculativeRAG, speculate

from ralmspec_plugins import QueryCache
from ralmspec_plugins.errors import ConfigError
from tests.langchain.rag_parts import called
from tests.langchain.test_cases import answer_of

PROMPT = PromptTemplate.from_template("{context} ? {question} !")


class Parrot(BaseLLM):
    """Says what it was given, backwards: so that every character of a prompt counts."""

    @property
    def _llm_type(self) -> str:
        return "parrot"

    def _generate(self, prompts: list[str], *args: Any, **kwargs: Any) -> LLMResult:
        return LLMResult(generations=[[Generation(text=prompt[::-1])] for prompt in prompts])


def show(documents: list[Document]) -> str:
    """Show documents in a way of its own."""
    return " / ".join(document.page_content.upper() for document in documents)


async def ashow(documents: list[Document]) -> str:
    """Show them in another way."""
    return "?"


def shown_to(documents: list[Document], config: RunnableConfig) -> str:
    """Show them to somebody."""
    return f"{config['tags']}: {show(documents)}"


def rephrased(value: Any) -> Any:
    """Do what LangChain's documentation does: take the question, but not always."""
    if value.get("chat_history"):
        return RunnableLambda(lambda _: "whale")
    return value["question"]


@pytest.fixture
def retriever() -> BaseRetriever:
    texts = ["red fox", "blue whale", "green frog", "grey wolf", "white swan"]
    store = InMemoryVectorStore.from_texts(texts, DeterministicFakeEmbedding(size=16))
    return store.as_retriever(search_kwargs={"k": 3})


@pytest.mark.parametrize("separator", ["\n\n", " | "])
@pytest.mark.parametrize("question", ["fox", "", "wölfe 🐺"])
def test_a_retrieval_chain_gives_what_it_gave(
    retriever: BaseRetriever, separator: str, question: str
) -> None:
    """Every key of `create_retrieval_chain`'s reply is the same, extra inputs included."""
    prompt = ChatPromptTemplate.from_messages(
        [
            ("system", "In {language}: {context}"),
            ("placeholder", "{chat_history}"),
            ("user", "{input}"),
        ]
    )
    shown = PromptTemplate.from_template("<{page_content}>")
    combine = create_stuff_documents_chain(
        Parrot(), prompt, document_prompt=shown, document_separator=separator
    )
    chain = create_retrieval_chain(retriever, combine)
    value = {"input": question, "language": "French", "chat_history": [("ai", "hello")]}
    ours = speculate(chain)

    assert isinstance(ours, SpeculativeRAG)
    assert chain.invoke(value) == ours.invoke(value)
    assert ours.get_name() == "retrieval_chain"


async def test_it_gives_the_same_asynchronously_and_in_pieces(retriever: BaseRetriever) -> None:
    """`ainvoke` and the sum of `astream` too."""
    prompt = PromptTemplate.from_template("{context} ? {input}")
    chain = create_retrieval_chain(retriever, create_stuff_documents_chain(Parrot(), prompt))
    ours = speculate(chain)
    pieces = [piece async for piece in ours.astream({"input": "fox"})]
    total = pieces[0]
    for piece in pieces[1:]:
        total = total + piece

    assert await chain.ainvoke({"input": "fox"}) == await ours.ainvoke({"input": "fox"})
    assert chain.invoke({"input": "fox"}) == total


def _idioms(retriever: BaseRetriever) -> dict[str, tuple[Runnable[Any, Any], Any]]:
    end = PROMPT | Parrot() | StrOutputParser()
    key = itemgetter("question")
    return {
        "passed through": (
            {"context": retriever | show, "question": RunnablePassthrough()} | end,
            "fox",
        ),
        "as python shows it": (
            {"context": retriever, "question": RunnablePassthrough()} | end,
            "fox",
        ),
        "a dict": ({"context": key | retriever | show, "question": key} | end, {"question": "fox"}),
        "a lambda": (
            {"context": (lambda x: x["question"]) | retriever | show, "question": key} | end,
            {"question": "fox"},
        ),
        "assigned": (
            RunnablePassthrough.assign(context=key | retriever | show) | end,
            {"question": "fox", "unused": 3},
        ),
        "another name": (
            {"docs": retriever | show, "q": RunnablePassthrough()}
            | PromptTemplate.from_template("{docs}: {q}")
            | Parrot()
            | StrOutputParser(),
            "fox",
        ),
        "more inputs": (
            {"context": key | retriever | show, "question": key, "tone": itemgetter("tone")}
            | PromptTemplate.from_template("{context} {tone} {question}")
            | Parrot()
            | StrOutputParser(),
            {"question": "fox", "tone": "dry"},
        ),
        "a bound retriever": (
            {
                "context": retriever.with_config(run_name="find") | show,
                "question": RunnablePassthrough(),
            }
            | end,
            "fox",
        ),
        "a parser": (
            {"context": retriever | show, "question": RunnablePassthrough()}
            | PROMPT
            | GenericFakeChatModel(messages=iter([AIMessage('{"a": [1]}')] * 9))
            | JsonOutputParser(),
            "fox",
        ),
    }


IDIOMS = (
    *("passed through", "as python shows it", "a dict", "a lambda", "assigned", "another name"),
    *("more inputs", "a bound retriever", "a parser"),
)


@pytest.mark.parametrize("idiom", IDIOMS)
def test_an_idiom_of_the_documentation_gives_what_it_gave(
    retriever: BaseRetriever, idiom: str
) -> None:
    """Chains written with `|` are understood, and give the answer alone, as they did."""
    chain, value = _idioms(retriever)[idiom]
    expected = chain.invoke(value)
    ours = speculate(chain)

    assert ours.invoke(value) == expected
    pieces = list(ours.stream(value))
    assert expected == ("".join(pieces) if isinstance(expected, str) else pieces[-1])


def test_settings_are_taken_over(retriever: BaseRetriever) -> None:
    """What is asked for besides wins."""
    chain, _ = _idioms(retriever)["passed through"]
    ours = speculate(chain, speculate=False, name="mine", output="reply")

    assert (ours.speculate, ours.get_name(), ours.workload) == (False, "mine", "one_shot")
    assert ours.invoke("fox")["answer"] == chain.invoke("fox")


def _in_order(given: dict[str, Any]) -> str:
    """Show a dictionary whose keys a stream may have found in another order."""
    return str(sorted(given.items()))


def _strange(retriever: BaseRetriever) -> dict[str, tuple[Runnable[Any, Any], Any]]:
    end = PROMPT | Parrot() | StrOutputParser()
    question = RunnablePassthrough()
    begin = {"context": retriever | show, "question": question}
    history = ChatPromptTemplate.from_messages(
        [("placeholder", "{chat_history}"), ("user", "{input}")]
    )
    aware = create_history_aware_retriever(Parrot(), retriever, history)
    stuff = create_stuff_documents_chain(Parrot(), PromptTemplate.from_template("{context}{input}"))
    turns = {"input": "fox", "chat_history": [("ai", "hello")]}
    return {
        "two steps before": (
            {"context": RunnableLambda(str) | str | retriever | show, "question": question} | end,
            "fox",
        ),
        "a changed question": (
            {"context": RunnableLambda(str.upper) | retriever | show, "question": question} | end,
            "fox",
        ),
        "a conditional": (
            {"context": RunnableLambda(rephrased) | retriever | show, "question": question} | end,
            {"question": "fox", "chat_history": [1]},
        ),
        "two functions": (
            {"context": retriever | RunnableLambda(show, afunc=ashow), "question": question} | end,
            "fox",
        ),
        "a function of the config": (
            {"context": retriever | RunnableLambda(shown_to), "question": question} | end,
            "fox",
        ),
        "another question": ({**begin, "question": RunnableLambda(str.upper)} | end, "fox"),
        "no parser": (begin | PROMPT | Parrot(), "fox"),
        "something behind": (begin | end | RunnableLambda(str.strip), "fox"),
        "no prompt": (begin | RunnableLambda(_in_order) | Parrot() | StrOutputParser(), "fox"),
        "no model": (begin | PROMPT | RunnableLambda(str) | StrOutputParser(), "fox"),
        "bound": ((begin | end).with_config(tags=["mine"]), "fox"),
        "listened to": ((begin | end).with_listeners(on_start=print).with_retry(), "fox"),
        "mustache": (
            {"context": retriever, "question": question}
            | PromptTemplate.from_template(
                "{{#context}}{{page_content}},{{/context}}{{question}}", template_format="mustache"
            )
            | Parrot()
            | StrOutputParser(),
            "fox",
        ),
        "assigned beside": (
            RunnablePassthrough.assign(
                context=itemgetter("question") | retriever | show, more=lambda x: len(x)
            )
            | PromptTemplate.from_template("{context} {question} {more}")
            | Parrot()
            | StrOutputParser(),
            {"question": "fox"},
        ),
        "history": (create_retrieval_chain(aware, stuff), turns),
        "own combination": (
            create_retrieval_chain(retriever, RunnableLambda(lambda x: str(sorted(x)))),
            {"input": "fox"},
        ),
        "sources reranked": (
            RunnableParallel(
                context=itemgetter("q") | retriever | (lambda found: found[::-1]),
                question=itemgetter("q"),
            ).assign(answer=RunnablePassthrough.assign(context=lambda x: show(x["context"])) | end),
            {"q": "fox"},
        ),
    }


STRANGE = (
    *("two steps before", "a changed question", "a conditional", "two functions", "no parser"),
    *("a function of the config", "another question", "something behind", "no prompt", "no model"),
    *("bound", "listened to", "mustache", "assigned beside", "history", "own combination"),
    "sources reranked",
)


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream", "batch", "abatch"])
@pytest.mark.parametrize("shape", STRANGE)
def test_what_is_not_known_is_called_as_it_is(
    retriever: BaseRetriever, shape: str, way: str
) -> None:
    """What stands around the retriever is the chain's own, with the real input and documents."""
    chain, value = _strange(retriever)[shape]
    config = {"tags": ["somebody"]}
    expected = answer_of(chain, value, way, config)
    ours = speculate(chain)
    for _ in range(2):  # the second one has guesses
        assert expected == answer_of(ours, value, way, config)
    assert expected


def test_missing_inputs_raise_what_they_raised(retriever: BaseRetriever) -> None:
    """The host's own errors, with the names that the host lists."""
    key = itemgetter("question")
    end = PROMPT | Parrot() | StrOutputParser()
    for chain in (
        {"context": key | retriever | show, "question": key} | end,
        {"context": key | retriever | show} | end,
        {"context": key | retriever | show, "question": itemgetter("other")} | end,
        RunnablePassthrough.assign(context=key | retriever | show) | end,
    ):
        for value in ({"input": "fox"}, {"question": "fox"}, {"question": "fox", "other": "?"}):
            outcomes = []
            for runnable in (chain, speculate(chain)):
                try:
                    outcomes.append(runnable.invoke(value))
                except KeyError as error:
                    outcomes.append(str(error))
            assert outcomes[0] == outcomes[1]


def _refused(retriever: BaseRetriever) -> dict[str, tuple[Runnable[Any, Any], str]]:
    end = PROMPT | Parrot() | StrOutputParser()
    begin = {"context": retriever | show, "question": RunnablePassthrough()}
    chat = GenericFakeChatModel(messages=iter([AIMessage("x")]))
    return {
        "no retriever": (
            {"context": RunnableLambda(str), "question": RunnablePassthrough()} | end,
            "a key with a retriever",
        ),
        "a model alone": (Parrot(), "its first step"),
        "a message": (begin | PROMPT | chat, "StrOutputParser"),
        "arguments": ((begin | end).bind(stop=["x"]), "stop"),
        "a computed source": (
            RunnableParallel(context=retriever, question=RunnableLambda(str)).assign(answer=end),
            "'question'",
        ),
        "nothing behind": (RunnableParallel(begin), "prompt | model | parser"),
        "a retriever alone": (retriever, "SpeculativeRetriever(retriever=...)"),
        "in a function": ({"context": lambda _: retriever.invoke("q")} | end, "inside a function"),
    }


REFUSED = (
    *("no retriever", "a model alone", "a message", "arguments", "a computed source"),
    *("nothing behind", "a retriever alone", "in a function"),
)


@pytest.mark.parametrize("shape", REFUSED)
def test_what_cannot_be_taken_apart_is_refused_by_name(
    retriever: BaseRetriever, shape: str
) -> None:
    """Nothing that is only similar is taken for an equivalent."""
    chain, named = _refused(retriever)[shape]

    with pytest.raises(ConfigError, match="speculate") as caught:
        speculate(chain)
    assert named in str(caught.value)


def test_a_chain_that_is_called_as_it_is_is_called_once(retriever: BaseRetriever) -> None:
    """Another workload needs prompt and model; the error says so."""
    chain, _ = _strange(retriever)["no parser"]
    with pytest.raises(ConfigError, match="workload='one_shot'"):
        speculate(chain, workload="sentences")


WRAPPINGS: dict[str, Callable[[Any], Any]] = {
    "retry": lambda chain: chain.with_retry(),
    "fallbacks": lambda chain: chain.with_fallbacks([RunnableLambda(str)]),
    "config": lambda chain: chain.with_config(tags=["mine"]),
    "listeners": lambda chain: chain.with_listeners(on_end=lambda _: None),
    "all": lambda chain: (
        chain.with_retry().with_config(tags=["mine"]).with_fallbacks([RunnableLambda(str)])
    ),
    "around ours": lambda chain: chain,
}


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream", "batch", "abatch"])
@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_what_is_made_of_a_chain_in_wrappings_has_the_handles(
    retriever: BaseRetriever, wrapping: str, way: str
) -> None:
    """`stats`, `invalidate()` and `close()`, through whatever is around it, or put there later."""
    chain = WRAPPINGS[wrapping](_idioms(retriever)["passed through"][0])
    ours: Any = speculate(chain, memo=QueryCache())
    if wrapping == "around ours":
        ours = SpeculativeChain(bound=ours).with_retry().with_config(tags=["more"])
    for _ in range(2):
        assert called(chain, "fox", way) == called(ours, "fox", way)
    assert ours.stats.queries == 1
    ours.invalidate()
    assert called(chain, "fox", way) == called(ours, "fox", way)
    assert ours.stats.queries == 2
    assert isinstance(ours, SpeculativeChain)
    assert ours.stats == ours.rag.stats
    ours.close()
