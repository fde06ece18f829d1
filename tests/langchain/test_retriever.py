"""`SpeculativeRetriever`: exactly the wrapped one's documents, by fewer calls of the store."""

import asyncio
import copy
import gc
import logging
import pickle
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context, ContextVar
from typing import Any
from uuid import uuid4

import pytest
from langchain_community.vectorstores import FAISS
from langchain_core.callbacks import BaseCallbackHandler, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.language_models import FakeListLLM
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import ConfigurableField, RunnableConfig, RunnableLambda
from langchain_core.runnables.config import ensure_config
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_ralmspec.rag import SpeculativeRAG
from langchain_ralmspec.retriever import SpeculativeRetriever, Verdict

from ralmspec_plugins.errors import ConfigError, InputError
from ralmspec_plugins.speculators import QueryCache, SharedPassageCache
from tests.langchain.conftest import (
    BLACK_BOXES,
    CountingStore,
    WordSearch,
    black_box,
    nameless,
)
from tests.langchain.stores.worlds import WordEmbeddings, batches, questions

SHORT = [text for text in questions(120) if len(text) < 100]


class Runs(BaseCallbackHandler):
    """Notes retriever runs: what began, how it ended, and in what."""

    run_inline = True

    def __init__(self) -> None:
        self.began: dict[Any, tuple[str, str, tuple[str, ...], Any]] = {}
        self.ended: dict[Any, Any] = {}
        self.metadata: list[dict[str, Any]] = []

    def on_retriever_start(self, serialized: Any, query: str, **kwargs: Any) -> None:
        tags = tuple(kwargs["tags"])
        self.began[kwargs["run_id"]] = query, kwargs["name"], tags, kwargs["parent_run_id"]
        self.metadata.append(kwargs["metadata"])

    def on_retriever_end(self, documents: Any, *, run_id: Any, **kwargs: Any) -> None:
        assert run_id not in self.ended
        self.ended[run_id] = documents

    def on_retriever_error(self, error: BaseException, *, run_id: Any, **kwargs: Any) -> None:
        assert run_id not in self.ended
        self.ended[run_id] = type(error)

    @property
    def open(self) -> set[Any]:
        return self.began.keys() - self.ended.keys()


@pytest.fixture(params=["store", *BLACK_BOXES])
def wrapped(request: pytest.FixtureRequest, store: InMemoryVectorStore) -> BaseRetriever:
    if request.param == "store":
        return store.as_retriever()
    box: Any = black_box(request.param)
    return box


def test_every_method_gives_what_the_wrapped_one_gives(wrapped: BaseRetriever) -> None:
    """`invoke`, `batch`, `ainvoke`, `abatch` and `stream`, over a store and black boxes."""
    expected = [copy.deepcopy(wrapped.invoke(text)) for text in SHORT]
    ours = SpeculativeRetriever(retriever=wrapped)

    async def awaited() -> tuple[list[Any], list[Any]]:
        singly = [await ours.ainvoke(text) for text in SHORT]
        return singly, await ours.abatch(SHORT)

    assert [ours.invoke(text) for text in SHORT] == expected
    assert [found for batch in batches(SHORT) for found in ours.batch(batch)] == expected
    assert asyncio.run(awaited()) == (expected, expected)
    assert list(ours.stream(SHORT[0])) == [expected[0]]
    assert ours.batch([]) == []


@pytest.mark.parametrize("memo", [False, True], ids=["none", "memo"])
def test_threads_at_once_get_what_they_would_alone(store: InMemoryVectorStore, memo: bool) -> None:
    """32 threads, each with questions of its own, and with merged searches."""
    retriever = store.as_retriever()
    ours = SpeculativeRetriever(
        retriever=retriever, memo=QueryCache() if memo else None, pool=SharedPassageCache()
    )
    asked = questions(200)
    expected = [copy.deepcopy(retriever.invoke(text)) for text in asked]
    with ThreadPoolExecutor(32) as threads:
        found = list(threads.map(ours.invoke, asked))

    assert found == expected
    assert ours.stats.round_trips < ours.stats.asked == 200


def test_tasks_at_once_share_searches(store: InMemoryVectorStore) -> None:
    """32 tasks on a loop get their own documents, by a few round trips."""
    retriever = store.as_retriever()
    ours = SpeculativeRetriever(retriever=retriever)
    asked = SHORT[:32]

    async def together() -> list[Any]:
        return await asyncio.gather(*(ours.ainvoke(text) for text in asked))

    assert asyncio.run(together()) == [retriever.invoke(text) for text in asked]
    assert (ours.stats.round_trips < 16, ours.stats.queries) == (True, 32)


def test_a_batch_is_one_search(store: InMemoryVectorStore) -> None:
    """As many round trips as `max_batch` makes necessary."""
    ours = SpeculativeRetriever(retriever=store.as_retriever(), max_batch=16)
    ours.batch(SHORT[:48])

    assert (ours.stats.round_trips, ours.stats.queries) == (3, 48)


def test_arguments_of_the_call_are_passed_on(store: InMemoryVectorStore) -> None:
    """`invoke(query, k=2)` and the field `k` do what they do at the host, and are kept apart."""
    retriever = store.as_retriever()
    ours = SpeculativeRetriever(retriever=retriever, memo=QueryCache())
    three = SpeculativeRetriever(retriever=retriever, k=3)
    only = {"filter": lambda document: document.metadata["topic"] == "t2"}
    for kwargs in ({}, {"k": 2}, {"k": 400}, only):
        assert ours.invoke("river", **kwargs) == retriever.invoke("river", **kwargs)
        assert ours.batch(["river"], **kwargs) == [retriever.invoke("river", **kwargs)]

    assert three.invoke("river") == retriever.invoke("river", k=3)
    assert three.invoke("river", k=1) == retriever.invoke("river", k=1)


def test_k_for_a_retriever_that_has_it_as_a_field() -> None:
    """A black box with a `k` of its own is given it; the wrapped one stays as it is."""
    box: Any = black_box("bm25")
    ours = SpeculativeRetriever(retriever=box, k=2)

    assert (len(ours.invoke("river")), box.k) == (2, 5)


@pytest.mark.parametrize("k", [0, 3])
def test_a_k_that_nobody_would_heed_is_refused(k: int) -> None:
    """Silently giving another number would be wrong."""
    with pytest.raises(ConfigError, match="k"):
        SpeculativeRetriever(retriever=WordSearch(documents=[]), k=k)


class TestMemo:
    """Remembers where it was asked to, and forgets when it was told to."""

    def test_what_was_found_is_not_searched_again(self, store: InMemoryVectorStore) -> None:
        """Neither singly nor in a batch, and not embedded either."""
        embedder: Any = store.embeddings
        ours = SpeculativeRetriever(retriever=store.as_retriever(), memo=QueryCache())
        first = ours.batch(["river", "stone"])
        again = [ours.invoke("river"), *ours.batch(["stone"])]

        assert again == first
        assert (embedder.queries, ours.stats.round_trips, ours.stats.remembered) == (2, 1, 2)

    def test_without_a_memo_nothing_is_remembered(self, counting: CountingStore) -> None:
        """The index may change: each call is a search."""
        ours = SpeculativeRetriever(retriever=counting.as_retriever())
        ours.invoke("river")
        counting.add_documents([Document("river river river", id="new")])

        assert ours.invoke("river") == counting.as_retriever().invoke("river")
        assert counting.searches == 3

    def test_the_time_to_live_and_invalidate(self, counting: CountingStore) -> None:
        """After its time, or when it is invalidated, an answer is searched again."""
        now_s = [0.0]
        memo = QueryCache(ttl_s=10, clock=lambda: now_s[0])
        ours = SpeculativeRetriever(retriever=counting.as_retriever(), memo=memo)
        searches = []
        for moment_s in (0.0, 9.0, 11.0):
            now_s[0] = moment_s
            ours.invoke("river")
            searches.append(counting.searches)
        ours.invalidate()
        ours.invoke("river")

        assert [*searches, counting.searches] == [1, 1, 2, 3]

    def test_poison_does_not_stay(self) -> None:
        """Whatever callers or the host do to documents, the next caller gets them clean."""
        box = WordSearch(documents=nameless())
        ours = SpeculativeRetriever(retriever=box, memo=QueryCache())
        expected = copy.deepcopy(box.invoke("river"))
        for _ in range(2):
            for document in [*ours.invoke("river"), *ours.batch(["river"])[0]]:
                document.metadata["poison"] = True
                document.page_content = "poison"
        for document in box.documents:
            document.page_content = "poison"

        assert ours.invoke("river") == expected


class PerUser(BaseRetriever):
    """Gives each user his own documents, by the config's values."""

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[Document]:
        raise AssertionError("the config is read in invoke")

    def invoke(
        self,
        input: str,  # noqa: A002
        config: Any = None,
        **kwargs: Any,
    ) -> list[Document]:
        user = ensure_config(config)["configurable"].get("user")
        return [Document(f"{input} of {user}", metadata={"user": user})]


class Interrupted(WordEmbeddings):
    """Something happens while it embeds."""

    def __init__(self) -> None:
        super().__init__()
        self.hook: Any = lambda: None

    def embed_query(self, text: str) -> list[float]:
        self.hook()
        vector: list[float] = super().embed_query(text)
        return vector


class Around(BaseRetriever):
    """A black box around a retriever; something happens before it is asked."""

    inner: Any
    before: Any

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[Document]:
        self.before()
        found: list[Document] = self.inner.invoke(query)
        return found


class TestUsers:
    """Nothing that was found for one user is given to another one."""

    def test_a_memo_never_crosses(self) -> None:
        """Black boxes that read the config, asked by two users in threads, in turns."""
        ours = SpeculativeRetriever(
            retriever=PerUser(), memo=QueryCache(), pool=SharedPassageCache()
        )

        def ask(user: str) -> list[Document]:
            return ours.invoke("notes", {"configurable": {"user": user}})

        with ThreadPoolExecutor(8) as threads:
            found = list(threads.map(ask, ["ada", "bob"] * 50))

        assert [documents[0].metadata["user"] for documents in found] == ["ada", "bob"] * 50

    def test_tenants_that_are_bound_share_no_memo_or_pool(self) -> None:
        """`with_config` chooses the tenant of a black box; the rest is shared."""

        def find(text: str, config: RunnableConfig) -> list[Document]:
            return [Document(f"{text} of {config['configurable']['tenant']}")]

        memo, pool, box = QueryCache(), SharedPassageCache(), RunnableLambda(find)
        ada, bob = (
            SpeculativeRetriever(
                retriever=box.with_config(configurable={"tenant": one}), memo=memo, pool=pool
            )
            for one in ("ada", "bob")
        )
        found = [one.invoke("notes")[0].page_content for one in (ada, bob)]

        assert found == ["notes of ada", "notes of bob"]
        assert "of ada" not in repr(bob.guess("note"))

    def test_metadata_that_a_black_box_reads(self) -> None:
        """Tenants by metadata share neither memo nor pool."""

        def find(text: str, config: RunnableConfig) -> list[Document]:
            return [Document(f"{text} of {config['metadata']['tenant']}")]

        ours = SpeculativeRetriever(
            retriever=RunnableLambda(find), memo=QueryCache(), pool=SharedPassageCache()
        )
        configs: list[RunnableConfig] = [{"metadata": {"tenant": one}} for one in ("ada", "bob")]
        found = [ours.invoke("notes", one)[0].page_content for one in configs]

        assert found == ["notes of ada", "notes of bob"]
        assert "of ada" not in repr(ours.guess("note", configs[1]))

    @pytest.mark.parametrize("kind", ["looked into", "black box"])
    @pytest.mark.parametrize("what", ["retriever", "rag"])
    def test_settings_that_change_in_the_middle(self, kind: str, what: str) -> None:
        """What is found then is not remembered as what the settings before would have found."""
        embedder = Interrupted()
        store = FAISS.from_documents(
            [Document(f"{one} {at}", metadata={"of": one}) for one in "ab" for at in range(4)],
            embedder,
        )
        filters = {one: {"of": one} for one in "ab"}
        inner = store.as_retriever(search_kwargs={"k": 1, "filter": filters["a"]})
        outer: Any = inner
        if kind == "black box":
            outer = Around(inner=inner, before=lambda: embedder.hook())
        ours: Any = SpeculativeRetriever(
            retriever=outer, memo=QueryCache(), pool=SharedPassageCache()
        )
        if what == "rag":
            llm = FakeListLLM(responses=["x"])
            ours = SpeculativeRAG(retriever=outer, llm=llm, workload="one_shot", memo=QueryCache())
        embedder.hook = lambda: inner.search_kwargs.update(filter=filters["b"])
        ours.invoke("river")
        embedder.hook = lambda: None
        inner.search_kwargs["filter"] = filters["a"]
        found = ours.invoke("river")

        assert inner.invoke("river") == (found["context"] if what == "rag" else found)

    def test_a_batch_of_many_settings(self, store: InMemoryVectorStore) -> None:
        """Settings that are data are searched together, each with its equals."""
        fields = store.as_retriever().configurable_fields(
            search_kwargs=ConfigurableField(id="search")
        )
        ours = SpeculativeRetriever(retriever=fields)
        configs: list[RunnableConfig] = [
            {"configurable": {"search": {"k": 1 + at % 3}}} for at in range(30)
        ]
        asked = SHORT[:30]
        expected = [fields.invoke(text, one) for text, one in zip(asked, configs, strict=True)]

        assert ours.batch(asked, configs) == expected
        assert ours.stats.round_trips == 3

    def test_a_filter_that_reads_whose_turn_it_is(self) -> None:
        """A callable filter may read a `ContextVar`: it never runs in another caller's context."""
        tenant: ContextVar[str] = ContextVar("tenant", default="nobody")
        store = InMemoryVectorStore(WordEmbeddings())
        store.add_documents(
            [Document(f"{one} {at}", metadata={"of": one}) for one in "ab" for at in range(5)]
        )

        def of_tenant(document: Document) -> bool:
            time.sleep(0.001)  # so that the others come meanwhile
            return bool(document.metadata["of"] == tenant.get())

        retriever = store.as_retriever(search_kwargs={"k": 2, "filter": of_tenant})
        ours = SpeculativeRetriever(retriever=retriever)

        def ask(one: str) -> list[str]:
            tenant.set(one)
            found = [ours.invoke("1"), *ours.batch(["2", "3"]), asyncio.run(ours.ainvoke("4"))]
            return [document.metadata["of"] for documents in found for document in documents]

        with ThreadPoolExecutor(8) as threads:
            asked = [threads.submit(Context().run, ask, one) for one in "ab" * 8]
            found = [one.result() for one in asked]

        assert found == [[one] * 8 for one in "ab" * 8]

    def test_a_batch_of_many_users(self, store: InMemoryVectorStore) -> None:
        """Inputs with configs of their own get their own filters, merged only among equals."""
        fields = store.as_retriever().configurable_fields(
            search_kwargs=ConfigurableField(id="search")
        )
        ours = SpeculativeRetriever(retriever=fields, memo=QueryCache(), pool=SharedPassageCache())

        def only(topic: str) -> Any:
            return lambda document: document.metadata["topic"] == topic

        filters = {topic: {"k": 3, "filter": only(topic)} for topic in ("t0", "t1", "t2")}
        asked = SHORT[:30]
        configs: list[RunnableConfig] = [
            {"configurable": {"search": filters[f"t{at % 3}"]}} for at in range(30)
        ]
        expected = [fields.invoke(text, one) for text, one in zip(asked, configs, strict=True)]

        assert ours.batch(asked, configs) == expected
        assert asyncio.run(ours.abatch(asked, configs)) == expected
        # Functions run in their own callers' contexts, and nothing of such a call is remembered.
        assert ours.stats.round_trips == 60
        guesses = [ours.guess(asked[0], one) for one in configs[:3]]

        assert guesses == [expected[0], None, None] or all(
            guess is None or {one.metadata["topic"] for one in guess} == {f"t{at}"}
            for at, guess in enumerate(guesses)
        )


class TestGuessAndVerify:
    """For those who build their own loops."""

    def test_guesses_come_from_memo_and_pool(self, store: InMemoryVectorStore) -> None:
        """No search is made for a guess, and without memo and pool there is none."""
        nothing = SpeculativeRetriever(retriever=store.as_retriever())
        ours = SpeculativeRetriever(
            retriever=store.as_retriever(), memo=QueryCache(), pool=SharedPassageCache()
        )
        before = ours.guess("river")
        found = ours.invoke("river")
        after, near = ours.guess("river"), ours.guess("river stone")
        awaited = asyncio.run(ours.aguess("river stone"))

        assert (nothing.guess("river"), before, after) == (None, None, found)
        assert near is not None
        assert len(near) == 4
        assert awaited == near
        assert ours.stats.round_trips == 1

    @pytest.mark.parametrize("asynchronous", [False, True])
    def test_verdicts(self, store: InMemoryVectorStore, asynchronous: bool) -> None:
        """A right guess is one with the same documents in the same order; truths are given."""
        retriever = store.as_retriever()
        ours = SpeculativeRetriever(retriever=retriever)
        asked = SHORT[:5]
        truths = [retriever.invoke(text) for text in asked]
        changed = copy.deepcopy(truths[4])
        changed[0].metadata["number"] = -1
        guesses = [truths[0], truths[1][::-1], None, truths[3][:-1], changed]
        if asynchronous:
            given = asyncio.run(ours.averify(asked, guesses))
        else:
            given = ours.verify(asked, guesses)
        right = [True, False, False, False, False]

        assert given == [Verdict(*pair) for pair in zip(right, truths, strict=True)]
        assert ours.stats.round_trips == 1

    def test_a_pool_guesses_what_it_has_seen(self, store: InMemoryVectorStore) -> None:
        """Filled by wider searches, it is right about many questions that are alike."""
        ours = SpeculativeRetriever(retriever=store.as_retriever(), pool=SharedPassageCache())
        ours.batch(SHORT[:60])
        verdicts = ours.verify(SHORT[60:], [ours.guess(text) for text in SHORT[60:]])

        assert sum(one.right for one in verdicts) > len(verdicts) / 3  # a sixth ties at the store

    def test_pairs_are_checked(self, store: InMemoryVectorStore) -> None:
        """A guess for each query, or None."""
        with pytest.raises(InputError, match="2 queries came with 1 guesses"):
            SpeculativeRetriever(retriever=store.as_retriever()).verify(["a", "b"], [None])


class TestRuns:
    """Handlers see what the host would show: one run an input, under the caller's."""

    def test_a_run_for_each_input(self, store: InMemoryVectorStore) -> None:
        """In `invoke` and `batch` alike, with names, tags, metadata and documents."""
        retriever = store.as_retriever(tags=["mine"], metadata={"a": 1})
        ours = SpeculativeRetriever(retriever=retriever)
        configs: list[RunnableConfig] = []
        seen = []
        for at in range(2):
            runs = Runs()
            seen.append(runs)
            configs.append({"callbacks": [runs], "run_name": f"run{at}", "tags": [f"t{at}"]})
        ours.batch(["river", "stone"], configs)
        ours.invoke("river", configs[0])
        asyncio.run(ours.abatch(["stone"], configs[1:]))
        for at, (text, runs) in enumerate(zip(["river", "stone"], seen, strict=True)):
            assert [(one[0], one[1], set(one[2])) for one in runs.began.values()] == [
                (text, f"run{at}", {f"t{at}", "mine"})
            ] * 2
            assert list(runs.ended.values()) == [retriever.invoke(text)] * 2
            assert {one["ls_vector_store_provider"] for one in runs.metadata} == {
                "InMemoryVectorStore"
            }
            assert [one["a"] for one in runs.metadata] == [1, 1]

    def test_a_black_box_tells_its_runs_itself(self) -> None:
        """An ensemble's runs are those of the ensemble alone, in a batch each below its own."""
        seen = []
        for retriever in (
            black_box("ensemble"),
            SpeculativeRetriever(retriever=black_box("ensemble")),
        ):
            runs = Runs()
            retriever.batch(["river", "stone"], {"callbacks": [runs]})
            query_of = {run_id: began[0] for run_id, began in runs.began.items()}
            below = [began for began in runs.began.values() if began[3] is not None]

            assert all(query_of[began[3]] == began[0] for began in below)
            assert not runs.open
            seen.append(sorted(began[:3] for began in runs.began.values()))

        assert len(seen[0]) == 6  # the ensemble and its two, for each query
        assert seen[0] == seen[1]

    @pytest.mark.parametrize("asynchronous", [False, True])
    @pytest.mark.parametrize("warm", [False, True])
    @pytest.mark.parametrize("kind", ["store", "mmr", "bound", "black box"])
    def test_one_run_under_the_wrapped_retrievers_name(
        self, store: InMemoryVectorStore, kind: str, warm: bool, asynchronous: bool
    ) -> None:
        """Name, tags, metadata, id and documents are those of the wrapped retriever's own run."""
        wrapped: Any = {
            "store": lambda: store.as_retriever(tags=["mine"], metadata={"a": 1}),
            "mmr": lambda: store.as_retriever(search_type="mmr", tags=["mine"]),
            "bound": lambda: store.as_retriever().with_config(run_name="finder", tags=["bound"]),
            "black box": lambda: WordSearch(documents=nameless(), tags=["mine"], name="words"),
        }[kind]()
        ours = SpeculativeRetriever(retriever=wrapped, memo=QueryCache() if warm else None)
        own: RunnableConfig = {"tags": ["t"], "metadata": {"who": "me"}}
        ours.batch(["river", "stone"], own)
        run_id = uuid4()
        seen = []
        for retriever in (wrapped, ours):
            runs = Runs()
            config: RunnableConfig = {"callbacks": [runs], **own}
            if asynchronous:
                found = [asyncio.run(retriever.ainvoke("river", config, run_id=run_id))]
                found += asyncio.run(retriever.abatch(["river", "stone"], config))
            else:
                found = [retriever.invoke("river", config, run_id=run_id)]
                found += retriever.batch(["river", "stone"], config)
            assert run_id == next(iter(runs.began))
            assert not runs.open
            began = sorted(
                (query, name, sorted(tags)) for query, name, tags, _ in runs.began.values()
            )
            seen.append((began, runs.metadata, found, len(runs.ended)))

        assert seen[0] == seen[1]
        assert len(seen[0][0]) == 3
        assert ours.stats.remembered == 3 * warm

    def test_a_name_and_tags_of_its_own_are_added(self, store: InMemoryVectorStore) -> None:
        """As `with_config` adds them to the wrapped retriever."""
        for retriever in (store.as_retriever(tags=["mine"]), WordSearch(documents=nameless())):
            memo = QueryCache()
            given = {"name": "finder", "tags": ["ours"], "metadata": {"b": 2}}
            ours = SpeculativeRetriever(retriever=retriever, memo=memo, **given)
            there = retriever.with_config(run_name="finder", tags=["ours"], metadata={"b": 2})
            seen = []
            for one in (there, ours, ours):
                runs = Runs()
                one.invoke("river", {"callbacks": [runs]})
                [(_, name, tags, _)] = runs.began.values()
                seen.append((name, set(tags), runs.metadata))

            assert seen[0][0] == "finder"
            assert seen[0] == seen[1] == seen[2]
            assert ours.stats.remembered == 1

    def test_listeners_hear_of_what_the_memo_answers(self, store: InMemoryVectorStore) -> None:
        """Those that are bound to the wrapped retriever."""
        ended: list[Any] = []
        retriever = store.as_retriever().with_listeners(on_end=lambda run: ended.append(run.name))
        ours = SpeculativeRetriever(retriever=retriever, memo=QueryCache())
        for _ in range(2):
            ours.invoke("river")

        assert ours.stats.remembered == 1
        assert ["VectorStoreRetriever"] * 2 == ended

    def test_a_subclass_that_answers_itself_is_told_as_itself(
        self, store: InMemoryVectorStore
    ) -> None:
        """As a retriever around another one that a user writes."""

        class Reversed(SpeculativeRetriever):
            def _get_relevant_documents(
                self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **kwargs: Any
            ) -> list[Document]:
                found = super()._get_relevant_documents(query, run_manager=run_manager, **kwargs)
                return found[::-1]

        retriever = store.as_retriever()
        ours = Reversed(retriever=retriever, tags=["own"])
        for found in (
            lambda config: ours.invoke("river", config),
            lambda config: asyncio.run(ours.ainvoke("river", config)),
            lambda config: ours.batch(["river"], config)[0],
        ):
            runs = Runs()

            assert retriever.invoke("river")[::-1] == found({"callbacks": [runs]})
            assert ["Reversed", "VectorStoreRetriever"] == [one[1] for one in runs.began.values()]
            assert [None, next(iter(runs.began))] == [one[3] for one in runs.began.values()]
            assert not runs.open

    def test_implicit_callers_are_found(self, store: InMemoryVectorStore) -> None:
        """Called inside a chain, without a config, it is the chain's child."""
        runs = Runs()
        ours = SpeculativeRetriever(retriever=store.as_retriever())
        chain = RunnableLambda(lambda text: ours.invoke(text))
        chain.invoke("river", {"callbacks": [runs]})

        assert [began[3] is not None for began in runs.began.values()] == [True]


class TestErrors:
    """Each input's own, the host's own, and nothing left behind."""

    def test_one_bad_input_of_many(self) -> None:
        """It gets the host's error, others their documents, and every run is closed."""
        box = WordSearch(documents=nameless())
        ours = SpeculativeRetriever(retriever=box)
        runs = Runs()
        asked = ["river", "fail", "stone"]
        found = ours.batch(asked, {"callbacks": [runs]}, return_exceptions=True)
        awaited = asyncio.run(ours.abatch(asked, return_exceptions=True))

        assert (found[0], found[2]) == (box.invoke("river"), box.invoke("stone"))
        assert [type(one) for one in (found[1], awaited[1])] == [ConnectionError] * 2
        assert not runs.open
        with pytest.raises(ConnectionError, match="the store is down"):
            ours.batch(asked)

    def test_a_bad_embedding_of_many(self, store: InMemoryVectorStore) -> None:
        """A query that cannot be embedded fails alone; others still share a search."""
        embedder: Any = store.embeddings
        real = type(embedder)

        class Picky(real):
            def embed_query(self, text: str) -> list[float]:
                if text == "fail":
                    raise ConnectionError("the embedder is down")
                return super().embed_query(text)

        store.embedding = Picky()
        ours = SpeculativeRetriever(retriever=store.as_retriever())
        found = ours.batch(["river", "fail", "stone"], return_exceptions=True)

        assert [type(one) for one in found] == [list, ConnectionError, list]
        assert ours.stats.round_trips == 1

    def test_a_store_that_goes_down(self, counting: CountingStore) -> None:
        """The host's error, call by call; afterwards all is as before."""
        ours = SpeculativeRetriever(retriever=counting.as_retriever(), memo=QueryCache())
        counting.down = True
        failed = ours.batch(["river", "stone"], return_exceptions=True)
        with pytest.raises(ConnectionError):
            ours.invoke("river")
        counting.down = False

        assert [type(one) for one in failed] == [ConnectionError] * 2
        assert ours.invoke("river") == counting.as_retriever().invoke("river")

    def test_a_cancelled_call_leaves_nothing(self) -> None:
        """No task; whoever asks next is answered."""

        class Slow(BaseRetriever):
            def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
                return [Document(query)]

            async def _aget_relevant_documents(
                self, query: str, *, run_manager: Any
            ) -> list[Document]:
                if query == "slow":
                    await asyncio.Event().wait()
                return [Document(query)]

        ours = SpeculativeRetriever(retriever=Slow())
        runs = Runs()

        async def main() -> int:
            for call in (
                lambda: ours.ainvoke("slow", {"callbacks": [runs]}),
                lambda: ours.abatch(["slow", "quick"], {"callbacks": [runs]}),
            ):
                task = asyncio.create_task(call())
                while not runs.open:
                    await asyncio.sleep(0)
                await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                for run_id in runs.open:  # the host leaves its own runs open when cancelled
                    runs.ended[run_id] = None
            assert await ours.ainvoke("quick") == [Document("quick")]
            return len(asyncio.all_tasks())

        assert asyncio.run(main()) == 1

    def test_a_cancelled_search_of_a_store_leaves_no_run_open(
        self, store: InMemoryVectorStore
    ) -> None:
        """It is told here, and so it is ended here."""
        embedder: Any = store.embeddings

        class Waits(type(embedder)):  # type: ignore[misc]
            async def aembed_query(self, text: str) -> list[float]:
                await asyncio.Event().wait()
                raise AssertionError

        store.embedding = Waits()
        ours = SpeculativeRetriever(retriever=store.as_retriever())
        runs = Runs()

        async def main() -> None:
            for call in (
                lambda: ours.ainvoke("slow", {"callbacks": [runs]}),
                lambda: ours.abatch(["slow", "slower"], {"callbacks": [runs]}),
            ):
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(call(), 0.05)

        asyncio.run(main())

        assert len(runs.began) == 3
        assert not runs.open


def test_what_is_not_pure_is_passed_straight_through(
    store: InMemoryVectorStore, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing remembered, nothing merged, one warning."""
    calls: list[str] = []

    def search(text: str) -> list[Document]:
        calls.append(text)
        return [Document(f"{text} {len(calls)}")]

    memo = QueryCache()
    ours = SpeculativeRetriever(
        retriever=RunnableLambda(search), memo=memo, pool=SharedPassageCache(), pure=False
    )
    with caplog.at_level(logging.WARNING):
        found = [ours.invoke("a"), ours.invoke("a"), *ours.batch(["a"])]

    assert [documents[0].page_content for documents in found] == ["a 1", "a 2", "a 3"]
    assert (ours.guess("a"), len(calls), memo.size) == (None, 3, 0)
    assert [record.message for record in caplog.records] == [
        "RunnableLambda is not pure: its calls are neither merged nor cached"
    ]


class TestAsAPart:
    """Fits where the wrapped retriever fits."""

    def test_composition(self, store: InMemoryVectorStore) -> None:
        """In chains, with fallbacks, retries, bindings and configs."""
        retriever = store.as_retriever()
        ours = SpeculativeRetriever(retriever=retriever)
        expected = retriever.invoke("river")
        broken = RunnableLambda(lambda _: 1 / 0)
        parts = [
            ours.with_config(tags=["a"]),
            ours.with_retry(),
            broken.with_fallbacks([ours]),
            RunnableLambda(lambda text: text) | ours,
        ]

        assert [part.invoke("river") for part in parts] == [expected] * 4
        assert (ours | len).batch(["river", "stone"]) == [4, 4]
        assert ours.bind(k=2).invoke("river") == expected[:2]

    def test_configurable_fields_share_what_runs(self, store: InMemoryVectorStore) -> None:
        """A field set per call does not cost the merging of calls, nor what is counted."""
        retriever = store.as_retriever()
        ours = SpeculativeRetriever(retriever=retriever)
        fields = ours.configurable_fields(k=ConfigurableField(id="k"))
        two: RunnableConfig = {"configurable": {"k": 2}}

        assert fields.invoke("river", two) == retriever.invoke("river", k=2)
        assert fields.batch(["river", "stone"], two) == [
            retriever.invoke(text, k=2) for text in ("river", "stone")
        ]
        assert (ours.stats.queries, ours.stats.asked) == (3, 3)

    def test_copies_and_pickles(self) -> None:
        """A copy answers alike and starts with nothing."""
        box = WordSearch(documents=nameless())
        ours = SpeculativeRetriever(
            retriever=box, max_batch=8, memo=QueryCache(7, 8.0), pool=SharedPassageCache(capacity=9)
        )
        expected = ours.invoke("river")
        copies: list[Any] = [copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))]

        assert [other.retriever for other in copies] == [box, box]
        assert [(other.memo.capacity, other.memo.ttl_s) for other in copies] == [(7, 8.0)] * 2
        assert [other.pool.capacity for other in copies] == [9, 9]
        assert [other.guess("river") for other in copies] == [None, None]
        assert [other.invoke("river") for other in copies] == [expected] * 2
        assert [(other.stats.asked, other.max_batch) for other in copies] == [(1, 8)] * 2

    def test_a_plain_copy_is_equal(self, store: InMemoryVectorStore) -> None:
        """What is running is no part of a retriever's value."""
        ours = SpeculativeRetriever(retriever=store.as_retriever())
        other = SpeculativeRetriever(retriever=ours.retriever)
        ours.invoke("river")

        assert ours == other
        assert "runtime" not in ours.model_dump()

    def test_nobodys_handlers_are_kept(self, store: InMemoryVectorStore) -> None:
        """A caller's handlers can go when his call is over, also one from inside a chain."""
        ours = SpeculativeRetriever(
            retriever=store.as_retriever(), memo=QueryCache(), pool=SharedPassageCache()
        )
        runs = Runs()
        chain = RunnableLambda(lambda text: ours.batch([text, "stone"]))
        chain.invoke("river", {"callbacks": [runs]})
        gone = weakref.ref(runs)
        del runs, chain
        gc.collect()

        assert gone() is None

    def test_unknown_settings_are_refused(self) -> None:
        """A slip in a number does not pass."""
        with pytest.raises(ValueError, match="max_batch"):
            SpeculativeRetriever(retriever=WordSearch(documents=[]), max_batch=0)

    def test_closing_lets_the_threads_go(self, store: InMemoryVectorStore) -> None:
        """Closed, or forgotten, no thread of ours is left; a closed one works again."""

        def new() -> set[threading.Thread]:
            gc.collect()
            running = {one for one in threading.enumerate() if "ralmspec" in one.name}
            return running - before

        before = set(threading.enumerate())
        with SpeculativeRetriever(retriever=store.as_retriever()) as retriever:
            expected = retriever.batch(SHORT[:4])

            assert new()

        assert not new()
        assert retriever.batch(SHORT[:4]) == expected
        retriever.close()

        assert not new()
