"""Code of a user's may read whose turn it is: by default it shares no passage between requests."""

import sys
from collections.abc import Callable
from contextvars import ContextVar
from types import ModuleType
from typing import Any

import pytest
from llama_index.core import MockEmbedding, VectorStoreIndex
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.llms.types import CompletionResponse
from llama_index.core.llms import MockLLM
from llama_index.core.retrievers import VectorIndexRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.storage.storage_context import StorageContext
from llama_index_ralmspec import SpeculativeQueryEngine
from llama_index_ralmspec.inspection import is_hosts_own

from ralmspec_plugins import FixedStride

TENANTS = ("ada", "bob", "eve")
CURRENT: ContextVar[str] = ContextVar("current", default="nobody")
PROMPTS: list[str] = []


class PromptKeeper(MockLLM):
    """Keeps the prompts that it was given, dropped ones too."""

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        PROMPTS.append(prompt)
        return super().complete(prompt, formatted, **kwargs)


class OwnDocuments(SimpleDocumentStore):
    """A document store that gives each tenant the text of his own."""

    def get_nodes(self, node_ids: list[str], raise_error: bool = True) -> list[Any]:
        who = CURRENT.get()
        return [TextNode(id_=name, text=f"{who} keeps {name}") for name in node_ids]


class OwnSearch(VectorIndexRetriever):
    """A subclass of the host's own: it may do anything."""

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        who = CURRENT.get()
        return [NodeWithScore(node=TextNode(id_=who, text=f"{who} keeps this"), score=1.0)]


def nodes() -> list[TextNode]:
    return [TextNode(id_=f"n{number}", text=f"number {number}") for number in range(6)]


def by_subclass() -> BaseRetriever:
    return OwnSearch(VectorStoreIndex(nodes(), embed_model=MockEmbedding(4)))


def by_namespace_package() -> BaseRetriever:
    """Anyone can publish a class in the host's namespace packages."""
    name = "llama_index.retrievers.acme"
    module = sys.modules.setdefault(name, ModuleType(name))
    kind = type("AcmeRetriever", (OwnSearch,), {"__module__": name})
    module.AcmeRetriever = kind  # type: ignore[attr-defined]
    found: BaseRetriever = kind(VectorStoreIndex(nodes(), embed_model=MockEmbedding(4)))
    return found


def by_docstore() -> BaseRetriever:
    storage = StorageContext.from_defaults(docstore=OwnDocuments())
    index = VectorStoreIndex(nodes(), storage_context=storage, embed_model=MockEmbedding(4))
    return index.as_retriever(similarity_top_k=2)


@pytest.mark.parametrize("make", [by_subclass, by_namespace_package, by_docstore])
def test_code_that_reads_the_context_shares_nothing_by_default(
    make: Callable[[], BaseRetriever],
) -> None:
    """No prompt, dropped ones too, has another tenant's text."""
    engine = SpeculativeQueryEngine.from_args(
        make(), llm=PromptKeeper(max_tokens=3), schedule=FixedStride(stride=2)
    )
    with engine:
        for number in range(12):
            tenant = TENANTS[number % 3]
            CURRENT.set(tenant)
            PROMPTS.clear()
            response = engine.query(f"question {number}")

            assert response.source_nodes
            assert all(one.node.get_content().startswith(tenant) for one in response.source_nodes)
            assert PROMPTS
            assert not any(f"{other} keeps" in prompt for prompt in PROMPTS
                           for other in TENANTS if other != tenant)  # fmt: skip


def test_the_hosts_own_is_known() -> None:
    """The allow-list has what it is for: the host's own retriever over its own stores."""
    index = VectorStoreIndex(nodes(), embed_model=MockEmbedding(4))

    assert is_hosts_own(index.as_retriever())
    assert not any(is_hosts_own(make()) for make in (by_subclass, by_namespace_package))
    assert not is_hosts_own(by_docstore())
