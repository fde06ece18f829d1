"""Ask an HNSW or IVF index for a batch of queries, so that the batch changes nothing.

HNSW goes through its graph once a query anyway, and IVF's nearest lists are asked
for one query at a time (FAISS would take a matrix product for many, with other last
bits, so other lists). Whether several queries are then searched by one call, one
after the other, or on several threads, is decided by what each way was measured to
take.
"""

import hashlib
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import numpy as np

from ralmspec_plugins.retrieval.fastest import Fastest
from ralmspec_plugins.retrieval.ranking import IntArray, Vectors

Nearest: TypeAlias = tuple[Vectors, IntArray]  # FAISS's scores and rows, -1 where it found fewer


class IndexQueries:
    """Finds an index's nearest rows, each query's independent of its batch. Thread-safe."""

    def __init__(self, faiss: Any, index: Any) -> None:
        """Ask this index."""
        self.index = index
        self.ways = Fastest()
        self._by_lists = isinstance(index, faiss.IndexIVF)
        self._threads = ThreadPoolExecutor(
            os.cpu_count() or 1, thread_name_prefix="faiss-approximate"
        )

    def search(self, queries: Vectors, count: int) -> Nearest:
        """Find `count` rows for each query, in the way that is fastest for so many queries."""
        if len(queries) == 1:
            return self.nearest(queries, count)
        return self.ways.do(
            len(queries),
            {
                "batch": lambda: self.nearest(queries, count),
                "singly": lambda: self.singly(queries, count),
                "threads": lambda: self.on_threads(queries, count),
            },
        )

    def nearest(self, queries: Vectors, count: int) -> Nearest:
        """Search by one call.  # [queries, count], both."""
        if not self._by_lists:
            return _pair(self.index.search(queries, count))
        probes = self.index.nprobe
        near = [self.index.quantizer.search(query[None], probes) for query in queries]
        far = np.concatenate([distances for distances, _ in near])
        lists = np.concatenate([numbers for _, numbers in near])
        return _pair(self.index.search_preassigned(queries, count, lists, far))

    def singly(self, queries: Vectors, count: int) -> Nearest:
        """Search one after the other."""
        return _joined(self.nearest(query[None], count) for query in queries)

    def on_threads(self, queries: Vectors, count: int) -> Nearest:
        """Search on several threads, one query each at a time."""
        return _joined(self._threads.map(lambda q: self.nearest(q[None], count), queries))


def _pair(found: Any) -> Nearest:
    scores, rows = found
    return scores, rows


def _joined(found: Iterable[Nearest]) -> Nearest:
    scores, rows = zip(*found, strict=True)
    return np.concatenate(scores), np.concatenate(rows)


def write_to(faiss: Any, index: Any, write: Callable[[bytes], Any]) -> None:
    """Write an index piece by piece, so that there is no second one in memory."""
    faiss.write_index(index, faiss.PyCallbackIOWriter(write))


def index_digest(faiss: Any, index: Any) -> str:
    """Digest an index: two graphs over the same vectors may answer differently."""
    digest = hashlib.sha256()
    write_to(faiss, index, digest.update)
    return digest.hexdigest()[:32]
