"""What the factories of LangChain's batch searches share: k, documents of rows, relevances."""

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Final, TypeVar

from ralmspec_plugins.adapters.batch_search import Scored
from ralmspec_plugins.adapters.stores.base import DocumentsOf

DEFAULT_K: Final = 4  # of every search method in langchain_core.vectorstores.VectorStore
RowT = TypeVar("RowT")


def known_k(settings: Mapping[str, Any], known: AbstractSet[str]) -> int | None:
    """Give the k of a retriever's settings; `None` if any of them is not known, or k is strange."""
    k = settings.get("k", DEFAULT_K)
    return k if settings.keys() <= {"k", *known} and type(k) is int and k >= 1 else None


def each_row(document: Callable[[RowT], Scored | None]) -> DocumentsOf[RowT]:
    """Make every document of its own row; rows of which `None` is made are left out."""

    def documents(found: Sequence[list[RowT]]) -> list[list[Scored]]:
        return [[hit for hit in map(document, rows) if hit is not None] for rows in found]

    return documents


def stores_relevance(store: Any) -> Callable[[], Callable[[float], float] | None]:
    """Give relevances by the store's own function, where it knows the collection's distance."""

    def relevance() -> Callable[[float], float] | None:
        try:
            made: Callable[[float], float] = store._select_relevance_score_fn()  # noqa: SLF001
        except ValueError:
            return None
        return made

    return relevance
