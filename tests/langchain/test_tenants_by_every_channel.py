"""Whatever tells tenants apart: nothing of one reaches another's answer or prompt."""

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np
import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_core.callbacks import CallbackManager, CallbackManagerForRetrieverRun
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.language_models import FakeListLLM
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
from langchain_core.vectorstores import InMemoryVectorStore, VectorStoreRetriever
from langchain_ralmspec import SpeculativeRAG, SpeculativeRetriever

from ralmspec_plugins import FixedStride, QueryCache, SharedPassageCache

TENANTS = ("ada", "bob", "eve")
KEYS = (
    "tenant",
    "thread_id",
    "assistant_id",
    "run_id",
    "ls_user",
    "langgraph_user",
    "checkpoint_user",
    "__user",
)
CURRENT: ContextVar[str] = ContextVar("current", default="nobody")


class ByMetadata(BaseRetriever):
    """Gives the documents of the tenant that its run's metadata name."""

    key: str

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[Document]:
        who = run_manager.metadata.get(self.key, "default")
        return [Document(f"secret of {who}", id=who)]


def by_configurable(key: str) -> Runnable[str, list[Document]]:
    """Give the documents of the tenant that `configurable` names."""

    def find(query: str, config: RunnableConfig) -> list[Document]:
        who = config.get("configurable", {}).get(key, "default")
        return [Document(f"secret of {who}", id=who)]

    return RunnableLambda(find)


class PromptKeeper(FakeListLLM):
    """Keeps the prompts that it was given, dropped ones too."""

    prompts: list[str]

    def _call(self, prompt: str, *args: Any, **kwargs: Any) -> str:
        self.prompts.append(prompt)
        return super()._call(prompt, *args, **kwargs)


def config_of(channel: str, key: str, tenant: str) -> RunnableConfig:
    if channel == "metadata":
        return RunnableConfig(metadata={key: tenant})
    return RunnableConfig(configurable={key: tenant})


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    ("channel", "make"), [("metadata", ByMetadata), ("configurable", by_configurable)]
)
async def test_a_retriever_gives_each_tenant_its_own(
    channel: str, make: Callable[..., Runnable[Any, Any]], key: str
) -> None:
    """By metadata and by configurable, of any name, with a memo and a pool, sync and async."""
    sooner = SpeculativeRetriever(
        retriever=make(key=key), memo=QueryCache(), pool=SharedPassageCache()
    )
    for tenant in TENANTS * 2:
        config = config_of(channel, key, tenant)
        expected = [f"secret of {tenant}"]

        assert expected == [one.page_content for one in sooner.invoke("q", config)]
        assert expected == [one.page_content for one in await sooner.ainvoke("q", config)]
        assert [expected] * 2 == [
            [one.page_content for one in found] for found in sooner.batch(["q", "r"], config)
        ]


@pytest.mark.parametrize("speculate", [True, False])
@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    ("channel", "make"), [("metadata", ByMetadata), ("configurable", by_configurable)]
)
async def test_a_runnable_keeps_nothing_from_its_retriever(
    channel: str, make: Callable[..., Runnable[Any, Any]], key: str, speculate: bool
) -> None:
    """What a cache key leaves out is not kept from the call; no prompt has another's text."""
    llm = PromptKeeper(responses=["One. ", "Two. "], prompts=[])
    rag = SpeculativeRAG.from_llm(
        llm, make(key=key), workload="one_shot", speculate=speculate, memo=QueryCache()
    )
    for tenant in TENANTS * 2:
        llm.prompts.clear()
        config = config_of(channel, key, tenant)
        replies = [rag.invoke("q", config), await rag.ainvoke("q", config)]

        assert [[f"secret of {tenant}"]] * 2 == [
            [one.page_content for one in reply["context"]] for reply in replies
        ]
        assert llm.prompts
        assert not any(f"secret of {other}" in prompt for prompt in llm.prompts
                       for other in TENANTS if other != tenant)  # fmt: skip


class Filter:
    """A filter that is no function: lets through what belongs to the current tenant."""

    def __call__(self, document: Document) -> bool:
        return document.metadata["who"] == CURRENT.get()


class Other(VectorStoreRetriever):
    """A subclass of the host's own: it may do anything."""

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        kwargs["run_manager"] = run_manager
        return [one for one in super()._get_relevant_documents(query, **kwargs)
                if one.metadata["who"] == CURRENT.get()]  # fmt: skip


def a_store() -> InMemoryVectorStore:
    texts = [f"{who} keeps number {number}" for who in TENANTS for number in range(6)]
    metadatas = [{"who": text.split()[0]} for text in texts]
    return InMemoryVectorStore.from_texts(texts, DeterministicFakeEmbedding(size=8), metadatas)


def by_callable_object() -> BaseRetriever:
    return a_store().as_retriever(search_kwargs={"k": 2, "filter": Filter()})


def by_subclass() -> BaseRetriever:
    return Other(vectorstore=a_store(), search_kwargs={"k": 18})


def by_replaced_method() -> BaseRetriever:
    store = a_store()
    whole = store.similarity_search

    def mine(query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        found = whole(query, k=18, **kwargs)
        return [one for one in found if one.metadata["who"] == CURRENT.get()][:k]

    object.__setattr__(store, "similarity_search", mine)
    return store.as_retriever(search_kwargs={"k": 2})


@pytest.mark.parametrize("make", [by_callable_object, by_subclass, by_replaced_method])
def test_code_that_reads_the_context_shares_nothing_by_default(
    make: Callable[[], BaseRetriever],
) -> None:
    """A `ContextVar` says whose turn it is: no prompt, dropped ones too, has another's text."""
    llm = PromptKeeper(responses=["One. ", "Two. "], prompts=[])
    rag = SpeculativeRAG.from_llm(llm, make(), workload="one_shot", schedule=FixedStride(stride=2))
    for number in range(12):
        tenant = TENANTS[number % 3]
        CURRENT.set(tenant)
        llm.prompts.clear()
        reply = rag.invoke(f"question {number}")

        assert {one.metadata["who"] for one in reply["context"]} == {tenant}
        assert llm.prompts
        assert not any(f"{other} keeps" in prompt for prompt in llm.prompts
                       for other in TENANTS if other != tenant)  # fmt: skip


def test_a_thread_id_does_not_cut_a_known_store_off() -> None:
    """A store that is known reads no config: what one conversation found is another's guess."""
    store = a_store()
    sooner = SpeculativeRetriever(retriever=store.as_retriever(), memo=QueryCache())
    for thread in ("one", "two"):
        sooner.invoke("q", {"configurable": {"thread_id": thread}})

    assert sooner.stats.remembered == 1


class Same(BaseDocumentCompressor):
    """Passes all documents on."""

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Any = None
    ) -> Sequence[Document]:
        return documents


def test_metadata_of_the_run_around_it_keeps_calls_apart() -> None:
    """An outer retriever hands its metadata down through its callback manager alone."""
    inner = SpeculativeRetriever(retriever=ByMetadata(key="tenant"), memo=QueryCache())
    outer = ContextualCompressionRetriever(base_compressor=Same(), base_retriever=inner)
    found = [
        outer.invoke("q", {"metadata": {"tenant": who}})[0].page_content for who in TENANTS * 2
    ]

    assert [f"secret of {who}" for who in TENANTS * 2] == found


@pytest.mark.parametrize("speculate", [True, False])
def test_a_managers_metadata_and_limits_reach_the_retriever(speculate: bool) -> None:
    """`inheritable_metadata`, `max_concurrency` and `recursion_limit`, as in the plain chain."""
    seen: list[Any] = []

    def find(query: str, config: RunnableConfig) -> list[Document]:
        seen.append((config.get("max_concurrency"), config.get("recursion_limit")))
        return [Document("text")]

    llm = FakeListLLM(responses=["One."])
    limits = SpeculativeRAG.from_llm(
        llm, RunnableLambda(find), workload="one_shot", speculate=speculate
    )
    limits.invoke("q", {"max_concurrency": 3, "recursion_limit": 7})
    rag = SpeculativeRAG.from_llm(
        llm, ByMetadata(key="tenant"), workload="one_shot", speculate=speculate
    )
    found = [
        rag.invoke(
            "q",
            {"callbacks": CallbackManager(handlers=[], inheritable_metadata={"tenant": who})},
        )["context"][0].page_content
        for who in TENANTS
    ]

    assert {(3, 7)} == set(seen)
    assert [f"secret of {who}" for who in TENANTS] == found


class Marked(np.ndarray):
    """An array that says whose it is where no array does."""

    who: str


def marked(who: str) -> Marked:
    array = np.zeros(3).view(Marked)
    array.who = who
    return array


def in_another_order(who: str) -> dict[str, int]:
    return {who: 1, **dict.fromkeys((other for other in TENANTS if other != who), 1)}


@pytest.mark.parametrize("make", [marked, in_another_order])
def test_values_that_only_look_alike_keep_calls_apart(make: Callable[[str], Any]) -> None:
    """A black box may read of a value what no fingerprint does."""

    def find(query: str, config: RunnableConfig) -> list[Document]:
        user = config["configurable"]["user"]
        return [Document("secret of " + (next(iter(user)) if isinstance(user, dict) else user.who))]

    rag = SpeculativeRAG.from_llm(
        FakeListLLM(responses=["One."]), RunnableLambda(find), workload="one_shot",
        memo=QueryCache(),
    )  # fmt: skip
    found = [
        rag.invoke("q", {"configurable": {"user": make(who)}})["context"][0].page_content
        for who in TENANTS * 2
    ]

    assert [f"secret of {who}" for who in TENANTS * 2] == found


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("kind", ["store", "retriever", "parent"])
def test_a_method_replaced_on_a_class_is_run(
    kind: str, late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first call or after it: answers are those of the replaced method."""
    store = a_store()
    retriever = store.as_retriever(search_kwargs={"k": 18})
    rag = SpeculativeRAG.from_llm(
        PromptKeeper(responses=["One. "], prompts=[]), retriever, workload="one_shot"
    )
    if late:
        rag.invoke("before")
    owner, name = {
        "store": (InMemoryVectorStore, "similarity_search"),
        "retriever": (VectorStoreRetriever, "_get_relevant_documents"),
        "parent": (BaseRetriever, "invoke"),
    }[kind]
    whole = getattr(owner, name)

    def mine(self: Any, *args: Any, **kwargs: Any) -> list[Document]:
        found = whole(self, *args, **kwargs)
        return [one for one in found if one.metadata["who"] == CURRENT.get()]

    monkeypatch.setattr(owner, name, mine)
    for number in range(6):
        tenant = TENANTS[number % 3]
        CURRENT.set(tenant)
        reply = rag.invoke(f"question {number}")

        assert {one.metadata["who"] for one in reply["context"]} == {tenant}
