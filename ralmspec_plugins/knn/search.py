"""The searches of a datastore by name, each loaded only when it is asked for.

| name | finds | needs the extra |
|---|---|---|
| exact | the true neighbours: every key is scored | none |
| hnsw | most of them, along a graph | faiss |
| ivfpq | most of them, in lists of quantised keys: the least memory | faiss |
"""

import os
from collections.abc import Hashable, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final, Protocol

from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.knn.datastore import Datastore
from ralmspec_plugins.knn.neighbours import Neighbours
from ralmspec_plugins.types import Query

_HERE = "ralmspec_plugins.knn"
SEARCHES = {
    "exact": (f"{_HERE}.exact", "ExactSearch"),
    "hnsw": (f"{_HERE}.approximate", "hnsw_search"),
    "ivfpq": (f"{_HERE}.approximate", "ivfpq_search"),
}
GUESSED: Final = 64  # neighbours that a replica looks for, unless it is given opened
_MOST_THREADS: Final = 8  # more wait for memory, and for each other at Python's lock


class NeighbourSearch(Protocol):
    """What every search here is; `exact` ones can be searched wider than k, too."""

    exact: bool
    pure: bool
    inline_encode: bool
    k: int
    size: int
    datastore: Datastore

    @property
    def signature(self) -> Hashable:
        """Name the datastore's content, the index, and all settings that answers depend on."""
        ...

    def encode(self, text: str) -> Query:
        """Refuse a text: queries are hidden states."""
        ...

    def search(self, queries: Sequence[Query]) -> list[Neighbours]:
        """Find the neighbours of each query; they do not depend on its batch."""
        ...


def open_search(
    name: str, datastore: Datastore, *, k: int = 1024, **settings: Any
) -> NeighbourSearch:
    """Search a datastore in the way of this name.

    Args:
        name: one of `SEARCHES`.
        datastore: what is searched.
        k: how many neighbours a query gets.
        settings: what the search itself takes: `memory_bytes` and `threads` of `ExactSearch`
            (`own_threads()` unless given); `index`, `rerank`, `search_list`, `probes` and the like
            of `approximate_search`.

    Raises:
        ConfigError: an unknown name (the message lists the known ones), or a setting that is
            out of range.
        MissingExtraError: the search's library is not installed.
    """
    if name not in SEARCHES:
        raise ConfigError(f"unknown search {name!r}; known are {', '.join(SEARCHES)}")
    if name == "exact":
        settings.setdefault("threads", own_threads())
    module, maker = SEARCHES[name]
    search: NeighbourSearch = getattr(import_module(module), maker)(datastore, k=k, **settings)
    return search


def own_threads() -> int | None:
    """Say on how many threads of its own an exact search should scan; `None` for BLAS's.

    One for each core where threadpoolctl is installed (extra hf), eight at most; batches gain
    most by it (docs/benchmarks.md).
    """
    if find_spec("threadpoolctl") is None:
        return None
    known = hasattr(os, "sched_getaffinity")  # not on every system
    cores = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    return min(cores, _MOST_THREADS)
