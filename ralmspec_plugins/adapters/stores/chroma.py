"""Chroma, by the collection of a host: a list of queries in one call.

The embedded client processes the queries one by one, each with its own HNSW
search of the same graph, and reads texts and metadata of all hits in one call. So a
query's rows do not depend on the batch. A server may differ.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from ralmspec_plugins.adapters.batch_search import Metric, Scored, Vector
from ralmspec_plugins.adapters.fingerprint import qualified_name
from ralmspec_plugins.adapters.stores.base import StoreSearch, own_first

_EMBEDDED: Final = "chromadb.api.rust.RustBindingsAPI"
_COLUMNS: Final = ("documents", "metadatas", "distances", "embeddings")
_DEFAULT_EF: Final = 100  # of chromadb; the minimum width of an HNSW search


@dataclass(frozen=True, slots=True)
class ChromaRow:
    """One row of the client's response; its score is a distance."""

    id: str
    text: str | None
    metadata: Mapping[str, Any] | None
    score: float
    vector: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class ChromaSearch(StoreSearch[ChromaRow]):
    """Searches a list of queries in one call; exact with the embedded client.

    `options`: `where` and `where_document`, as `Collection.query` takes them.
    """

    collection: Callable[[], Any]
    name: str = "Chroma"

    @property
    def exact(self) -> bool:
        """Whether the client is the embedded one, which searches in this process."""
        client = self.collection()._client  # noqa: SLF001 no public name
        return qualified_name(type(getattr(client, "_server", client))) == _EMBEDDED

    @property
    def wide(self) -> bool:
        """Whether a wider search is exact: up to `ef_search` rows the graph search is the same."""
        return self.exact and self._reach > 0

    @property
    def metric(self) -> Metric | None:
        """The collection's distance."""
        for index in ("hnsw", "spann"):
            space = (self._configuration.get(index) or {}).get("space")
            if space:
                return cast("Metric", space) if space in ("l2", "cosine", "ip") else None
        return None

    def stored_score(self, value: float) -> float:
        """Return a distance: an unchanged square, or 1 minus a cosine or product."""
        return value if self.metric == "l2" else 1.0 - value

    def search(self, vectors: Sequence[Vector], k: int) -> list[list[Scored]]:
        """Return the best k documents of each query, so many that the first are unchanged."""
        own = min(k, self.k)
        width = max(own, min(k, self._reach)) if k > own else own
        return self.own_documents(own_first(self._rows, vectors, own, width, self.ties), own)

    def _rows(self, vectors: Sequence[Vector], limit: int) -> list[list[ChromaRow]]:
        found = self.collection().query(
            query_embeddings=list(vectors), n_results=limit, include=[*_COLUMNS], **self.options()
        )
        columns = ("ids", *_COLUMNS)
        return [
            [ChromaRow(*row) for row in zip(*(found[name][at] for name in columns), strict=True)]
            for at in range(len(vectors))
        ]

    @property
    def _reach(self) -> int:
        """Return the number of rows up to which each search visits the same part of the graph."""
        settings = self._configuration.get("hnsw")
        return int(settings.get("ef_search") or _DEFAULT_EF) if settings else 0

    @property
    def _configuration(self) -> Mapping[str, Any]:
        """Return the settings without the warnings of `configuration` on embedding functions."""
        return self.collection().configuration_json or {}
