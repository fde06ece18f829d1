"""Factories of batch searches by the class names of vector stores; no store is imported.

A factory takes a `VectorStoreRetriever` and returns a `BatchSearch`, or `None` for
settings that it does not support (`langchain_ralmspec.stores.registry`).
"""

BATCH_SEARCHES = {
    "langchain_core.vectorstores.in_memory.InMemoryVectorStore": (
        "langchain_ralmspec.stores.in_memory:in_memory_search"
    ),
    "langchain_community.vectorstores.faiss.FAISS": "langchain_ralmspec.stores.faiss:faiss_search",
    "langchain_chroma.vectorstores.Chroma": "langchain_ralmspec.stores.chroma:chroma_search",
    "langchain_qdrant.qdrant.QdrantVectorStore": "langchain_ralmspec.stores.qdrant:qdrant_search",
    "langchain_community.vectorstores.lancedb.LanceDB": (
        "langchain_ralmspec.stores.lancedb:lancedb_search"
    ),
    "langchain_milvus.vectorstores.milvus.Milvus": (
        "langchain_ralmspec.stores.milvus:milvus_search"
    ),
}
