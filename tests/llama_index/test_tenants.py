"""One engine for many tenants: nobody is shown, as an answer or as a guess, what is another's."""

from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import pytest
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.llms import MockLLM
from llama_index.core.retrievers import QueryFusionRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index_ralmspec import SpeculativeQueryEngine, SpeculativeRetriever, stats_of

from ralmspec_plugins import FixedStride, QueryCache, SharedPassageCache
from ralmspec_plugins.adapters.retriever_state import HitPayload
from tests.llama_index.engine_parts import QUESTIONS, WordLLM, an_index, seen_nodes

TENANT: ContextVar[str] = ContextVar("tenant", default="ada")
EAGER = FixedStride(stride=3)  # guesses as often as it can


def secrets(tenant: str) -> list[NodeWithScore]:
    """List what belongs to a tenant."""
    nodes = [TextNode(text=f"secret {at} of {tenant}", id_=f"{tenant}{at}") for at in range(2)]
    return [NodeWithScore(node=one, score=0.5) for one in nodes]


class LoggedIn(BaseRetriever):
    """Finds what belongs to whoever has logged in."""

    def __init__(self) -> None:
        self._user = "ada"
        super().__init__()

    def login(self, user: str) -> None:
        """Let somebody in, and the one before out."""
        self._user = user

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return secrets(self._user)


class FromContext(LoggedIn):
    """Reads in a `ContextVar` who asks."""

    def login(self, user: str) -> None:
        """Set it."""
        TENANT.set(user)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return secrets(TENANT.get())


@pytest.fixture
def engines() -> Iterator[list[SpeculativeQueryEngine]]:
    """Engines to be closed."""
    made: list[SpeculativeQueryEngine] = []
    yield made
    for one in made:
        one.close()


@pytest.mark.parametrize("workload", ["one_shot", "sentences"])
@pytest.mark.parametrize("kind", [LoggedIn, FromContext])
def test_no_tenant_sees_anothers_nodes_in_a_prompt(
    kind: type[LoggedIn], workload: Any, engines: list[SpeculativeQueryEngine]
) -> None:
    """Not even a prompt that is thrown away later shows them; a tenant's own are guessed."""
    retriever, llm = kind(), WordLLM(prompts=[])
    how: dict[str, Any] = {"workload": workload, "schedule": EAGER}
    if workload != "one_shot":
        how["bound"] = "max_tokens"
    engine = SpeculativeQueryEngine.from_args(retriever, llm=llm, **how)
    engines.append(engine)
    shown: list[tuple[str, list[str]]] = []
    for tenant in ("ada", "bob", "ada", "cid"):
        retriever.login(tenant)
        llm.prompts.clear()
        for question in QUESTIONS[:2]:
            engine.query(question)
        shown.append((tenant, list(llm.prompts)))

    for tenant, prompts in shown:
        others = {"ada", "bob", "cid"} - {tenant}
        assert prompts
        assert all(f"of {tenant}" in one for one in prompts)
        assert not any(f"of {other}" in one for one in prompts for other in others)


def test_a_shared_pool_that_was_given_stays(engines: list[SpeculativeQueryEngine]) -> None:
    """Who gives one says that it may be shared: a second query guesses with the first one's."""
    guesses = []
    for pool in ({}, {"pool": SharedPassageCache()}):
        engine = SpeculativeQueryEngine.from_args(
            FromContext(), llm=WordLLM(prompts=[]), schedule=EAGER, **pool
        )
        engines.append(engine)
        engine.query(QUESTIONS[0])
        guesses.append(stats_of(engine.query(QUESTIONS[1])).guesses)

    assert [0, 1] == guesses


def test_a_pool_keeps_nothing_that_a_guess_does_not_need(
    engines: list[SpeculativeQueryEngine],
) -> None:
    """Nothing of an opaque retriever's call but its nodes and scores."""
    fusion = QueryFusionRetriever([an_index().as_retriever()], MockLLM(), num_queries=1)
    memo, pool = QueryCache(), SharedPassageCache()
    engine = SpeculativeQueryEngine.from_args(fusion, llm=WordLLM(prompts=[]), memo=memo, pool=pool)
    engines.append(engine)
    engine.query(QUESTIONS[0])
    [(remembered, *_)] = memo._entries.values()
    [part] = pool._parts.values()

    assert len(remembered) > 0
    assert {hit.features for hit in part._hits} == {HitPayload()}
    assert set(remembered) <= set(part._hits)


@pytest.mark.parametrize("layer", ["engine", "retriever"])
def test_a_memo_follows_a_login(layer: str, engines: list[SpeculativeQueryEngine]) -> None:
    """What was set by a method, under a name of its own, is part of what is remembered."""
    inner, memo = LoggedIn(), QueryCache()
    engine = SpeculativeQueryEngine.from_args(inner, llm=WordLLM(prompts=[]), memo=memo)
    engines.append(engine)
    retriever = SpeculativeRetriever(inner, memo=memo)
    found = []
    for tenant in ("ada", "bob", "ada"):
        inner.login(tenant)
        nodes = engine.query("q").source_nodes if layer == "engine" else retriever.retrieve("q")
        found.append({one.node.node_id[:3] for one in nodes})

    assert [{"ada"}, {"bob"}, {"ada"}] == found
    assert memo.size == 2


class TestQueriesOfTheirOwn:
    """Bundles that say more than their text, as HyDE's do: each has a signature of its own."""

    def test_they_push_nobody_out(self, engines: list[SpeculativeQueryEngine]) -> None:
        """A hundred of them leave what is kept for others as it was, and answer as the host's."""
        index, pool = an_index(), SharedPassageCache(parts=2)
        engine = SpeculativeQueryEngine.from_index(index, llm=WordLLM(prompts=[]), pool=pool)
        layer = SpeculativeRetriever(index.as_retriever(), pool=pool)
        engines.append(engine)
        engine.query(QUESTIONS[0])
        layer.retrieve(QUESTIONS[0])
        kept = stats_of(engine.query(QUESTIONS[1]))
        threads = engine._runtime._threads
        for at in range(100):
            hyde = QueryBundle(QUESTIONS[1], custom_embedding_strs=[f"hyde {at} fox"])
            if at < 3:
                expected = index.as_retriever().retrieve(QueryBundle(**vars(hyde)))
                assert seen_nodes(expected) == seen_nodes(engine.query(hyde).source_nodes)
                assert seen_nodes(expected) == seen_nodes(layer.retrieve(hyde))
            engine._assembled().engines(hyde)
            layer._call(hyde)

        assert 1 == len(engine._runtime._engines) == len(engine._assembled()._host._known._looks)
        assert 1 == len(layer._service.runtime._verifiers)
        assert kept.guesses == 1  # with what the first query found
        assert 1 == stats_of(engine.query("And now, for the fox?")).guesses
        assert threads is engine._runtime._threads

    async def test_they_stream_and_are_awaited(self, engines: list[SpeculativeQueryEngine]) -> None:
        """An engine that is not kept lives as long as its stream."""
        index = an_index()
        engine = SpeculativeQueryEngine.from_index(index, llm=WordLLM(prompts=[]), streaming=True)
        engines.append(engine)
        host = index.as_query_engine(llm=WordLLM(prompts=[]))
        hyde = QueryBundle(QUESTIONS[0], custom_embedding_strs=["a red fox"])
        expected = str(host.query(QueryBundle(**vars(hyde))))
        given: Any = engine.query(hyde)
        awaited: Any = await engine.aquery(hyde)

        assert expected == "".join(given.response_gen)
        assert expected == "".join([piece async for piece in awaited.response_gen])
