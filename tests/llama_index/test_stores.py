"""SimpleVectorStore and FAISS behind LlamaIndex: batches give the host's nodes and scores."""

import math
from typing import Any, ClassVar

import faiss
import numpy as np
import pytest
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index.vector_stores.faiss import FaissVectorStore

from tests.llama_index.contract import StoreContract, topic
from tests.llama_index.worlds import WordEmbedding, corpus

SOME = [node.node_id for node in corpus()[::3]]


def indexed(store: Any, embedding: WordEmbedding, size: int = 300) -> VectorStoreIndex:
    """Put the corpus into a store."""
    context = StorageContext.from_defaults(vector_store=store)
    return VectorStoreIndex(corpus(size), storage_context=context, embed_model=embedding)


class TestSimple(StoreContract):
    """The host's default store."""

    narrowed: ClassVar[list[dict[str, Any]]] = [
        *StoreContract.narrowed,
        {"node_ids": SOME},
        {"node_ids": SOME, "filters": topic("t2"), "similarity_top_k": 50},
    ]
    metric = "cosine"

    @pytest.fixture(scope="class")
    @classmethod
    def index(cls, embedding: WordEmbedding) -> VectorStoreIndex:
        return indexed(SimpleVectorStore(), embedding)
