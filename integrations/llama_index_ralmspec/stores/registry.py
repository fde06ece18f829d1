"""The registry of native batch searches of LlamaIndex' vector stores.

The host's stores take one embedding per call, so each has a small adapter for exactly known
classes and settings (`ralmspec_plugins.adapters.batch_search`). Without an adapter, a store is
searched through the host, query by query.
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
    """Register the batch search of a vector store class.

    The results of a batch search must equal those of the retriever itself, scores to the bit,
    before it retrieves from the objects of index nodes and removes duplicates.

    Args:
        class_name: "package.module.ClassName", so that no store has to be imported.
            Subclasses are not included: they may behave differently.
        factory: takes a `VectorIndexRetriever` over a store of exactly this class, and returns
            its batch search; `None` for settings that it does not support, which are then
            searched through the host.

    Raises:
        ConfigError: the name is not qualified.
    """
    _registry.register(class_name, factory)


def batch_search_of(retriever: VectorIndexRetriever) -> BatchSearch | None:
    """Return the batch search that equals a retriever's own search, or `None`.

    It is also `None` if methods of the retriever, its index or its store were replaced on the
    instance.
    """
    if type(retriever) is not VectorIndexRetriever:
        return None
    return _registry.search_of(retriever, retriever._vector_store)  # noqa: SLF001 no public name
