"""A node deleted or replaced: seen by the next query, over a memo at once after a word."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index_ralmspec import SpeculativeRetriever

from ralmspec_plugins import QueryCache, SharedPassageCache
from tests.llama_index.engine_parts import WordEmbedding, seen, seen_nodes
from tests.llama_index.rag_parts import HashLLM, made_nodes, pair

QUESTION = "Who saw the ships?"


class OwnStore(SimpleVectorStore):
    """Not looked into: a subclass."""


class HeldRetriever(BaseRetriever):
    """A black box that can be held up when it has found its nodes.

    Under `reading` the index may be changed: a search of LlamaIndex that runs beside a deletion
    raises `KeyError`.
    """

    def __init__(self, inner: BaseRetriever, found: Callable[[], None]) -> None:
        super().__init__()
        self._inner, self._found, self.reading = inner, found, threading.Lock()

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        with self.reading:
            nodes = self._inner.retrieve(query_bundle)
        self._found()
        return nodes


STORES: dict[str, Callable[[], Any]] = {"looked into": SimpleVectorStore, "black box": OwnStore}


def filled(kind: str) -> Any:
    context = StorageContext.from_defaults(vector_store=STORES[kind]())
    return VectorStoreIndex(made_nodes(), storage_context=context, embed_model=WordEmbedding())


def deleted(index: Any, node: TextNode) -> None:
    index.delete_nodes([node.node_id], delete_from_docstore=True)


def replaced(index: Any, node: TextNode) -> None:
    deleted(index, node)
    index.insert_nodes([TextNode(id_=node.node_id, text="another passage about ships")])


CHANGES = {"deleted": deleted, "replaced": replaced}


@pytest.mark.parametrize("kind", STORES)
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("memo", [False, True], ids=["none", "memo"])
@pytest.mark.parametrize("workload", ["one_shot", "sentences"])
def test_the_next_query_sees_the_change(kind: str, change: str, memo: bool, workload: str) -> None:
    """With a memo after `invalidate` alone; then the old text stands in no prompt either."""
    index, llm = filled(kind), HashLLM(prompts=[])
    settings: dict[str, Any] = {"memo": QueryCache()} if memo else {}
    hand, ours = pair(
        llm,
        index.as_retriever(similarity_top_k=2),
        workload,
        pool=SharedPassageCache(),
        guess_through=True,
        **settings,
    )
    first = ours.query(QUESTION)
    changed = first.source_nodes[0].node
    CHANGES[change](index, changed)
    truth = seen(hand.query(QUESTION))
    at_once = seen(ours.query(QUESTION))
    ours.invalidate()
    llm.prompts.clear()
    after, other = seen(ours.query(QUESTION)), seen(ours.query("Who sold it?"))
    prompts = list(llm.prompts)
    expected = seen(hand.query("Who sold it?"))
    ours.close()

    assert changed.text not in repr(truth)
    assert at_once == (seen(first) if memo else truth)
    assert [after, other] == [truth, expected]
    assert prompts
    assert not [prompt for prompt in prompts if changed.text in prompt]


class Hold:
    """Holds up whoever passes, until it is told to let go."""

    def __init__(self) -> None:
        self._here, self._go_on = threading.Event(), threading.Event()

    def passed(self) -> None:
        self._here.set()
        assert self._go_on.wait(10)

    @contextmanager
    def asking(self, ask: Callable[[], Any]) -> Iterator[None]:
        """Ask in a thread; what is done inside is done while a search has found its nodes."""
        running = threading.Thread(target=ask)
        running.start()
        assert self._here.wait(10)
        yield
        self._go_on.set()
        running.join(10)


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("memo", [False, True], ids=["none", "memo"])
def test_a_query_in_flight_teaches_nothing(asynchronous: bool, memo: bool) -> None:
    """Its search has read the node that is deleted then, and returns after the word."""
    index, llm, hold = filled("black box"), HashLLM(prompts=[]), Hold()
    inner = index.as_retriever(similarity_top_k=2)
    retriever = HeldRetriever(inner, lambda: hold.passed())
    gone: Any = inner.retrieve(QUESTION)[0].node
    settings: dict[str, Any] = {"memo": QueryCache()} if memo else {}
    hand, ours = pair(llm, retriever, "sentences", pool=SharedPassageCache(), **settings)

    def ask() -> None:
        if asynchronous:
            asyncio.run(ours.aquery(QUESTION))
        else:
            ours.query(QUESTION)

    with hold.asking(ask):
        with retriever.reading:
            deleted(index, gone)
        ours.invalidate()
    llm.prompts.clear()
    after = seen(ours.query(QUESTION))
    prompts, truth = list(llm.prompts), seen(hand.query(QUESTION))
    ours.close()

    assert after == truth
    assert prompts
    assert not [prompt for prompt in prompts if gone.text in prompt]


@pytest.mark.parametrize("way", ["retrieve", "aretrieve", "retrieve_batch", "aretrieve_batch"])
def test_the_retriever_alone(way: str) -> None:
    """A search in flight is neither remembered nor guessed from."""
    index, hold = filled("black box"), Hold()
    inner = index.as_retriever(similarity_top_k=2)
    retriever = HeldRetriever(inner, lambda: hold.passed())
    gone: Any = inner.retrieve(QUESTION)[0].node
    ours: Any = SpeculativeRetriever(retriever, QueryCache(), SharedPassageCache())
    asked: Any = [QUESTION, "Who sold it?"] if "batch" in way else QUESTION

    def ask() -> None:
        given = getattr(ours, way)(asked)
        if asyncio.iscoroutine(given):
            asyncio.run(given)

    with hold.asking(ask):
        with retriever.reading:
            deleted(index, gone)
        ours.invalidate()
    guess = ours.guess(QUESTION)
    found = seen_nodes(ours.retrieve(QUESTION))

    assert gone.text not in repr(guess)
    assert found == seen_nodes(retriever.retrieve(QUESTION)) == seen_nodes(ours.retrieve(QUESTION))
    assert gone.text not in repr(found)
    assert ours.stats.remembered == 1
    ours.invalidate()
    assert ours.guess(QUESTION) is None
