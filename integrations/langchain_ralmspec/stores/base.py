"""Shared parts of the factories of batch searches: k, documents of rows, relevance scores."""

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Final, TypeVar

from ralmspec_plugins.adapters.batch_search import Scored
from ralmspec_plugins.adapters.stores.base import DocumentsOf

DEFAULT_K: Final = 4  # of every search method in langchain_core.vectorstores.VectorStore
RowT = TypeVar("RowT")


def known_k(settings: Mapping[str, Any], known: AbstractSet[str]) -> int | None:
    """Return the k of a retriever's settings; `None` if it or another setting is unsupported."""
    k = settings.get("k", DEFAULT_K)
    return k if settings.keys() <= {"k", *known} and type(k) is int and k >= 1 else None


def each_row(document: Callable[[RowT], Scored | None]) -> DocumentsOf[RowT]:
    """Return a function that makes one document per row; rows that give `None` are omitted."""

    def documents(found: Sequence[list[RowT]]) -> list[list[Scored]]:
        return [[hit for hit in map(document, rows) if hit is not None] for rows in found]

    return documents


def stores_relevance(store: Any) -> Callable[[], Callable[[float], float] | None]:
    """Return relevance scores by the store's own function, if it knows the distance."""

    def relevance() -> Callable[[float], float] | None:
        try:
            made: Callable[[float], float] = store._select_relevance_score_fn()  # noqa: SLF001
        except ValueError:
            return None
        return made

    return relevance
