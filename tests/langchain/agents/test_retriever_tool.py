"""Retriever tools that guess: the host's tool, and no guess from another user."""

import asyncio
from contextvars import ContextVar
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.retrievers import BaseRetriever
from langchain_core.tools import create_retriever_tool
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_ralmspec import speculative_tool

from ralmspec_plugins import SharedPassageCache
from ralmspec_plugins.errors import ConfigError

user = ContextVar("user", default="nobody")
CALL = {"args": {"query": "q"}, "name": "search", "id": "1", "type": "tool_call"}


class Secrets(BaseRetriever):
    """Finds what belongs to the current user."""

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        return [Document(f"secret of {user.get()}", id=user.get())]


class Tuples(BaseRetriever):
    """Returns a tuple."""

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> Any:
        return (Document("one"),)


class Ends(BaseRetriever):
    """Raises the end of an iteration."""

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> Any:
        raise StopIteration("ended")


def store() -> InMemoryVectorStore:
    made = InMemoryVectorStore(DeterministicFakeEmbedding(size=8))
    made.add_texts(["ann's", "bob's"], ids=["ann", "bob"])
    return made


def filtered() -> Any:
    return store().as_retriever(search_kwargs={"filter": lambda one: one.id == user.get()})


@pytest.mark.parametrize("retriever", [Secrets, filtered])
def test_what_one_user_found_is_no_guess_for_another(retriever: Any) -> None:
    """Where code of a user's own decides what is found; a pool of the caller's is used."""
    alone, shared = (
        speculative_tool(retriever(), pool=pool) for pool in (None, SharedPassageCache())
    )
    token = user.set("ann")
    found = [tool.invoke({"query": "q"}) for tool in (alone, shared)]
    user.set("bob")
    guesses = alone.guess_call(CALL), asyncio.run(alone.aguess_call(CALL))
    user.reset(token)

    assert "ann" in found[0]
    assert found[0] == found[1]
    assert (None, None) == guesses


def test_a_known_store_has_a_pool() -> None:
    """The second question is guessed."""
    tool = speculative_tool(store().as_retriever(search_kwargs={"k": 1}))
    found = tool.invoke({"query": "q"})

    assert found
    assert found == tool.guess_call(CALL)


class Heard(BaseCallbackHandler):
    """Notes events of tools and retrievers."""

    run_inline = True

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def on_retriever_start(self, serialized: Any, query: str, **about: Any) -> None:
        self.heard.append(("search", about.get("name"), query))

    def on_retriever_end(self, documents: Any, **about: Any) -> None:
        self.heard.append(("found", [one.page_content for one in documents]))

    def on_retriever_error(self, error: BaseException, **about: Any) -> None:
        self.heard.append(("failed", repr(error)))

    def on_tool_end(self, output: Any, **about: Any) -> None:
        self.heard.append(("told", output.content))


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
@pytest.mark.parametrize(
    "retriever",
    [
        lambda: store().as_retriever(),
        Tuples,
        Ends,
        lambda: store().as_retriever().with_retry(),
        lambda: Ends().with_fallbacks([Tuples()]),
        lambda: store().as_retriever() | (lambda documents: documents[:1]),
    ],
)
def test_the_tool_is_the_hosts(retriever: Any, way: str) -> None:
    """Message, artifact, events and errors, twice."""
    given, outcomes = retriever(), []
    about = {"response_format": "content_and_artifact"}
    plain: Any = create_retriever_tool(given, "search", "Finds.", **about)  # type: ignore[arg-type]
    for tool in (plain, speculative_tool(given, "search", "Finds.")):
        for _ in range(2):
            heard = Heard()
            config: Any = {"callbacks": [heard]}
            try:
                if way == "invoke":
                    message = tool.invoke(CALL, config)
                else:
                    message = asyncio.run(tool.ainvoke(CALL, config))
                outcomes.append((message.content, repr(list(message.artifact)), heard.heard))
            except Exception as error:
                outcomes.append((repr(error), "", heard.heard))

    assert all(outcomes[0][::2])
    assert outcomes[:2] == outcomes[2:]


@pytest.mark.parametrize(
    "wrong",
    [
        {"replica": 5},
        {"document_separator": 5},
        {"document_prompt": "x"},
        {"name": 5},
        {"memo": {}},
        {"pool": 5},
        {"kk": 5},
    ],
)
def test_arguments_are_checked_at_once(wrong: Any) -> None:
    """With what was got."""
    with pytest.raises(ConfigError, match=r"must be|should be|not an option"):
        speculative_tool(store().as_retriever(), **wrong)
