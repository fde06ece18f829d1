"""`SpeculativeRetriever`: the nodes and scores of the wrapped one, with fewer searches."""

import asyncio
import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import (
    AutoMergingRetriever,
    QueryFusionRetriever,
    RouterRetriever,
    VectorIndexRetriever,
)
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.core.selectors import PydanticSingleSelector
from llama_index.core.tools import RetrieverTool
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index_ralmspec import RetrievalEvent
from llama_index_ralmspec.retriever import SpeculativeRetriever

from ralmspec_plugins.errors import ConfigError, InputError
from ralmspec_plugins.speculators.passage_cache import SharedPassageCache
from ralmspec_plugins.speculators.query_cache import QueryCache
from tests.llama_index.conftest import BLACK_BOXES, WordSearch, black_box, indexed, searches
from tests.llama_index.contract import topic
from tests.llama_index.worlds import batches, questions


def asked(count: int) -> list[str]:
    return [text for text in questions(count + 1) if text]


def truth(retriever: BaseRetriever, texts: list[str]) -> list[list[NodeWithScore]]:
    """Ask one by one, as a user does."""
    return [copy.deepcopy(retriever.retrieve(text)) for text in texts]


@pytest.mark.parametrize("name", ["index", *BLACK_BOXES])
@pytest.mark.parametrize("memo", [False, True], ids=["plain", "memo"])
def test_every_method_gives_what_the_wrapped_one_gives(
    name: str, memo: bool, index: VectorStoreIndex
) -> None:
    """One by one, in batches, awaited and side by side: nodes, order and scores to the bit."""
    wrapped = index.as_retriever(similarity_top_k=4) if name == "index" else black_box(name)
    texts = asked(8)
    expected = truth(wrapped, texts)
    retriever = SpeculativeRetriever(
        wrapped, QueryCache(100) if memo else None, SharedPassageCache(capacity=100)
    )

    async def together() -> tuple[Any, Any]:
        alone = await asyncio.gather(*map(retriever.aretrieve, texts))
        return alone, await retriever.aretrieve_batch([QueryBundle(text) for text in texts])

    alone, batch = asyncio.run(together())
    batched = [nodes for some in batches(texts) for nodes in retriever.retrieve_batch(some)]

    assert expected == alone
    assert expected == batch
    assert expected == batched
    assert expected == [retriever.retrieve(text) for text in texts]
    assert retriever.retrieve_batch([]) == []


def test_threads_at_once_get_what_they_would_alone(index: VectorStoreIndex) -> None:
    """With filters that differ, from many threads, through one retriever each."""
    wrapped = index.as_retriever(similarity_top_k=4)
    texts = asked(40)
    expected = truth(wrapped, texts)
    with (
        SpeculativeRetriever(wrapped, QueryCache(100)) as retriever,
        ThreadPoolExecutor(8) as threads,
    ):
        found = list(threads.map(retriever.retrieve, texts))

    assert expected == found


def test_tasks_at_once_share_searches(index: VectorStoreIndex) -> None:
    """What comes while a search is running goes together in the next one."""
    retriever = SpeculativeRetriever(index.as_retriever())

    async def together() -> None:
        await asyncio.gather(*map(retriever.aretrieve, asked(24)))

    asyncio.run(together())

    assert retriever.stats.asked == 24
    assert retriever.stats.round_trips < 12


def test_a_batch_is_one_search(index: VectorStoreIndex) -> None:
    """Of all queries that are not remembered."""
    retriever = SpeculativeRetriever(index.as_retriever(), QueryCache(100))
    texts = list(dict.fromkeys(asked(20)))
    retriever.retrieve(texts[0])
    retriever.retrieve_batch(texts)

    assert (retriever.stats.round_trips, retriever.stats.remembered) == (2, 1)


class TestMemo:
    """What was found before."""

    def test_it_is_not_searched_again_until_it_is_invalidated(
        self, counting: VectorStoreIndex
    ) -> None:
        """Without a memo it is; a change of settings is another search."""
        wrapped: Any = counting.as_retriever()
        retriever = SpeculativeRetriever(wrapped, QueryCache(10))
        plain, store = SpeculativeRetriever(wrapped), id(counting.vector_store)
        before = searches.get(store, 0)
        counts = []
        for step in (
            lambda: [retriever.retrieve("river") for _ in range(3)],
            lambda: [plain.retrieve("river") for _ in range(3)],
            lambda: setattr(wrapped, "similarity_top_k", 3) or retriever.retrieve("river"),  # type: ignore[func-returns-value]
            lambda: retriever.invalidate() or retriever.retrieve("river"),  # type: ignore[func-returns-value]
        ):
            step()
            counts.append(searches[store] - before)

        assert counts == [1, 4, 5, 6]

    def test_poison_does_not_stay(self) -> None:
        """Whatever is done to nodes that were handed out, or that the host keeps."""
        wrapped: Any = black_box("words")
        retriever = SpeculativeRetriever(wrapped, QueryCache(10))
        given = retriever.retrieve("river stone")
        expected = copy.deepcopy(given)
        for one in (*given, *wrapped.found):
            one.score = 9.0
            one.node.metadata["poison"] = True

        assert expected == retriever.retrieve("river stone")

    def test_queries_with_embeddings_of_their_own_keep_apart(self, index: VectorStoreIndex) -> None:
        """The same text with other strings is another question."""
        wrapped = index.as_retriever()
        retriever = SpeculativeRetriever(wrapped, QueryCache(10))
        bundles = [QueryBundle("river"), QueryBundle("river", custom_embedding_strs=["comet"])]
        expected = [copy.deepcopy(wrapped.retrieve(copy.deepcopy(one))) for one in bundles]

        assert expected == [retriever.retrieve(copy.deepcopy(one)) for one in bundles * 2][2:]
        assert expected == retriever.retrieve_batch(copy.deepcopy(bundles))

    def test_what_was_found_under_other_settings_is_not_kept(self, index: VectorStoreIndex) -> None:
        """A filter that changes while a black box is searched."""
        wrapped: Any = index.as_retriever(vector_store_query_mode="mmr", filters=topic("t1"))

        class Changes(BaseRetriever):
            def __init__(self, inner: BaseRetriever) -> None:
                super().__init__()
                self.inner = inner

            def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
                found = self.inner.retrieve(QueryBundle(query_bundle.query_str))
                wrapped._filters.filters[0].value = "t2"
                return found

        retriever = SpeculativeRetriever(Changes(wrapped), QueryCache(10))
        retriever.retrieve("river")
        [expected] = truth(wrapped, ["river"])

        assert expected == retriever.retrieve("river")


class TestGuessAndVerify:
    """For those who build their own loops."""

    def test_guesses_come_from_memo_and_pool(self, index: VectorStoreIndex) -> None:
        """The memo knows; the pool takes the best of what it has seen; else there is none."""
        retriever = SpeculativeRetriever(
            index.as_retriever(), QueryCache(10), SharedPassageCache(capacity=400)
        )
        nothing = retriever.guess("river")
        expected = retriever.retrieve("river")
        known, near = retriever.guess("river"), retriever.guess("river river")

        assert nothing is None
        assert expected == known
        assert near
        assert asyncio.run(retriever.aguess("river")) == expected

    @pytest.mark.parametrize("asynchronous", [False, True])
    def test_verdicts(self, index: VectorStoreIndex, asynchronous: bool) -> None:
        """The same nodes in order are right, whatever the scores; the truth comes along."""
        wrapped = index.as_retriever(similarity_top_k=3)
        retriever = SpeculativeRetriever(wrapped)
        texts = ["river stone", "comet", "lantern", "amber"]
        expected = truth(wrapped, texts)
        guesses: list[Any] = [copy.deepcopy(expected[0]), expected[1][::-1], None, expected[3]]
        guesses[0][0].score = 0.0
        if asynchronous:
            verdicts = asyncio.run(retriever.averify(texts, guesses))
        else:
            verdicts = retriever.verify(texts, guesses)

        assert [verdict.right for verdict in verdicts] == [True, False, False, True]
        assert expected == [verdict.nodes for verdict in verdicts]
        with pytest.raises(InputError, match="give one for each"):
            retriever.verify(texts, [])


class Heard(BaseEventHandler):
    """Notes the class of each event, and the nodes of the last ones."""

    names: list[str] = []  # noqa: RUF012 a pydantic field
    events: list[Any] = []  # noqa: RUF012 as above

    def handle(self, event: Any, **kwargs: Any) -> None:
        self.events.append(event)
        self.names.append(event.class_name())


class TestTelling:
    """What handlers hear."""

    @pytest.fixture
    def heard(self) -> Any:
        root, handler = get_dispatcher(), Heard(names=[], events=[])
        root.add_event_handler(handler)
        yield handler
        root.event_handlers.remove(handler)

    def test_a_batch_is_told_as_single_calls(self, index: VectorStoreIndex, heard: Heard) -> None:
        """An event of ours for each query of a batch: none enters the host's own method."""
        retriever = SpeculativeRetriever(index.as_retriever())
        found = retriever.retrieve_batch(["river", "stone"])
        told = [one for one in heard.events if isinstance(one, RetrievalEvent)]

        assert heard.names.count("RetrievalStartEvent") == 0
        assert heard.names.count("EmbeddingEndEvent") == 2
        assert [one.query_str for one in told] == ["river", "stone"]
        assert [one.node_ids for one in told] == [[n.node_id for n in one] for one in found]
        assert [one.scores for one in told] == [[n.score for n in one] for one in found]

    def test_a_black_box_tells_inside(self, heard: Heard) -> None:
        """What the wrapped one tells stands between our start and our end."""
        SpeculativeRetriever(black_box("words")).retrieve("river")

        assert heard.names == ["RetrievalStartEvent"] * 2 + ["RetrievalEndEvent"] * 2

    def test_the_managers_of_the_wrapped_one_are_kept(self, index: VectorStoreIndex) -> None:
        """Ours is the wrapped one's unless given."""
        manager = CallbackManager([])
        wrapped = VectorIndexRetriever(index, callback_manager=manager)

        assert SpeculativeRetriever(wrapped).callback_manager is manager


def test_the_embedding_is_left_in_the_query(index: VectorStoreIndex) -> None:
    """As the host's own call does: what comes behind a retriever may use it."""
    hosts, ours = QueryBundle("river"), QueryBundle("river")
    index.as_retriever().retrieve(hosts)
    SpeculativeRetriever(index.as_retriever()).retrieve(ours)
    awaited = QueryBundle("river")
    asyncio.run(SpeculativeRetriever(index.as_retriever()).aretrieve(awaited))

    assert hosts == ours
    assert awaited == QueryBundle("river")


class TestErrors:
    """What goes wrong is the caller's whose it is."""

    @pytest.mark.parametrize("name", ["words", "index"])
    @pytest.mark.parametrize("asynchronous", [False, True])
    def test_one_bad_query_of_many(
        self, name: str, asynchronous: bool, index: VectorStoreIndex
    ) -> None:
        """In its place where that is asked for, raised where not; the others have their nodes."""
        wrapped, bad = (index.as_retriever(), "") if name == "index" else (black_box(name), "fail")
        texts = ["river", bad, "stone"]
        retriever = SpeculativeRetriever(wrapped)
        expected = truth(wrapped, ["river", "stone"])
        with pytest.raises((ConnectionError, TypeError)) as hosts:
            wrapped.retrieve(bad)

        def batch(**kwargs: Any) -> list[Any]:
            if asynchronous:
                return asyncio.run(retriever.aretrieve_batch(texts, **kwargs))
            return retriever.retrieve_batch(texts, **kwargs)

        good, error, other = batch(return_exceptions=True)

        assert expected == [good, other]
        assert (type(error), str(error)) == (hosts.type, str(hosts.value))
        with pytest.raises(hosts.type):
            batch()

    def test_a_cancelled_call_leaves_nothing(self, index: VectorStoreIndex) -> None:
        """Others that are searched beside it get theirs."""
        wrapped = index.as_retriever()
        retriever = SpeculativeRetriever(wrapped)

        async def some() -> Any:
            tasks = [asyncio.create_task(retriever.aretrieve(text)) for text in asked(12)]
            await asyncio.sleep(0)
            tasks[0].cancel()
            tasks[5].cancel()
            return await asyncio.gather(*tasks, return_exceptions=True)

        found = asyncio.run(some())
        cancelled = [isinstance(one, asyncio.CancelledError) for one in found]
        expected = truth(wrapped, asked(12))

        assert [at for at, gone in enumerate(cancelled) if gone] == [0, 5]
        assert [one for at, one in enumerate(expected) if at not in (0, 5)] == [
            one for one in found if isinstance(one, list)
        ]

    @pytest.mark.parametrize(
        "wrong", [{"batching": "fast"}, {"max_batch": 0}, {"lanes": True}, {"side_by_side": 0}]
    )
    def test_settings_are_checked(self, index: VectorStoreIndex, wrong: dict[str, Any]) -> None:
        """Each with a message."""
        with pytest.raises(ConfigError):
            SpeculativeRetriever(index.as_retriever(), **wrong)


def test_what_is_not_pure_is_passed_straight_through(
    index: VectorStoreIndex, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing of it is remembered or guessed, and that is said once."""
    fusion = QueryFusionRetriever([index.as_retriever()], MockLLM(), num_queries=2)
    retriever = SpeculativeRetriever(fusion, QueryCache(10), SharedPassageCache(capacity=10))
    retriever.retrieve("river")
    retriever.retrieve("river")

    assert retriever.stats.remembered == 0
    assert retriever.guess("river") is None
    assert caplog.text.count("is not pure") == 1


class First(PydanticSingleSelector):
    """Chooses the first retriever."""

    def __init__(self) -> None:
        """Have no program."""

    def _select(self, choices: Any, query: QueryBundle) -> Any:
        from llama_index.core.base.base_selector import SelectorResult, SingleSelection

        return SelectorResult(selections=[SingleSelection(index=0, reason="first")])

    async def _aselect(self, choices: Any, query: QueryBundle) -> Any:
        return self._select(choices, query)


class TestAsAPart:
    """Inside the host's own retrievers and engines."""

    @pytest.mark.parametrize("whole", ["engine", "fusion", "router", "merging"])
    def test_composition(self, whole: str, index: VectorStoreIndex) -> None:
        """The whole gives what it gives with the wrapped one, synchronous and not."""

        def made(inner: Any, merging: Any) -> Any:
            if whole == "engine":
                return RetrieverQueryEngine.from_args(inner, MockLLM())
            if whole == "router":
                return RouterRetriever(First(), [RetrieverTool.from_defaults(inner)], MockLLM())
            if whole == "fusion":
                words = black_box("bm25")
                return QueryFusionRetriever(
                    [inner, words],
                    MockLLM(),
                    mode="relative_score",
                    num_queries=1,  # type: ignore[arg-type]
                )
            parts = vars(merging)
            vectors = parts["_vector_retriever"]
            own = (
                SpeculativeRetriever(vectors)
                if isinstance(inner, SpeculativeRetriever)
                else vectors
            )
            return AutoMergingRetriever(own, parts["_storage_context"], 0.25)

        plain, merging = index.as_retriever(similarity_top_k=4), black_box("auto merging")
        host = made(plain, merging)
        ours = made(SpeculativeRetriever(plain, QueryCache(100)), merging)
        texts = [QueryBundle(text) for text in asked(6)]

        async def awaited(one: Any) -> list[Any]:
            return [await one.aretrieve(copy.deepcopy(text)) for text in texts]

        expected = [copy.deepcopy(host.retrieve(copy.deepcopy(text))) for text in texts]

        assert expected == [ours.retrieve(copy.deepcopy(text)) for text in texts]
        assert expected == asyncio.run(awaited(ours))

    def test_prompts_and_objects_pass_through(self, index: VectorStoreIndex) -> None:
        """What is asked of the wrapped one, and set on it."""
        fusion = QueryFusionRetriever([index.as_retriever()], MockLLM(), num_queries=1)
        fusion.object_map["a"] = TextNode(text="a")
        retriever = SpeculativeRetriever(fusion)
        prompts = retriever.get_prompts()
        retriever.update_prompts({"query_gen_prompt": prompts["query_gen_prompt"]})

        assert prompts.keys() == fusion.get_prompts().keys()
        assert retriever.object_map == fusion.object_map
        assert retriever.retriever is fusion

    def test_closing_lets_the_threads_go(self, index: VectorStoreIndex) -> None:
        """Later calls start new ones."""
        before = set(threading.enumerate())
        with SpeculativeRetriever(index.as_retriever()) as retriever:
            retriever.retrieve_batch(["river", "stone"])
        left = set(threading.enumerate()) - before
        found = retriever.retrieve("river")
        retriever.close()

        assert not {thread.name for thread in left if "ralmspec" in thread.name}
        assert found == index.as_retriever().retrieve("river")

    def test_what_runs_does_not_travel(self) -> None:
        """A copy has its own line and counts."""
        retriever = SpeculativeRetriever(WordSearch([TextNode(id_="a", text="river")]))
        retriever.retrieve("river")
        copied = copy.copy(retriever)

        assert copied.retrieve("river") == retriever.retrieve("river")
        assert pickle.loads(pickle.dumps(retriever._service.runtime)).stats.asked == 0

    def test_a_store_of_many_ids_is_looked_at_quickly(self) -> None:
        """A retriever that lists all its nodes reads them once, and again when they change."""
        wrapped: Any = indexed(SimpleVectorStore(), 60).as_retriever()
        retriever = SpeculativeRetriever(wrapped)
        everything = retriever.retrieve("river")
        wrapped._node_ids.remove(everything[0].node.node_id)

        assert len(wrapped._node_ids) == 59
        assert truth(wrapped, ["river"]) == [retriever.retrieve("river")]
        assert retriever.retrieve("river") != everything
