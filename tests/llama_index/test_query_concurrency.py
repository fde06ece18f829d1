"""One engine for many: threads, tasks, event loops, tenants, and engines inside of engines."""

import asyncio
import threading
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import IndexNode, NodeWithScore, QueryBundle
from llama_index_instrumentation.dispatcher import instrument_tags
from llama_index_ralmspec import SpeculativeQueryEngine

from ralmspec_plugins import FixedStride, QueryCache, SharedPassageCache
from ralmspec_plugins.errors import ConfigError
from tests.calls_at_once import CallsAtOnce
from tests.llama_index.contract import topic
from tests.llama_index.engine_parts import Heard, hearing, seen
from tests.llama_index.rag_parts import (
    QUESTIONS,
    AsyncHashLLM,
    HashLLM,
    HashRetriever,
    SyncRetriever,
    canaries,
    goldens,
    made_nodes,
    pair,
)
from tests.llama_index.worlds import WordEmbedding
from tests.selection import covering

MANY = [*QUESTIONS[:9], *QUESTIONS[:3]]  # some at the same time
WORKLOADS = ["sentences", "interval", "one_shot"]
LIAR = HashRetriever(made_nodes(), salt="lie")


def retriever_of(kind: str) -> Any:
    if kind == "black box":
        return HashRetriever(made_nodes())
    return VectorStoreIndex(made_nodes(), embed_model=WordEmbedding()).as_retriever()


def by_asker(heard: Heard) -> dict[Any, list[Any]]:
    """Sort the events that count by who asked, each with all that it says of texts.

    Searches have events of ours; what a memo knows is neither embedded nor searched.
    """
    told: dict[Any, list[Any]] = defaultdict(list)
    for event in heard.events:
        name = type(event).__name__
        if not name.startswith(("Retrieval", "Embedding")):
            told[event.tags.get("asker")].append((name, sorted(canaries(event))))
    assert told
    return {asker: sorted(events) for asker, events in told.items()}


def tagged(call: Any, asker: int) -> Any:
    with instrument_tags({"asker": asker}):
        return call(MANY[asker])


async def atagged(call: Any, asker: int) -> Any:
    with instrument_tags({"asker": asker}):
        return await call(MANY[asker])


@pytest.mark.parametrize(("kind", "workload"), covering(["black box", "looked into"], WORKLOADS))
async def test_many_at_once_get_and_hear_what_each_does_alone(kind: str, workload: str) -> None:
    """Threads and tasks over one pool and memo: each one's answer, and each one's own events."""
    askers = range(len(MANY))
    hand, ours = pair(
        AsyncHashLLM(),
        retriever_of(kind),
        workload,
        memo=QueryCache(),
        pool=SharedPassageCache(capacity=8),
        replica=LIAR,
        schedule=FixedStride(stride=2),
    )
    with hearing() as heard:
        expected = [seen(tagged(hand.query, asker)) for asker in askers]
    told = by_asker(heard)
    with hearing() as heard:
        awaited = [seen(await atagged(hand.aquery, asker)) for asker in askers]
    atold = by_asker(heard)

    for _ in range(2):  # the second time from the memo
        with hearing() as heard, ThreadPoolExecutor(8) as threads:
            got = list(threads.map(lambda asker: seen(tagged(ours.query, asker)), askers))
        assert expected == got
        assert told == by_asker(heard)
        with hearing() as heard:
            tasks = await asyncio.gather(*(atagged(ours.aquery, asker) for asker in askers))
        assert awaited == [seen(one) for one in tasks]
        assert atold == by_asker(heard)
    await asyncio.to_thread(ours.close)


def test_searches_of_many_threads_are_merged() -> None:
    """Over a store that is looked into, many questions reach it in fewer searches."""
    hand, ours = pair(HashLLM(), retriever_of("looked into"), "interval", pool=None)
    expected = [seen(hand.query(question)) for question in MANY]
    with ours, ThreadPoolExecutor(16) as threads:
        got = list(threads.map(lambda question: seen(ours.query(question)), MANY))
        stats = ours.stats

        assert expected == got
        assert stats.round_trips < stats.queries


def test_tenants_never_see_each_other() -> None:
    """Two tenants by filters, at once, over one pool and memo: no word of the other's anywhere."""
    nodes = [*made_nodes(8, mark="ours"), *made_nodes(8, mark="theirs")]
    for node in nodes:
        node.metadata["topic"] = node.node_id.split("-")[0]
    index = VectorStoreIndex(nodes, embed_model=WordEmbedding())
    llm, pool, memo = HashLLM(), SharedPassageCache(), QueryCache()
    engines = {
        tenant: pair(
            llm,
            index.as_retriever(similarity_top_k=3, filters=topic(tenant)),
            "interval",
            pool=pool,
            memo=memo,
            schedule=FixedStride(stride=2),
        )
        for tenant in ("ours", "theirs")
    }
    asked = [(question, tenant) for question in QUESTIONS[:10] for tenant in engines]
    expected = [seen(engines[tenant][0].query(question)) for question, tenant in asked]
    llm.prompts.clear()
    with ThreadPoolExecutor(8) as threads:
        got = list(threads.map(lambda one: seen(engines[one[1]][1].query(one[0])), asked))
    for _, ours in engines.values():
        ours.close()

    assert expected == got
    shown = {
        (" theirs-" in one or "theirs " in one, "ours " in one.replace("theirs", ""))
        for one in llm.prompts
    }
    assert (True, True) not in shown  # not even in a dropped guess
    assert {(True, False), (False, True)} <= shown


async def test_several_event_loops_share_one_engine() -> None:
    """Loops in three threads, and the caller's own: answers as by hand, nothing hangs."""
    hand, ours = pair(
        AsyncHashLLM(), retriever_of("looked into"), "sentences", pool=SharedPassageCache()
    )
    expected = [seen(await hand.aquery(question)) for question in MANY[:6]]

    async def ask_all() -> list[Any]:
        return [seen(one) for one in await asyncio.gather(*(ours.aquery(one) for one in MANY[:6]))]

    with ThreadPoolExecutor(3) as threads:
        loop = asyncio.get_running_loop()
        others = [loop.run_in_executor(threads, lambda: asyncio.run(ask_all())) for _ in range(3)]
        assert [expected] * 4 == [await ask_all(), *await asyncio.gather(*others)]
    await asyncio.to_thread(ours.close)


@pytest.mark.parametrize("workload", WORKLOADS)
async def test_query_works_inside_a_running_event_loop(workload: str) -> None:
    """As in a notebook: whole and streamed, over models that wait and models that compute."""
    for llm in (HashLLM(), AsyncHashLLM()):
        retriever = retriever_of("looked into")
        hand, ours = pair(llm, retriever, workload, replica=LIAR)
        _, streaming = pair(llm, retriever, workload, replica=LIAR, streaming=True)
        expected = [seen(hand.query(question)) for question in QUESTIONS[:3]]
        with ours, streaming:
            assert expected == [seen(ours.query(question)) for question in QUESTIONS[:3]]
            hand._response_synthesizer._streaming = False
            texts = ["".join(streaming.query(one).response_gen) for one in QUESTIONS[:3]]
        assert [one[1] for one in expected] == texts


@pytest.mark.parametrize("workload", WORKLOADS)
async def test_the_event_loop_is_not_blocked(workload: str) -> None:
    """While a store without asynchronous methods sleeps, and a model in a thread, others run."""
    gate = threading.Event()
    retriever, llm = SyncRetriever(made_nodes()), HashLLM()
    hand, ours = pair(llm, retriever, workload)
    expected = seen(hand.query(QUESTIONS[0]))
    retriever.hook = llm.hook = lambda _: gate.wait(10) and None
    task = asyncio.ensure_future(ours.aquery(QUESTIONS[0]))
    for _ in range(50):
        await asyncio.sleep(0.001)
    assert not task.done()
    gate.set()

    assert expected == seen(await task)
    await asyncio.to_thread(ours.close)


class Asking(BaseRetriever):
    """Finds what a query engine says, as a tool or a summary would."""

    def __init__(self, engine: RetrieverQueryEngine) -> None:
        super().__init__()
        self._engine = engine

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        response: Any = self._engine.query(query_bundle)
        return response.source_nodes[:1]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        response: Any = await self._engine.aquery(query_bundle)
        return response.source_nodes[:1]


def leading_on(engine: RetrieverQueryEngine) -> BaseRetriever:
    """Find a node that stands for an engine."""
    leads = [
        IndexNode(id_=f"lead-{at}", text=node.text, index_id="engine", obj=engine)
        for at, node in enumerate(made_nodes(3))
    ]
    index = VectorStoreIndex(objects=leads, embed_model=WordEmbedding())
    return index.as_retriever(similarity_top_k=1)


def without_ids(response: Any) -> Any:
    """Give what a response says; the host makes nodes with random ids of what engines say."""
    return response.response, [(one.text, one.score) for one in response.source_nodes]


@pytest.mark.parametrize("around", [Asking, leading_on])
async def test_engines_inside_of_engines(around: Any) -> None:
    """Behind a retriever, and behind an `IndexNode`: answers and events as with the host's."""
    inner, inner_ours = pair(
        HashLLM(), retriever_of("looked into"), "one_shot", replica=LIAR, report=False
    )
    host = RetrieverQueryEngine.from_args(around(inner), llm=HashLLM())
    with (
        inner_ours,
        SpeculativeQueryEngine.from_args(around(inner_ours), llm=HashLLM(), pure=True) as ours,
    ):
        for question in QUESTIONS[:4]:
            expected, told = goldens(host.query, question)
            got, heard = goldens(ours.query, question)

            assert without_ids(expected) == without_ids(got)
            assert told == heard
            aexpected = await host.aquery(question)
            assert without_ids(aexpected) == without_ids(await ours.aquery(question))


@pytest.mark.parametrize("workload", WORKLOADS)
def test_no_more_calls_at_once_than_the_model_takes(workload: str) -> None:
    """Of all queries together, also where the host's own engine would answer."""
    calls = CallsAtOnce()

    def count(prompt: str) -> None:
        calls.call(prompt)

    guess: dict[str, Any] = {"schedule": FixedStride(stride=2), "guess_through": True}
    hand, free = pair(HashLLM(hook=count), HashRetriever(made_nodes()), workload, **guess)
    expected = [seen(hand.query(question)) for question in MANY]
    most = {}
    for limit in (None, 2):
        ours = free.with_options(max_concurrent_calls=limit)
        calls = CallsAtOnce()
        with ThreadPoolExecutor(8) as threads:
            assert expected == [seen(one) for one in threads.map(ours.query, MANY)]
        most[limit] = calls.most
    free.close()

    assert most[None] > 2 == most[2]


def test_a_limit_on_calls_is_checked_at_once() -> None:
    """With its name."""
    with pytest.raises(ConfigError, match="max_concurrent_calls must be a number of at least 1"):
        pair(HashLLM(), HashRetriever(made_nodes()), max_concurrent_calls=0)
