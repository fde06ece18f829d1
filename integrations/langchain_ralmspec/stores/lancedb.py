"""Batch search of `langchain_community.vectorstores.LanceDB`."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any, Final

from langchain_core.vectorstores import VectorStoreRetriever

from langchain_ralmspec.stores.base import known_k
from ralmspec_plugins.adapters.batch_search import Metric, Scored, Vector
from ralmspec_plugins.adapters.stores.lancedb import LanceSearch, vectors_of

_KNOWN: Final = frozenset({"filter", "name", "prefilter", "query_type", "metrics", "fts"})
_METRICS: Final[dict[str, Metric]] = {"l2": "l2", "cosine": "cosine", "dot": "ip"}


def lancedb_search(retriever: VectorStoreRetriever) -> LanceSearch | None:
    """Return the batch search of a local LanceDB table; `None` for unsupported settings.

    The wrapper's `distance` determines how relevance scores are computed, not how the table
    is searched: this is L2 unless `metrics` is set.
    """
    store: Any = retriever.vectorstore
    settings = retriever.search_kwargs
    k = known_k({**settings, "k": store.limit} if settings.get("k") is None else settings, _KNOWN)
    distance, narrowed = settings.get("metrics") or "l2", settings.get("filter")
    if k is None or store.api_key is not None or store.embeddings is None:
        return None
    if settings.get("query_type", "vector") != "vector" or distance not in _METRICS:
        return None
    if narrowed is not None and not isinstance(narrowed, dict | str):
        return None
    own = {name: value for name, value in settings.items() if name != "k"}

    def where() -> Any:
        if not isinstance(narrowed, dict):
            return narrowed
        return import_module(type(store).__module__).to_lance_filter(narrowed)

    def documents(found: Sequence[Any]) -> list[list[Scored]]:
        """Return the documents of rows as the wrapper does."""
        column = store._vector_key  # noqa: SLF001
        return [
            [*map(Scored, store.results_to_docs(rows), vectors_of(rows, column))] for rows in found
        ]

    def single(vector: Vector, k: int) -> list[Scored]:
        """Search as the wrapper does, including its warning about empty results."""
        return documents([store._query(vector, k, **own)])[0]  # noqa: SLF001

    search = LanceSearch(
        k=k,
        table=lambda: store.get_table(settings.get("name")),
        column=lambda: store._vector_key,  # noqa: SLF001
        single=single,
        metric=_METRICS[distance],
        distance=settings.get("metrics") or None,
        certified=distance == "l2" and (narrowed is None or settings.get("prefilter") is True),
        options=lambda: {"where": where(), "prefilter": settings.get("prefilter", False)},
        documents=documents,
    )
    return search if search.table() is not None else None
