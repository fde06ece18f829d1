"""Known code that is not as it was shipped, or not alone: it is a user's own, in each way."""

import time
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import wrapt
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.schema import TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters, SimpleVectorStore
from llama_index_ralmspec import SpeculativeQueryEngine, SpeculativeRetriever

from tests.llama_index.engine_parts import WordEmbedding, WordLLM

tenant_now: ContextVar[str] = ContextVar("tenant_now", default="nobody")


def _by_wrapt(original: Any, run: Any) -> Any:
    return wrapt.FunctionWrapper(original, lambda _, own, args, __: run(own, *args))


class _Descriptor:
    def __init__(self, run: Any) -> None:
        self._run = run

    def __get__(self, own: Any, kind: Any = None) -> Any:
        return self if own is None else partial(self._run, own)


def _in_namespace(original: Any, run: Any) -> Any:
    made: dict[str, Any] = {"__name__": "llama_index.mine.patch", "run": run}
    exec("def query(self, *args, **kwargs): return run(self, *args)", made)
    return made["query"]


STYLES: dict[str, Any] = {
    "wrapt": _by_wrapt,
    "descriptor": lambda _, run: _Descriptor(run),
    "namespace": _in_namespace,
}


@pytest.mark.parametrize("style", STYLES)
def test_a_method_replaced_in_any_way_is_a_users_own(
    style: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A filter of the caller's tenant, put around the store's search as tracing packages do."""
    original = SimpleVectorStore.query

    def run(own: Any, query: Any, *_: Any) -> Any:
        only = MetadataFilters(filters=[MetadataFilter(key="tenant", value=tenant_now.get())])
        return original(own, replace(query, filters=only))

    nodes = [
        TextNode(id_=f"{name}{at}", text=f"{name}-secret-{at}", metadata={"tenant": name})
        for name in "AB"
        for at in range(4)
    ]
    index = VectorStoreIndex(nodes, embed_model=WordEmbedding())
    monkeypatch.setattr(SimpleVectorStore, "query", STYLES[style](original, run))
    llm = WordLLM(prompts=[])
    with SpeculativeQueryEngine.from_index(index, llm=llm, similarity_top_k=2) as engine:
        for name in "ABAB":
            tenant_now.set(name)
            llm.prompts.clear()
            found = [one.node_id for one in engine.query("which secret?").source_nodes]
            assert [name] * 2 == [one[0] for one in found]
            assert llm.prompts
            other = "B" if name == "A" else "A"
            assert not [one for one in llm.prompts if f"{other}-secret" in one]


def test_a_docstore_of_a_users_own_is_read_in_its_callers_context() -> None:
    """Searches of many callers are not merged where code of a user's own takes part in them."""

    class View(SimpleDocumentStore):
        def get_nodes(self, node_ids: list[str], raise_error: bool = True) -> list[Any]:
            time.sleep(0.005)
            found = super().get_nodes(node_ids, raise_error)
            return [TextNode(id_=one.node_id, text=f"{tenant_now.get()}-secret") for one in found]

    index = VectorStoreIndex(
        [TextNode(id_=f"n{at}", text=f"text {at}") for at in range(8)],
        embed_model=WordEmbedding(),
        storage_context=StorageContext.from_defaults(docstore=View()),
    )
    jobs = [(name, f"q{at % 4}") for at in range(6) for name in "AB"]

    def ask(name: str, question: str) -> list[str]:
        tenant_now.set(name)
        return [one.text for one in retriever.retrieve(question)]

    with (
        SpeculativeRetriever(index.as_retriever(similarity_top_k=3)) as retriever,
        ThreadPoolExecutor(8) as threads,
    ):
        found = list(threads.map(lambda job: copy_context().run(ask, *job), jobs))

    assert [[f"{name}-secret"] * 3 for name, _ in jobs] == found
