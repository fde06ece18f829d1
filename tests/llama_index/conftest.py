"""What the tests of LlamaIndex' retrievers share: stores and black boxes."""

import copy
import threading
from collections import Counter
from typing import Any

import pytest
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks.base import global_stack_trace, global_stack_trace_ids
from llama_index.core.callbacks.schema import BASE_TRACE_EVENT
from llama_index.core.llms import MockLLM
from llama_index.core.retrievers import (
    AutoMergingRetriever,
    QueryFusionRetriever,
    RecursiveRetriever,
)
from llama_index.core.schema import (
    IndexNode,
    NodeRelationship,
    NodeWithScore,
    QueryBundle,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryResult

from tests.llama_index.worlds import WordEmbedding, corpus

BLACK_BOXES = ("words", "bm25", "fusion", "fusion of scores", "auto merging", "recursive")


class WordSearch(BaseRetriever):
    """Gives the nodes that share a word with the query: some or none, most without scores.

    Hands out the very objects that it keeps, as some hosts do, and counts its calls.
    """

    def __init__(self, nodes: list[TextNode]) -> None:
        super().__init__()
        self.found = [
            NodeWithScore(node=node, score=at / 7 if at % 3 else None)
            for at, node in enumerate(nodes)
        ]
        self.calls: Counter[str] = Counter()  # a number would make it another one each time

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        self.calls[query_bundle.query_str] += 1
        if query_bundle.query_str == "fail":
            raise ConnectionError("the store is down")
        words = set(query_bundle.query_str.split())
        return [one for one in self.found if words & set(one.node.get_content().split())][:5]


class CountingStore(SimpleVectorStore):
    """Counts its searches, and can fail. Not looked into: a subclass."""

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        with _lock:
            searches[id(self)] = searches.get(id(self), 0) + 1
        if query.query_str == "fail":
            raise ConnectionError("the store is down")
        return super().query(query, **kwargs)


_lock = threading.Lock()
searches: dict[int, int] = {}  # of counting stores


def indexed(store: Any, size: int = 300, embedding: WordEmbedding | None = None) -> Any:
    """Put the corpus into a store."""
    context = StorageContext.from_defaults(vector_store=store)
    return VectorStoreIndex(
        corpus(size), storage_context=context, embed_model=embedding or WordEmbedding()
    )


def black_box(name: str) -> BaseRetriever:
    """Make a retriever that cannot be looked into."""
    if name == "words":
        return WordSearch(copy.deepcopy(corpus()))
    if name == "auto merging":
        return _merging()
    vectors = indexed(SimpleVectorStore(), 120).as_retriever(similarity_top_k=6)
    if name == "recursive":
        leading = [
            IndexNode(id_=f"lead-{at}", text=node.text, index_id="vectors")
            for at, node in enumerate(corpus(40)[::4])
        ]
        index = VectorStoreIndex(leading, embed_model=WordEmbedding())
        root = index.as_retriever(similarity_top_k=2)
        return RecursiveRetriever("root", {"root": root, "vectors": vectors})
    from llama_index.retrievers.bm25 import BM25Retriever

    bm25 = BM25Retriever(nodes=corpus(120), similarity_top_k=6)
    if name == "bm25":
        return bm25
    mode: Any = "relative_score" if name == "fusion of scores" else "reciprocal_rerank"
    return QueryFusionRetriever(
        [vectors, bm25], MockLLM(), mode=mode, num_queries=1, similarity_top_k=5
    )


def _merging() -> BaseRetriever:
    """Make a retriever that gives parents where enough of their children are found."""
    leaves = copy.deepcopy(corpus(60))
    parents = [TextNode(id_=f"parent-{at}", text=f"parent {at}") for at in range(6)]
    for at, leaf in enumerate(leaves):
        parent = parents[at % 6]
        leaf.relationships[NodeRelationship.PARENT] = RelatedNodeInfo(node_id=parent.node_id)
        children: Any = parent.relationships.setdefault(NodeRelationship.CHILD, [])
        children.append(RelatedNodeInfo(node_id=leaf.node_id))
    context = StorageContext.from_defaults()
    context.docstore.add_documents([*parents, *leaves])
    index = VectorStoreIndex(leaves, storage_context=context, embed_model=WordEmbedding())
    return AutoMergingRetriever(
        index.as_retriever(similarity_top_k=12),  # type: ignore[arg-type]
        context,
        simple_ratio_thresh=0.25,
    )


@pytest.fixture(autouse=True)
def _fresh_trace() -> None:
    """Begin with no trace of the host's open: what is called outside of a query leaves its own."""
    global_stack_trace.set([BASE_TRACE_EVENT])
    global_stack_trace_ids.set([])


@pytest.fixture
def index() -> VectorStoreIndex:
    """An index that is looked into."""
    made: VectorStoreIndex = indexed(SimpleVectorStore())
    return made


@pytest.fixture
def counting() -> VectorStoreIndex:
    """An index whose store counts, as a black box."""
    made: VectorStoreIndex = indexed(CountingStore(), 60)
    return made
