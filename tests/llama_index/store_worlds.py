"""Stores with a corpus in them, and the ways in which users' retrievers search each of them."""

import asyncio
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import chromadb
import faiss
from chromadb.config import Settings
from llama_index.core import VectorStoreIndex
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.indices.vector_store.retrievers import VectorIndexRetriever
from llama_index.core.llms import MockLLM
from llama_index.core.postprocessor import (
    LongContextReorder,
    MetadataReplacementPostProcessor,
    SimilarityPostprocessor,
)
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.retrievers import QueryFusionRetriever
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle, TextNode
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index.retrievers.bm25 import BM25Retriever
from llama_index.vector_stores.chroma import ChromaVectorStore
from llama_index.vector_stores.faiss import FaissVectorStore
from llama_index.vector_stores.lancedb import LanceDBVectorStore
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import AsyncQdrantClient, QdrantClient, models

from tests.llama_index.conftest import black_box, indexed
from tests.llama_index.contract import topic
from tests.llama_index.rag_parts import ScoresIntoTexts
from tests.llama_index.worlds import WordEmbedding, corpus

SIZE = 60  # nodes of a store
MORE = 500  # a k that no store has
Ways = list[BaseRetriever]
Store = Callable[[Path], Ways]

_names = itertools.count()


def ways_of(index: VectorStoreIndex) -> Ways:
    """Search an index in all ways: few, many, filtered, nothing found, all."""
    settings: tuple[dict[str, Any], ...] = (
        {"similarity_top_k": 1},
        {"similarity_top_k": 4},
        {"similarity_top_k": 4, "filters": topic("t1")},
        {"similarity_top_k": 2, "filters": topic("none")},
        {"similarity_top_k": MORE},
    )
    return [VectorIndexRetriever(index, embed_model=index._embed_model, **one) for one in settings]


def _simple(folder: Path) -> Ways:
    return ways_of(indexed(SimpleVectorStore(), SIZE))


def _faiss(folder: Path) -> Ways:
    return ways_of(indexed(FaissVectorStore(faiss_index=faiss.IndexFlatIP(24)), SIZE))


def _chroma(folder: Path) -> Ways:
    client = chromadb.EphemeralClient(Settings(anonymized_telemetry=False))
    collection = client.create_collection(
        f"llama-index-requests-{next(_names)}", embedding_function=None
    )
    return ways_of(indexed(ChromaVectorStore(chroma_collection=collection), SIZE))


def _qdrant(folder: Path) -> Ways:
    """Whole numbers: of others its local mode does not sum twice alike.

    In this mode each client has points of its own: both get the same.
    """
    name, embedding = f"llama-index-requests-{next(_names)}", WordEmbedding(coarse=True)
    settings: dict[str, Any] = {
        "client": QdrantClient(":memory:"),
        "aclient": AsyncQdrantClient(":memory:"),
        "dense_config": models.VectorParams(size=24, distance=models.Distance.DOT),
    }
    awaited = QdrantVectorStore(name, **settings)
    nodes = corpus(SIZE)
    for node in nodes:
        node.embedding = embedding.get_text_embedding(node.get_content(MetadataMode.EMBED))
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, awaited.async_add(nodes)).result()
    return ways_of(indexed(QdrantVectorStore(name, **settings), SIZE, embedding))


def _lancedb(folder: Path) -> Ways:
    return ways_of(indexed(LanceDBVectorStore(uri=str(folder), overfetch_factor=1), SIZE))


def _bm25(folder: Path) -> Ways:
    """Nodes whose ids nobody gave them, among them many that are the same."""
    nodes = [TextNode(text=one.text, metadata={"odd": 1}) for one in corpus(SIZE)]
    return [BM25Retriever.from_defaults(nodes=nodes, similarity_top_k=k) for k in (1, 4, MORE)]


def _fusion(folder: Path) -> Ways:
    vectors = indexed(SimpleVectorStore(), SIZE).as_retriever(similarity_top_k=6)
    words = BM25Retriever.from_defaults(nodes=corpus(SIZE), similarity_top_k=6)
    modes: Any = ("reciprocal_rerank", "relative_score", "dist_based_score", "simple")
    return [
        QueryFusionRetriever(
            [vectors, words], MockLLM(), mode=mode, num_queries=1, similarity_top_k=k
        )
        for mode, k in zip(modes, (1, 4, 5, MORE), strict=True)
    ]


def _black(name: str, folder: Path) -> Ways:
    return [black_box(name)]


class Repeating(BaseRetriever):
    """Finds the same nodes again and again, some without a score, in no order."""

    def __init__(self, nodes: Sequence[TextNode], times: int) -> None:
        super().__init__()
        self._nodes, self._times = list(nodes), times

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        at = len(query_bundle.query_str) % 7
        found = (self._nodes[at : at + 3] * self._times)[::-1]
        return [
            NodeWithScore(node=node, score=number / 7 if number % 2 else None)
            for number, node in enumerate(found)
        ]


def _repeating(folder: Path) -> Ways:
    """Duplicates: the same objects, and other nodes of the same text."""
    twice = [node for node in corpus(20) for _ in range(2)]
    return [Repeating(corpus(20), 3), Repeating(twice, 2), Repeating([], 1)]


STORES: dict[str, Store] = {
    "simple": _simple,
    "faiss": _faiss,
    "chroma": _chroma,
    "qdrant": _qdrant,
    "lancedb": _lancedb,
    "bm25": _bm25,
    "fusion": _fusion,
    "auto merging": partial(_black, "auto merging"),
    "recursive": partial(_black, "recursive"),
    "repeating": _repeating,
}

PROCESSORS: tuple[tuple[BaseNodePostprocessor, ...], ...] = (
    (),
    (SimilarityPostprocessor(similarity_cutoff=0.4),),
    (),
    (LongContextReorder(), MetadataReplacementPostProcessor(target_metadata_key="topic")),
    (ScoresIntoTexts(),),
)
