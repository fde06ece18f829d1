"""Native batch search of LlamaIndex's vector stores: which adapter fits which retriever.

The host's stores take one embedding a call, so each is reached by a small adapter for
exactly known classes and settings (`ralmspec_plugins.adapters.batch_search`). What no adapter
knows is searched through the host, query by query.
"""

from typing import Final

from llama_index.core.indices.vector_store.retrievers import VectorIndexRetriever

from llama_index_ralmspec.stores import BATCH_SEARCHES
from ralmspec_plugins.adapters.batch_search import (
    BatchSearch,
    Factory,
    Metric,
    Registry,
    Scored,
    Vector,
)

ENTRY_POINTS: Final = "ralmspec_plugins.llama_index_batch_search"

__all__ = [
    "ENTRY_POINTS",
    "BatchSearch",
    "Factory",
    "Metric",
    "Scored",
    "Vector",
    "batch_search_of",
    "register_batch_search",
]

_registry: Registry[BatchSearch] = Registry(ENTRY_POINTS, BATCH_SEARCHES)


def register_batch_search(class_name: str, factory: Factory[BatchSearch]) -> None:
    """Have a vector store class searched in batches.

    What a batch search finds must be what the retriever itself gives, scores to the bit,
    before it enters what its nodes stand for and leaves out what came twice.

    Args:
        class_name: "package.module.ClassName", so that no store has to be imported.
            Subclasses are not meant: they may have changed anything.
        factory: gets a `VectorIndexRetriever` over a store of exactly this class, and gives
            its batch search; `None` for settings that it does not know, so that they are
            searched through the host.

    Raises:
        ConfigError: the name is not a qualified one.
    """
    _registry.register(class_name, factory)


def batch_search_of(retriever: VectorIndexRetriever) -> BatchSearch | None:
    """Give the batch search that is exactly a retriever's own search, or `None`.

    `None` too where somebody has put his own methods on the retriever, its index or its
    store: what they do cannot be known.
    """
    if type(retriever) is not VectorIndexRetriever:
        return None
    return _registry.search_of(retriever, retriever._vector_store)  # noqa: SLF001 no public name
