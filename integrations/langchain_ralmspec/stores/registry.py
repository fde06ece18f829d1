"""The registry of native batch searches of LangChain's vector stores."""

from collections.abc import Callable
from typing import Final, Protocol, TypeAlias

from langchain_core.vectorstores import VectorStoreRetriever

from langchain_ralmspec.stores import BATCH_SEARCHES
from ralmspec_plugins.adapters import batch_search as hosts
from ralmspec_plugins.adapters.batch_search import Metric, Registry, Scored, Vector
from ralmspec_plugins.adapters.fingerprint import qualified_name

__all__ = (
    "BatchSearch",
    "Factory",
    "Metric",
    "Scored",
    "Vector",
    "batch_search_of",
    "qualified_name",
    "register_batch_search",
)

ENTRY_POINTS: Final = "ralmspec_plugins.langchain_batch_search"


class BatchSearch(hosts.BatchSearch, Protocol):
    """Searches many query vectors in one call, with the settings of one retriever.

    Its scores equal to the bit those of the store's `similarity_search_with_score` for the same
    search; they are `None` if these are not available.
    """

    def relevance(self) -> Callable[[float], float] | None:
        """Return the function from scores to relevance scores of the store's own search.

        Called before each batch of `similarity_score_threshold`. `None`: the store's relevance
        scores cannot be computed from `Scored.score`, and such searches are made one by one.
        """
        ...


Factory: TypeAlias = Callable[[VectorStoreRetriever], BatchSearch | None]

_registry: Registry[BatchSearch] = Registry(ENTRY_POINTS, BATCH_SEARCHES)


def register_batch_search(class_name: str, factory: Factory) -> None:
    """Register the batch search of a vector store class.

    Args:
        class_name: "package.module.ClassName", so that no store has to be imported.
            Subclasses are not included: they may behave differently.
        factory: takes a retriever of `search_type="similarity"` over a store of exactly this
            class, whose `search_kwargs` are those of the call (without `score_threshold`, which
            is applied to its results), and returns its batch search; `None` for settings that
            it does not support, which are then searched through the host.

    Raises:
        ConfigError: the name is not qualified.
    """
    _registry.register(class_name, factory)


def batch_search_of(retriever: VectorStoreRetriever) -> BatchSearch | None:
    """Return the batch search that equals a retriever's own search, or `None`.

    It is also `None` if methods of the retriever or its store were replaced on the instance.
    """
    if type(retriever) is not VectorStoreRetriever:
        return None
    return _registry.search_of(retriever, retriever.vectorstore)
