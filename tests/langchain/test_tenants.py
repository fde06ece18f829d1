"""Black boxes for many tenants: what names them, and that nobody is shown what is another's."""

from contextvars import ContextVar
from typing import Any

import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever, EnsembleRetriever
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_ralmspec import SpeculativeRetriever
from langchain_ralmspec.host_retriever import HostRetriever
from pydantic import PrivateAttr

from ralmspec_plugins import FixedStride, QueryCache, SharedPassageCache
from tests.langchain.conftest import BLACK_BOXES, WordSearch, black_box
from tests.langchain.rag_parts import QUESTIONS, HashLLM, rag_of
from tests.langchain.stores.worlds import WordEmbeddings

TENANT: ContextVar[str] = ContextVar("tenant", default="ada")
EAGER: dict[str, Any] = {"workload": "interval", "schedule": FixedStride(stride=3)}


def secrets(tenant: str) -> list[Document]:
    """List what belongs to a tenant."""
    return [Document(f"secret {at} of {tenant}", id=f"{tenant}{at}") for at in range(2)]


class LoggedIn(BaseRetriever):
    """Finds what belongs to whoever has logged in."""

    _user: str = PrivateAttr(default="ada")

    def login(self, user: str) -> None:
        """Let somebody in, and the one before out."""
        self._user = user

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[Document]:
        return secrets(self._user)


class Plain(Runnable[str, list[Document]]):
    """The same, as a runnable that is no model of pydantic's."""

    def __init__(self) -> None:
        self.user = "ada"

    def login(self, user: str) -> None:
        """Let somebody in, and the one before out."""
        self.user = user

    def invoke(
        self,
        input: str,  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        return secrets(self.user)


class FromContext(LoggedIn):
    """Reads in a `ContextVar` who asks."""

    def login(self, user: str) -> None:
        """Set it."""
        TENANT.set(user)

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[Document]:
        return secrets(TENANT.get())


class Only(BaseDocumentCompressor):
    """Keeps what belongs to one user."""

    _user: str = PrivateAttr(default="ada")

    def compress_documents(self, documents: Any, query: str, callbacks: Any = None) -> Any:
        return [one for one in documents if one.page_content.endswith(self._user)]


@pytest.mark.parametrize("kind", [LoggedIn, FromContext, Plain])
def test_no_tenant_sees_anothers_documents_in_a_prompt(kind: Any) -> None:
    """Not even a prompt that is thrown away later shows them."""
    retriever, llm = kind(), HashLLM()
    rag = rag_of(llm, retriever, **EAGER)
    for tenant in ("ada", "bob", "ada", "cid"):
        retriever.login(tenant)
        before = len(llm.prompts)
        for question in QUESTIONS[:2]:
            rag.invoke(question)
        prompts = llm.prompts[before:]
        others = {"ada", "bob", "cid"} - {tenant}

        assert prompts
        assert all(f"of {tenant}" in one for one in prompts)
        assert not any(f"of {other}" in one for one in prompts for other in others)


@pytest.mark.parametrize("kind", [LoggedIn, Plain])
@pytest.mark.parametrize("layer", ["rag", "retriever"])
def test_a_memo_follows_a_login(kind: Any, layer: str) -> None:
    """What was set by a method, under a name of its own, is part of what is remembered."""
    inner, memo = kind(), QueryCache()
    ours: Any = SpeculativeRetriever(retriever=inner, memo=memo)
    if layer == "rag":
        ours = rag_of(HashLLM(), inner, "one_shot", memo=memo)
    found = []
    for tenant in ("ada", "bob", "ada"):
        inner.login(tenant)
        given = ours.invoke("q")
        documents = given["context"] if layer == "rag" else given
        found.append({one.id[:3] for one in documents})

    assert [{"ada"}, {"bob"}, {"ada"}] == found
    assert memo.size == 2


def test_parts_of_a_black_box_count(store: InMemoryVectorStore) -> None:
    """What a compressor or an inner retriever hides in private is part of the name."""
    inner, only = LoggedIn(), Only()
    compressed = ContextualCompressionRetriever(base_retriever=inner, base_compressor=only)
    outer = EnsembleRetriever(
        retrievers=[store.as_retriever(), compressed | RunnableLambda(list)], weights=[0.5, 0.5]
    )
    hosts = [HostRetriever(one) for one in (compressed, outer)]
    seen = [host.signature for host in hosts]
    inner.login("bob")
    seen += [host.signature for host in hosts]
    only._user = "bob"
    seen += [host.signature for host in hosts]

    assert len(set(seen)) == len(seen)


def test_an_embedder_that_counts_is_the_same_one() -> None:
    """Embedders, models and stores are only themselves: their own counters do not matter."""

    class Holding(WordSearch):
        embedder: Any

        def _get_relevant_documents(
            self, query: str, *, run_manager: CallbackManagerForRetrieverRun
        ) -> list[Document]:
            self.embedder.embed_query(query)
            return super()._get_relevant_documents(query, run_manager=run_manager)

    embedder = WordEmbeddings()
    host = HostRetriever(Holding(documents=[Document("river")], embedder=embedder))
    before = host.signature
    host.search([host.encode("river")])

    assert embedder.queries == 1
    assert before == host.signature


def test_code_of_others_may_read_whose_turn_it_is(store: InMemoryVectorStore) -> None:
    """All but exactly the host's own retriever over exactly a known store, with plain settings."""
    plain = store.as_retriever()
    others: list[Runnable[Any, Any]] = [
        LoggedIn(),
        Plain(),
        RunnableLambda(lambda _: []),
        RunnableLambda(lambda text: text) | plain,
        store.as_retriever(search_kwargs={"filter": lambda _: True}),
        ContextualCompressionRetriever(base_retriever=plain, base_compressor=Only()),
    ]
    assert [False] * 6 == [HostRetriever(one).look().hosts_own for one in others]
    hosts = {name: HostRetriever(black_box(name)).look().hosts_own for name in BLACK_BOXES}
    assert dict.fromkeys(BLACK_BOXES, False) == hosts
    ensemble = EnsembleRetriever(retrievers=[plain, black_box("bm25")], weights=[0.5, 0.5])
    assert not HostRetriever(ensemble).look().hosts_own
    assert HostRetriever(plain).look().hosts_own
    assert HostRetriever(store.as_retriever(search_type="mmr")).look().hosts_own


def test_a_shared_pool_that_was_given_stays() -> None:
    """Who gives one says that it may be shared: a second call guesses with the first one's."""
    guesses = []
    for pool in ({}, {"pool": SharedPassageCache()}):
        rag = rag_of(HashLLM(), FromContext(), "one_shot", schedule=EAGER["schedule"], **pool)
        rag.invoke(QUESTIONS[0])
        guesses.append(rag.invoke(QUESTIONS[1])["ralmspec"]["stats"]["guesses"])

    assert [0, 1] == guesses
