"""Ask an HNSW or IVF index for a batch of queries, so that the batch changes nothing.

HNSW goes through its graph once a query anyway, and IVF's nearest lists are asked
for one query at a time (FAISS would take a matrix product for many, with other last
bits, so other lists). Whether several queries are then searched by one call, one
after the other, or on several threads, is decided by what each way was measured to
take.
"""

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeAlias, TypeVar

import numpy as np

from ralmspec_plugins.retrieval.fastest import Fastest
from ralmspec_plugins.retrieval.ranking import IntArray, Vectors

RankedT = TypeVar("RankedT")
Nearest: TypeAlias = tuple[Vectors, IntArray]  # FAISS's scores and rows, -1 where it found fewer
Rank: TypeAlias = Callable[[Vectors, Vectors, IntArray], RankedT]  # of one query, and its own


class IndexQueries:
    """Finds an index's nearest rows, each query's independent of its batch. Thread-safe."""

    def __init__(self, faiss: Any, index: Any) -> None:
        """Ask this index."""
        self.index = index
        self.ways = Fastest()
        self._faiss = faiss
        self._by_lists = isinstance(index, faiss.IndexIVF)
        self._by_graph = isinstance(index, faiss.IndexHNSW)
        self._threads = ThreadPoolExecutor(
            os.cpu_count() or 1, thread_name_prefix="faiss-approximate"
        )

    def ranked(self, queries: Vectors, count: int, rank: Rank[RankedT]) -> list[RankedT]:
        """Find `count` rows for each query and rank them, in the way that is fastest.

        Args:
            queries: one a row.
            count: rows to find for each.
            rank: makes of a query, FAISS's scores and its rows what is wanted; called on
                several threads at once where that is faster.
        """
        if len(queries) == 1:
            return self.at_once(queries, count, rank)
        ways = {"batch": self.at_once, "singly": self.singly, "threads": self.on_threads}
        return self.ways.do(
            len(queries), {name: partial(way, queries, count, rank) for name, way in ways.items()}
        )

    def nearest(self, queries: Vectors, count: int) -> Nearest:
        """Search by one call.  # [queries, count], both.

        Along a graph with a list of candidates that is at least as long as what is looked
        for: FAISS would stop sooner, and of 1,024 with a list of 64 find half.
        """
        if self._by_graph:
            candidates = max(self.index.hnsw.efSearch, count)
            longer = self._faiss.SearchParametersHNSW(efSearch=candidates)
            return _pair(self.index.search(queries, count, params=longer))
        if not self._by_lists:
            return _pair(self.index.search(queries, count))
        probes = self.index.nprobe
        near = [self.index.quantizer.search(query[None], probes) for query in queries]
        far = np.concatenate([distances for distances, _ in near])
        lists = np.concatenate([numbers for _, numbers in near])
        return _pair(self.index.search_preassigned(queries, count, lists, far))

    def at_once(self, queries: Vectors, count: int, rank: Rank[RankedT]) -> list[RankedT]:
        """Search by one call, then rank."""
        return list(map(rank, queries, *self.nearest(queries, count)))

    def singly(self, queries: Vectors, count: int, rank: Rank[RankedT]) -> list[RankedT]:
        """Search and rank one after the other."""
        return [self._one(query, count, rank) for query in queries]

    def on_threads(self, queries: Vectors, count: int, rank: Rank[RankedT]) -> list[RankedT]:
        """Search and rank on several threads, one query each at a time."""
        return list(self._threads.map(lambda query: self._one(query, count, rank), queries))

    def _one(self, query: Vectors, count: int, rank: Rank[RankedT]) -> RankedT:
        return self.at_once(query[None], count, rank)[0]


def _pair(found: Any) -> Nearest:
    scores, rows = found
    return scores, rows


def write_to(faiss: Any, index: Any, write: Callable[[bytes], Any]) -> None:
    """Write an index piece by piece, so that there is no second one in memory."""
    faiss.write_index(index, faiss.PyCallbackIOWriter(write))


def index_digest(faiss: Any, index: Any) -> str:
    """Digest an index: two graphs over the same vectors may answer differently."""
    digest = hashlib.sha256()
    write_to(faiss, index, digest.update)
    return digest.hexdigest()[:32]
