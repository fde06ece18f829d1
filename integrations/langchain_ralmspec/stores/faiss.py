"""Batch search of `langchain_community.vectorstores.FAISS`."""

from collections.abc import Callable
from typing import Any, Final

from langchain_core.documents import Document
from langchain_core.vectorstores import VectorStoreRetriever

from langchain_ralmspec.stores.base import each_row, known_k
from ralmspec_plugins.adapters.batch_search import Scored, Vector
from ralmspec_plugins.adapters.stores.faiss import CertifiedFaissSearch, FaissRow, keeps_all

_KNOWN: Final = frozenset({"filter", "fetch_k", "score_threshold"})
_FETCH_K: Final = 20  # the wrapper's default
_BIGGER_IS_BETTER: Final = frozenset({"MAX_INNER_PRODUCT", "JACCARD"})  # for the threshold


def faiss_search(retriever: VectorStoreRetriever) -> CertifiedFaissSearch | None:
    """Return the batch search of a FAISS store; `None` for unsupported settings."""
    store: Any = retriever.vectorstore
    settings = retriever.search_kwargs
    k, fetch_k = known_k(settings, _KNOWN), settings.get("fetch_k", _FETCH_K)
    if k is None or store.embeddings is None or type(fetch_k) is not int or fetch_k < 1:
        return None
    narrowed, threshold = settings.get("filter"), settings.get("score_threshold")

    def scored(row: FaissRow) -> Scored:
        return Scored(_document(store, row.id), row.vector)

    def keeps() -> Callable[[Scored], bool]:
        if narrowed is None:
            return keeps_all
        passes = store._create_filter_func(narrowed)  # noqa: SLF001 the wrapper's own filter
        return lambda hit: passes(hit.document.metadata)

    def single(vector: Vector, k: int) -> list[Scored]:
        extra = {} if threshold is None else {"score_threshold": threshold}
        pairs = store.similarity_search_with_score_by_vector(
            vector, k, filter=narrowed, fetch_k=fetch_k, **extra
        )
        return [Scored(document) for document, _ in pairs]

    return CertifiedFaissSearch(
        k=k,
        index=lambda: store.index,
        stamp=lambda: store.index_to_docstore_id,
        normalized=lambda: store._normalize_L2,  # noqa: SLF001 the wrapper has no other name for it
        documents=each_row(scored),
        single=single,
        fetch_k=None if narrowed is None else fetch_k,
        keeps=keeps,
        threshold=threshold,
        upwards=lambda: getattr(store.distance_strategy, "name", "") in _BIGGER_IS_BETTER,
    )


def _document(store: Any, position: int) -> Document:
    identity = store.index_to_docstore_id[position]
    document = store.docstore.search(identity)
    if not isinstance(document, Document):  # as in the wrapper
        raise ValueError(f"Could not find document for id {identity}, got {document}")  # noqa: TRY004
    return document
