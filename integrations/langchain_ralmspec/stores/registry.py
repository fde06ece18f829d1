"""Native batch search of LangChain's vector stores, and which one fits a retriever."""

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

    The scores of what it finds are, to the bit, those that the store's
    `similarity_search_with_score` gives for the same search; `None` where they cannot be had.
    """

    def relevance(self) -> Callable[[float], float] | None:
        """Give the function that makes relevances of scores, as the store's own search does.

        Asked for before each batch of `similarity_score_threshold`. `None`: the store's
        relevances cannot be had from `Scored.score`, and such searches go one by one.
        """
        ...


Factory: TypeAlias = Callable[[VectorStoreRetriever], BatchSearch | None]

_registry: Registry[BatchSearch] = Registry(ENTRY_POINTS, BATCH_SEARCHES)


def register_batch_search(class_name: str, factory: Factory) -> None:
    """Have a vector store class searched in batches.

    Args:
        class_name: "package.module.ClassName", so that no store has to be imported.
            Subclasses are not meant: they may have changed anything.
        factory: gets a retriever of `search_type="similarity"` over a store of exactly this
            class, whose `search_kwargs` are those of the call (without `score_threshold`, which
            is applied behind it), and gives its batch search; `None` for settings that it does
            not know, so that they are searched through the host.

    Raises:
        ConfigError: the name is not a qualified one.
    """
    _registry.register(class_name, factory)


def batch_search_of(retriever: VectorStoreRetriever) -> BatchSearch | None:
    """Give the batch search that is exactly a retriever's own search, or `None`.

    `None` too where somebody has put his own methods on the retriever or its
    store: what they do cannot be known.
    """
    if type(retriever) is not VectorStoreRetriever:
        return None
    return _registry.search_of(retriever, retriever.vectorstore)
