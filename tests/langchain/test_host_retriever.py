"""Any retriever of LangChain's as one of the core's: the same documents, in batches."""

import asyncio
import copy
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from langchain_core.callbacks import CallbackManager
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.language_models import FakeListLLM
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import ConfigurableField, Runnable, RunnableConfig, RunnableLambda
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore, VectorStoreRetriever
from langchain_ralmspec.documents import documents_of
from langchain_ralmspec.host_retriever import HitPayload, HostRetriever
from langchain_ralmspec.stores.in_memory import InMemorySearch
from langchain_ralmspec.stores.registry import Scored, qualified_name, register_batch_search

from ralmspec_plugins.engine.threads import Engine
from ralmspec_plugins.errors import ConfigError, InputError
from ralmspec_plugins.protocols import PoolableRetriever, WideRetriever
from ralmspec_plugins.scheduling import encoder_time
from ralmspec_plugins.speculators import PassageCache
from ralmspec_plugins.testing import EchoWorkload
from ralmspec_plugins.types import Hits, Query
from tests.langchain.conftest import BLACK_BOXES, WordSearch, black_box, filled, nameless
from tests.langchain.stores.worlds import WordEmbeddings, batches, corpus, questions

COUNTS = [20, pytest.param(200, marks=pytest.mark.slow)]  # queries
SETTINGS: list[dict[str, Any]] = [
    {},
    {"search_kwargs": {"k": 1}},
    {"search_kwargs": {"k": 400}},
    {"search_kwargs": {"k": 3, "filter": lambda document: document.metadata["topic"] == "t1"}},
    {"search_kwargs": {"filter": lambda _: False}},
    {"search_kwargs": {"k": 0}},
    {"search_kwargs": {"unknown": 1}},
    {"search_type": "mmr", "search_kwargs": {"k": 3, "fetch_k": 9, "lambda_mult": 0.3}},
]


def by_host(retriever: Runnable[Any, Any], asked: Sequence[str]) -> list[list[Document]]:
    return [copy.deepcopy(retriever.invoke(text)) for text in asked]


def by_us(host: HostRetriever, asked: list[str]) -> list[list[Document]]:
    found: list[Hits] = []
    for batch in batches(asked):
        found += host.search([host.encode(text) for text in batch])
    return [documents_of(hits) for hits in found]


async def aby_us(host: HostRetriever, asked: list[str]) -> list[list[Document]]:
    found: list[Hits] = []
    for batch in batches(asked):
        found += await host.asearch([await host.aencode(text) for text in batch])
    return [documents_of(hits) for hits in found]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("settings", SETTINGS, ids=range(len(SETTINGS)))
def test_a_store_gives_what_the_host_gives(
    store: InMemoryVectorStore, settings: dict[str, Any], count: int
) -> None:
    """Queries in batches of 1 to 40, in threads and on a loop, are the host's documents."""
    retriever = store.as_retriever(**settings)
    asked = questions(count if settings.get("search_kwargs", {}).get("k", 4) < 100 else 40)
    expected = by_host(retriever, asked)

    assert by_us(HostRetriever(retriever), asked) == expected
    assert asyncio.run(aby_us(HostRetriever(retriever), asked)) == expected


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", BLACK_BOXES)
def test_a_black_box_gives_what_it_gives(name: str, count: int) -> None:
    """So do retrievers that cannot be looked into, with documents without ids."""
    retriever = black_box(name)
    asked = questions(count)
    expected = by_host(retriever, asked)

    assert any(expected)
    assert by_us(HostRetriever(retriever), asked) == expected
    assert asyncio.run(aby_us(HostRetriever(retriever), asked)) == expected


def test_each_query_is_embedded_once(store: InMemoryVectorStore) -> None:
    """Looked into, a query is embedded where it is formed, and a batch is one round trip."""
    embedder: Any = store.embeddings
    host = HostRetriever(store.as_retriever())
    queries = [host.encode(text) for text in questions(30)]
    host.search(queries)
    host.search(queries[:1])

    assert embedder.queries == 30
    assert (host.stats.round_trips, host.stats.queries) == (2, 31)


class AsyncOnly(WordEmbeddings):
    """Embeds queries in one way only; which way was asked is noted."""

    def __init__(self, *, awaits: bool) -> None:
        super().__init__()
        self.awaits = awaits
        self.asked: list[str] = []

    async def aembed_query(self, text: str) -> list[float]:
        self.asked.append("async")
        if not self.awaits:
            raise NotImplementedError("no async")
        vector: list[float] = self.embed_query(text)
        return vector

    def embed_query(self, text: str) -> list[float]:
        self.asked.append("sync")
        vector: list[float] = super().embed_query(text)
        return vector


class PacedEmbeddings(WordEmbeddings):
    """Computes for two milliseconds for a query, or waits for twenty."""

    computes = False

    def embed_query(self, text: str) -> list[float]:
        if not self.computes:
            time.sleep(0.02)
        until_s = time.thread_time() + 0.002
        while self.computes and time.thread_time() < until_s:
            pass
        return super().embed_query(text)


class PacedAsyncEmbeddings(PacedEmbeddings):
    """The same, for an event loop."""

    async def aembed_query(self, text: str) -> list[float]:
        if self.computes:
            return await asyncio.to_thread(self.embed_query, text)
        await asyncio.sleep(0.02)
        return WordEmbeddings.embed_query(self, text)


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(("computes", "lanes"), [(True, 1), (False, 5)])
def test_embeddings_that_are_waited_for_are_made_side_by_side(
    computes: bool, lanes: int, asynchronous: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model in this process may not bear that; before the first embedding it is not known."""
    for share in ("BY_THREAD", "BY_PROCESS"):  # whatever else the machine and the process do
        monkeypatch.setattr(encoder_time, share, 0.02 if computes else 0.98)
    embeddings = PacedAsyncEmbeddings()
    embeddings.computes = computes
    store = InMemoryVectorStore(embeddings)
    store.add_texts(["red fox", "blue whale"])
    host = HostRetriever(store.as_retriever(), side_by_side=5)
    before = host.encode_lanes
    if asynchronous:
        asyncio.run(host.aencode("fox"))
    else:
        host.encode("fox")

    assert (before, host.encode_lanes) == (1, lanes)
    assert host.for_call({"tags": ["one"]}).encode_lanes == lanes


@pytest.mark.parametrize("awaits", [True, False])
def test_a_query_is_embedded_as_the_stores_own_async_search_does_it(awaits: bool) -> None:
    """A store without one calls `embed_query`; else `aembed_query`, if the embedder has it."""

    class Threaded(InMemoryVectorStore):
        asimilarity_search = VectorStore.asimilarity_search

    register_batch_search(
        qualified_name(Threaded), lambda one: InMemorySearch(one.vectorstore, 4, None)
    )
    asked = []
    for kind in (InMemoryVectorStore, Threaded):
        embedder = AsyncOnly(awaits=awaits)
        host = HostRetriever(kind(embedder).as_retriever())
        asyncio.run(host.aencode("river"))
        asked.append((host.looked_into, embedder.asked))

    assert asked == [(True, ["async", "sync"]), (True, ["sync"])]


def test_a_black_box_is_called_query_by_query() -> None:
    """Its round trips are counted one by one."""
    host = HostRetriever(WordSearch(documents=nameless()))
    host.search([host.encode(text) for text in questions(10)])

    assert (host.stats.round_trips, host.stats.queries) == (10, 10)


def test_a_wider_search_begins_with_the_narrow_one(store: InMemoryVectorStore) -> None:
    """Where it is offered, the first k of it are what is verified."""
    retriever = store.as_retriever(search_kwargs={"k": 4})
    host = HostRetriever(retriever)
    assert isinstance(host, WideRetriever)
    queries = [host.encode(text) for text in questions(50)]
    wide = host.search_wide(queries, 80)

    assert [hits[:4] for hits in wide] == host.search(queries)
    assert {len(hits) for hits in wide} == {80}


def test_what_is_not_exact_cannot_be_searched_wider(store: InMemoryVectorStore) -> None:
    """Black boxes and other search types have no wider search."""
    mmr = store.as_retriever(search_type="mmr")

    assert not isinstance(HostRetriever(mmr), WideRetriever)
    assert not isinstance(HostRetriever(WordSearch(documents=[])), WideRetriever)


def test_a_pool_over_a_store_guesses_as_the_store_ranks(store: InMemoryVectorStore) -> None:
    """With all passages pooled, nearly every guess is right (ties are the store's own)."""
    host = HostRetriever(store.as_retriever(search_kwargs={"k": 4}))
    assert isinstance(host, PoolableRetriever)
    pool = PassageCache(host)
    first = host.encode("river stone")
    pool.learn(first, host.search_wide([first], 400)[0])
    queries = [host.encode(text) for text in questions(100)[3:]]
    found = zip(queries, host.search(queries), strict=True)
    right = [pool.guess(query) == hits for query, hits in found]

    assert sum(right) > 0.5 * len(right)


def test_a_black_box_says_its_k_when_it_has_answered() -> None:
    """Its own field where there is one, else the length of the latest result that had any."""
    words = HostRetriever(WordSearch(documents=nameless()))
    before = words.k
    words.search([words.encode("river")])
    after = words.k
    words.search([words.encode("nothing like it")])

    assert (before, after, words.k) == (None, 5, 5)
    assert HostRetriever(black_box("bm25")).k == 5


class TestSignature:
    """All that answers depend on, and nothing else."""

    def test_equal_settings_share_it(self, store: InMemoryVectorStore) -> None:
        """A retriever made anew for each request is the same one."""
        ours, theirs = (store.as_retriever(search_kwargs={"k": 3}) for _ in range(2))

        assert HostRetriever(ours).signature == HostRetriever(theirs).signature

    def test_each_setting_tells_apart(self, store: InMemoryVectorStore) -> None:
        """Store, type, arguments, users' values: each makes another signature."""
        other = filled(InMemoryVectorStore(store.embedding), corpus())
        again = filled(InMemoryVectorStore(WordEmbeddings()), corpus())
        again.store = store.store
        plain = store.as_retriever()
        different = [
            HostRetriever(plain),
            HostRetriever(other.as_retriever()),
            HostRetriever(again.as_retriever()),
            HostRetriever(store.as_retriever(search_kwargs={"k": 3})),
            HostRetriever(store.as_retriever(search_type="mmr")),
            HostRetriever(plain, kwargs={"k": 5}),
            HostRetriever(plain, config={"configurable": {"user": "a"}}),
            HostRetriever(plain, config={"configurable": {"user": "b"}}),
            HostRetriever(WordSearch(documents=[])),
            HostRetriever(WordSearch(documents=[Document("a")])),
            HostRetriever(RunnableLambda(lambda _: [])),
            HostRetriever(RunnableLambda(lambda _: [])),
        ]

        assert len({host.signature for host in different}) == len(different)

    def test_a_known_store_reads_no_config(self) -> None:
        """What LangGraph makes anew for each run, and a tenant's name, are not its settings."""
        store = InMemoryVectorStore(DeterministicFakeEmbedding(size=4))
        plain = HostRetriever(store.as_retriever())
        for key in ("__pregel_task_id", "checkpoint_ns", "thread_id", "tenant"):
            config: RunnableConfig = {"configurable": {key: "a"}, "metadata": {key: "a"}}

            assert HostRetriever(store.as_retriever(), config=config).signature == plain.signature

    def test_an_embedder_of_a_users_may_read_it(self, store: InMemoryVectorStore) -> None:
        """Then all of the config counts."""
        plain = HostRetriever(store.as_retriever())
        for key in ("__pregel_task_id", "checkpoint_ns", "thread_id", "tenant"):
            config: RunnableConfig = {"configurable": {key: "a"}}

            assert HostRetriever(store.as_retriever(), config=config).signature != plain.signature

    def test_what_is_bound_counts(self) -> None:
        """A tenant, tags and metadata that `with_config` binds to a black box are settings."""
        box = RunnableLambda(lambda _: [])
        bound: list[Runnable[Any, Any]] = [
            box,
            box.with_config(configurable={"tenant": "a"}),
            box.with_config(configurable={"tenant": "b"}),
            box.with_config(tags=["a"]),
            box.with_config(metadata={"tenant": "a"}),
        ]
        hosts = [HostRetriever(one) for one in bound]
        hosts.append(HostRetriever(box, config={"metadata": {"tenant": "b"}}))

        assert len({host.signature for host in hosts}) == len(hosts)
        assert HostRetriever(bound[2]).signature == hosts[2].signature

    def test_metadata_of_any_name_counts(self) -> None:
        """A black box may read it, whatever it is called; what is new in each run is not kept."""
        box = RunnableLambda(lambda _: [])
        names = ("thread_id", "run_id", "run_attempt", "assistant_id", "graph_id", "lc_versions")
        names += ("ls_provider", "__run", "langgraph_step", "checkpoint_ns")
        configs: list[RunnableConfig] = [{"metadata": {name: "a"}} for name in names]
        hosts = [HostRetriever(box, config=config) for config in configs]

        assert len({host.signature for host in hosts}) == len(names)
        assert ["checkpoint_ns"] == [
            name for name, host in zip(names, hosts, strict=True) if host.look().passing
        ]

    def test_configurable_black_boxes_keep_it(self) -> None:
        """LangChain makes a new retriever for each call; equal settings are the same one."""
        box: Any = black_box("ensemble")
        fields = box.configurable_fields(c=ConfigurableField(id="c"))
        configs: list[RunnableConfig] = [{"configurable": {"c": c}} for c in (60, 60, 61)]
        signatures = [HostRetriever(fields, config=config).signature for config in configs]

        assert signatures[0] == signatures[1]
        assert signatures[0] != signatures[2]

    def test_it_follows_a_change_in_place(self, store: InMemoryVectorStore) -> None:
        """Changed `search_kwargs` and fields count from the next call on, in answers too."""
        retriever = store.as_retriever(search_kwargs={"k": 4})
        host = HostRetriever(retriever)
        before = host.signature
        retriever.search_kwargs["k"] = 2
        hits = host.search([host.encode("river")])[0]
        box = black_box("bm25")
        boxed = HostRetriever(box)
        first = boxed.signature
        box.k = 2  # type: ignore[attr-defined]

        assert (host.signature != before, host.k, len(hits)) == (True, 2, 2)
        assert (boxed.signature != first, boxed.k) == (True, 2)


class TestWrappings:
    """Bindings and configurable fields are looked through; what does more is left alone."""

    @pytest.mark.parametrize("how", ["bind", "config", "fields", "alternatives", "nested"])
    def test_looked_through(self, store: InMemoryVectorStore, how: str) -> None:
        """The concrete retriever is searched in batches, with its settings of this call."""
        plain = store.as_retriever(search_kwargs={"k": 4})
        fields = plain.configurable_fields(search_kwargs=ConfigurableField(id="search"))
        wrapped: dict[str, tuple[Runnable[Any, Any], RunnableConfig]] = {
            "bind": (plain.bind(k=2), {}),
            "config": (plain.with_config(tags=["a"]), {}),
            "fields": (fields, {"configurable": {"search": {"k": 2}}}),
            "alternatives": (
                plain.configurable_alternatives(
                    ConfigurableField(id="which"),
                    few=store.as_retriever(search_kwargs={"k": 2}),
                ),
                {"configurable": {"which": "few"}},
            ),
            "nested": (fields.bind(k=3).with_config(configurable={"search": {"k": 2}}), {}),
        }
        retriever, config = wrapped[how]
        host = HostRetriever(retriever, config=config)
        asked = questions(40)
        found = by_us(host, asked)

        assert host.looked_into
        assert found == [retriever.invoke(text, config) for text in asked]
        assert host.k == len(found[3])
        assert host.stats.round_trips < 20

    def test_left_alone(self, store: InMemoryVectorStore) -> None:
        """Retries, fallbacks and listeners do something at each call, and go on doing it."""
        plain = store.as_retriever()
        heard: list[Any] = []
        listening = plain.with_listeners(on_start=heard.append)
        hosts = [
            HostRetriever(wrapped)
            for wrapped in (plain.with_retry(), plain.with_fallbacks([plain]), listening)
        ]
        for host in hosts:
            host.search([host.encode("river")])

        assert [host.looked_into for host in hosts] == [False] * 3

    def test_a_subclass_or_an_own_method_is_left_alone(self, store: InMemoryVectorStore) -> None:
        """Whatever may have changed the search is not looked into."""

        class Mine(VectorStoreRetriever):
            pass

        patched = filled(InMemoryVectorStore(WordEmbeddings()), corpus(5))
        patched.similarity_search = lambda *_, **__: []  # type: ignore[method-assign]

        assert not HostRetriever(Mine(vectorstore=store)).looked_into
        assert not HostRetriever(patched.as_retriever()).looked_into
        assert not HostRetriever(store.as_retriever(), batch="off").looked_into


class TestPurity:
    """What answers differently each time, or writes, is recognised wherever it is."""

    def test_recognised(self, store: InMemoryVectorStore) -> None:
        """By class, nested in others, and by any language model inside."""
        from langchain_classic.retrievers import (
            ContextualCompressionRetriever,
            EnsembleRetriever,
            MultiQueryRetriever,
            TimeWeightedVectorStoreRetriever,
        )
        from langchain_classic.retrievers.document_compressors import LLMChainFilter

        plain = store.as_retriever()
        llm = FakeListLLM(responses=["YES"])
        multi = MultiQueryRetriever.from_llm(plain, llm)
        asking = ContextualCompressionRetriever(
            base_compressor=LLMChainFilter.from_llm(llm), base_retriever=plain
        )

        class Sub(TimeWeightedVectorStoreRetriever):
            pass

        impure: list[Runnable[Any, Any]] = [
            TimeWeightedVectorStoreRetriever(vectorstore=store),
            Sub(vectorstore=store),
            multi,
            EnsembleRetriever(retrievers=[plain, multi], weights=[0.5, 0.5]),
            asking,
            asking.with_config(tags=["a"]).with_retry(),
            RunnableLambda(lambda text: multi.invoke(text)),
            llm | (lambda text: [Document(text)]),
        ]

        assert [HostRetriever(one).pure for one in impure] == [False] * len(impure)

    @pytest.mark.parametrize("name", BLACK_BOXES)
    def test_others_are_pure(self, name: str) -> None:
        """Black boxes without such parts are trusted."""
        assert HostRetriever(black_box(name)).pure

    def test_the_caller_knows_better(self, store: InMemoryVectorStore) -> None:
        """`pure` overrides what was found out; what is not pure is not looked into."""
        host = HostRetriever(store.as_retriever(), pure=False)
        model = FakeListLLM(responses=["a"]) | (lambda text: [Document(text)])

        assert (host.pure, host.looked_into) == (False, False)
        assert HostRetriever(model, pure=True).pure

    def test_the_log_names_the_class_of_the_host_s(
        self, store: InMemoryVectorStore, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A user has made no `HostRetriever`."""
        Engine(EchoWorkload(), HostRetriever(store.as_retriever(), pure=False)).close()

        assert "HostRetriever(VectorStoreRetriever) is not pure" in caplog.text


class ProbedStore(InMemoryVectorStore):
    """Its batch search is not exact; it may even lie."""


@dataclass
class Probed(InMemorySearch):
    """Swaps the first two documents of every query, from the third batch on, if told to."""

    exact = False

    def __init__(self, store: ProbedStore, lies: bool) -> None:
        super().__init__(store, 4, None)
        self.lies = lies
        self.batches = 0

    def search(self, vectors: Sequence[Any], k: int) -> list[list[Scored]]:
        self.batches += 1
        found = super().search(vectors, k)
        if self.lies and self.batches > 2:
            return [[*hits[1::-1], *hits[2:]] for hits in found]
        return found


@pytest.fixture(params=[False, True], ids=["honest", "lying"])
def probed(request: pytest.FixtureRequest) -> tuple[VectorStoreRetriever, Probed]:
    store = ProbedStore(WordEmbeddings())
    filled(store, corpus())
    search = Probed(store, request.param)
    register_batch_search(qualified_name(ProbedStore), lambda _: search)
    return store.as_retriever(search_kwargs={"k": 4}), search


def test_probes_catch_what_differs(
    probed: tuple[VectorStoreRetriever, Probed], caplog: pytest.LogCaptureFixture
) -> None:
    """Every batch is compared on a sample; one difference, and it is single calls for good."""
    retriever, search = probed
    asked = [text for text in questions(120) if len(text) < 100]
    expected = by_host(retriever, asked)
    host = HostRetriever(retriever, batch="probed")
    with caplog.at_level(logging.WARNING):
        found = by_us(host, asked)

    assert found == expected
    assert (host.looked_into, len(caplog.records)) == (not search.lies, int(search.lies))
    assert search.batches > 3 or search.lies


def test_what_is_not_exact_needs_to_be_asked_for(
    probed: tuple[VectorStoreRetriever, Probed],
) -> None:
    """Without `batch="probed"` its batches are not used; with it, single queries still are not."""
    retriever, search = probed
    plain, asked_for = HostRetriever(retriever), HostRetriever(retriever, batch="probed")
    by_us(plain, questions(20))
    asked_for.search([asked_for.encode("river")])

    assert search.batches == 0
    assert not isinstance(asked_for, WideRetriever)


class TestErrors:
    """The host's own, each query's own, and clear ones of ours."""

    def test_a_bad_query_raises_the_hosts_error(self) -> None:
        """In a batch the first error in order is raised; alone, each query has its own."""
        host = HostRetriever(WordSearch(documents=nameless()))
        queries = [host.encode(text) for text in ("river", "fail", "stone")]
        with pytest.raises(ConnectionError, match="the store is down"):
            host.search(queries)

        assert len(host.search([queries[0], queries[2]])) == 2

    def test_a_failing_batch_search_of_one_asks_the_host(self) -> None:
        """What is wrong with a single query, the host says; what only we cannot do, it does."""

        class Broken(InMemorySearch):
            def search(self, vectors: Sequence[Any], k: int) -> list[list[Scored]]:
                raise OSError("no batches today")

        class BrokenStore(InMemoryVectorStore):
            pass

        store = BrokenStore(WordEmbeddings())
        filled(store, corpus(9))
        register_batch_search(qualified_name(BrokenStore), lambda _: Broken(store, 4, None))
        host = HostRetriever(store.as_retriever())
        queries = [host.encode(text) for text in ("river", "stone")]
        with pytest.raises(OSError, match="no batches"):
            host.search(queries)

        expected = store.as_retriever().invoke("river")

        assert documents_of(host.search(queries[:1])[0]) == expected
        assert documents_of(asyncio.run(host.asearch(queries[:1]))[0]) == expected

    def test_what_gives_no_documents_is_refused(self) -> None:
        """The error says what came instead."""
        for wrong in ("text", [1], None):
            host = HostRetriever(RunnableLambda(lambda _, wrong=wrong: wrong))
            with pytest.raises(InputError, match="a retriever must return"):
                host.search([host.encode("a")])

    def test_foreign_encodings_are_refused(self, store: InMemoryVectorStore) -> None:
        """A text is what LangChain's retrievers search."""
        host = HostRetriever(store.as_retriever())
        with pytest.raises(InputError, match="make it with the retriever's encode"):
            host.search([Query("a", [1.0], key="a")])

        assert documents_of(host.search([Query("river")])[0]) == store.as_retriever().invoke(
            "river"
        )

    @pytest.mark.parametrize("wrong", [{"batch": "always"}, {"side_by_side": 0}])
    def test_settings_are_checked(self, wrong: dict[str, Any]) -> None:
        """With the value that was given."""
        with pytest.raises(ConfigError):
            HostRetriever(WordSearch(documents=[]), **wrong)
        with pytest.raises(ConfigError, match="got str"):
            HostRetriever("retriever")  # type: ignore[arg-type]


def test_a_retriever_of_sync_code_does_not_hold_up_the_loop() -> None:
    """It waits for something that only the loop can do."""
    happened = threading.Event()

    class Waiting(BaseRetriever):
        def _get_relevant_documents(self, query: str) -> list[Document]:  # type: ignore[override]
            return [Document(query)] if happened.wait(timeout=10) else []

    async def main() -> list[Hits]:
        host = HostRetriever(Waiting())
        search = asyncio.create_task(host.asearch([host.encode("a"), host.encode("b")]))
        await asyncio.sleep(0)
        happened.set()
        return await search

    assert [documents_of(hits) for hits in asyncio.run(main())] == [
        [Document("a")],
        [Document("b")],
    ]


def test_each_query_is_called_with_its_callers_config() -> None:
    """Whoever's searches share a batch, handlers hear of their own; nothing stays with the hits."""
    heard: list[Any] = []

    class Telling(BaseRetriever):
        def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
            heard.append((query, run_manager.inheritable_tags))
            return [Document(query)]

    def calls(name: str) -> Any:
        manager = CallbackManager(handlers=[], inheritable_tags=[name])
        return lambda: (RunnableConfig(callbacks=manager), name == "bob")

    host = HostRetriever(Telling())
    queries = [host.encode(name, calls(name)) for name in ("ada", "bob")]
    found = host.search(queries)

    assert sorted(heard) == [("ada", ["ada"]), ("bob", ["bob"])]
    assert [hits[0].features for hits in found] == [HitPayload(), HitPayload()]


def test_nothing_that_callers_do_changes_what_is_found_again(store: InMemoryVectorStore) -> None:
    """Documents are the callers' own: what they do to them stays theirs."""
    words = WordSearch(documents=nameless())
    host = HostRetriever(words)
    hits = host.search([host.encode("river")])[0]
    before = documents_of(hits)
    for document in [*documents_of(hits), *words.documents]:
        document.page_content = "poison"
        document.metadata["poison"] = True

    assert documents_of(hits) == before
