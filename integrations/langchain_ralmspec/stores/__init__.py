"""Which function makes the batch search of which vector store, by names: no store is imported.

The functions get a `VectorStoreRetriever` and give a `BatchSearch`, or `None`
for settings that they do not know (`langchain_ralmspec.batch_search`).
"""

BATCH_SEARCHES = {
    "langchain_core.vectorstores.in_memory.InMemoryVectorStore": (
        "langchain_ralmspec.stores.in_memory:in_memory_search"
    ),
}
