"""Factories of batch searches by the class names of vector stores; no store is imported.

A factory takes a `VectorIndexRetriever` and returns a `BatchSearch`, or `None` for
settings that it does not support (`llama_index_ralmspec.stores.registry`).
"""

from typing import Final

BATCH_SEARCHES: Final = {
    f"llama_index.{place}": f"llama_index_ralmspec.stores.{function}"
    for place, function in (
        ("core.vector_stores.simple.SimpleVectorStore", "simple:simple_search"),
        ("vector_stores.faiss.base.FaissVectorStore", "faiss:faiss_search"),
        ("vector_stores.chroma.base.ChromaVectorStore", "chroma:chroma_search"),
        ("vector_stores.qdrant.base.QdrantVectorStore", "qdrant:qdrant_search"),
        ("vector_stores.lancedb.base.LanceDBVectorStore", "lancedb:lancedb_search"),
        ("vector_stores.milvus.base.MilvusVectorStore", "milvus:milvus_search"),
    )
}
