"""Nominate rows for an exact ranking: tiles of float32 products, held against a rising bar.

A tile of rows times all queries is one matrix product, and picking from it one
comparison with each query's bar: after the first tiles hardly any row passes,
so nothing is ever sorted or partitioned but a handful of numbers.

`scan` leaves the threads to BLAS, so its tiles are large: each is one wait for
all threads. `OwnThreads` gives each thread its share of the rows and BLAS one
thread: tiles are then small enough to stay in a core's cache, and no thread
ever waits for another. Both nominate with the same error bound, which holds
for any order of summation, so what is ranked afterwards is the same.
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import TypeAlias

import numpy as np

from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.retrieval.dense import DenseCorpus
from ralmspec_plugins.retrieval.optional import optional
from ralmspec_plugins.retrieval.ranking import IntArray, Vectors, nominee_bound

_FIRST_ROWS = 1024  # sets the bar; all later rows only have to be held against it
_SECOND_ROWS = 16_384  # raises it
_TILE_SCORES = 1 << 20  # 4 MB; each tile is one wait for all BLAS threads, so few are better

# For own threads, measured by benchmarks/batch_curves.py.
_SMALL_PRODUCT = 1_000_000  # multiplications; up to here OpenBLAS multiplies without packing
_SMALL_ROWS = 128  # 192 KB of 384 dimensions: a fraction of a core's L2 cache
_LEAST_ROWS = 16
_BLOCK_SCORES = 1 << 16  # looked through at once; 256 KB, still in the cache

_blas = threading.Lock()  # held by a product that uses all of BLAS's threads

Scan: TypeAlias = Callable[[DenseCorpus, Vectors, int], list[IntArray]]


class Shortlist:
    """The rows that may still belong to one query's top k, and the bar for new ones."""

    def __init__(self, k: int, error: float) -> None:
        """Start with everything allowed in."""
        self._k, self._error = k, error
        self.fast: Vectors = np.empty(0, dtype=np.float32)
        self.rows: IntArray = np.empty(0, dtype=np.int64)
        self.bar = np.float32(-np.inf)

    def add(self, rows: IntArray, fast: Vectors) -> None:
        """Take in rows that passed the bar, raise it, and drop what no longer passes."""
        self.rows = np.concatenate([self.rows, rows])
        self.fast = np.concatenate([self.fast, fast])
        surplus = len(self.fast) - self._k
        if surplus >= 0:
            kth = np.partition(self.fast, surplus)[surplus]
            self.bar = nominee_bound(float(kth), self._error)
            kept = self.fast >= self.bar
            self.rows, self.fast = self.rows[kept], self.fast[kept]

    def merge(self, other: "Shortlist") -> None:
        """Take in another shortlist, made over other rows for the same query."""
        self.add(other.rows, other.fast)


def scan(corpus: DenseCorpus, queries: Vectors, k: int) -> list[IntArray]:
    """Nominate, for each query, all rows that may belong to its true top k."""
    tile = _TILE_SCORES // len(queries)
    blocks = [
        *cut(range(min(_FIRST_ROWS, corpus.size)), _FIRST_ROWS),
        *cut(range(_FIRST_ROWS, min(_SECOND_ROWS, corpus.size)), _SECOND_ROWS),
        *cut(range(_SECOND_ROWS, corpus.size), tile),
    ]
    return [shortlist.rows for shortlist in _shortlists(corpus, queries, k, blocks, 1)]


class InTurn:
    """The same scan, one at a time in the whole process, where BLAS has threads of its own.

    Such a product uses all cores; several at once take from each other, and at 16
    callers were measured 14 times slower than one after the other.
    """

    def __init__(self) -> None:
        """See how many threads BLAS has; several are assumed if threadpoolctl is not installed."""
        threads = os.cpu_count() or 1
        if find_spec("threadpoolctl") is not None:
            info = import_module("threadpoolctl").threadpool_info()
            threads = max(
                (one["num_threads"] for one in info if one["user_api"] == "blas"), default=1
            )
        self._alone = threads > 1

    def __call__(self, corpus: DenseCorpus, queries: Vectors, k: int) -> list[IntArray]:
        """Nominate, for each query, all rows that may belong to its true top k."""
        with _blas if self._alone else nullcontext():
            return scan(corpus, queries, k)


def check_threads(threads: int | None) -> None:
    """Refuse a number of threads that cannot be, and one that lacks its library.

    Raises:
        ConfigError: fewer than one.
        MissingExtraError: threadpoolctl is not installed.
    """
    if threads is None:
        return
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise ConfigError(f"threads must be a whole number of at least 1, or None, got {threads!r}")
    optional("threadpoolctl", "threads", "threadpoolctl")


class OwnThreads:
    """The same scan on threads of our own, each over its share of the rows.

    They start with the first search, serve concurrent searches in turn, and
    end when nobody holds the scan any more.
    """

    def __init__(self, threads: int) -> None:
        """Hold BLAS to one thread, in the whole process and for good."""
        check_threads(threads)
        control = optional("threadpoolctl", "threads", "threadpoolctl")
        control.threadpool_limits(limits=1, user_api="blas")
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="numpy-flat")

    def __call__(self, corpus: DenseCorpus, queries: Vectors, k: int) -> list[IntArray]:
        """Nominate, for each query, all rows that may belong to its true top k."""
        share = -(-corpus.size // self._threads)
        shares = [
            range(start, min(start + share, corpus.size)) for start in range(0, corpus.size, share)
        ]
        merged, *others = self._pool.map(partial(_scan_share, corpus, queries, k), shares)
        for shortlists in others:
            for shortlist, other in zip(merged, shortlists, strict=True):
                shortlist.merge(other)
        return [shortlist.rows for shortlist in merged]


def _scan_share(corpus: DenseCorpus, queries: Vectors, k: int, rows: range) -> list[Shortlist]:
    tile = _SMALL_PRODUCT // (corpus.dimension * len(queries))
    tile = max(_LEAST_ROWS, min(_SMALL_ROWS, tile - tile % _LEAST_ROWS))
    tiles = max(1, _BLOCK_SCORES // (tile * len(queries)))
    first = min(rows.start + _FIRST_ROWS, rows.stop)
    blocks = [
        *cut(range(rows.start, first), tile, -(-_FIRST_ROWS // tile)),
        *cut(range(first, rows.stop), tile, tiles),
    ]
    return _shortlists(corpus, queries, k, blocks, tile)


def cut(rows: range, tile: int, tiles: int = 1) -> Iterator[range]:
    """Cut rows into blocks of whole tiles; what remains at the end is a shorter tile.

    >>> list(cut(range(10, 25), tile=2, tiles=3))
    [range(10, 16, 2), range(16, 22, 2), range(22, 24, 2), range(24, 25)]
    """
    start = rows.start
    while start < rows.stop:
        left = rows.stop - start
        tile = min(tile, left)
        stop = start + tile * min(tiles, left // tile)
        yield range(start, stop, tile)
        start = stop


def _shortlists(
    corpus: DenseCorpus, queries: Vectors, k: int, blocks: Iterable[range], tile: int
) -> list[Shortlist]:
    """Go through blocks of rows, each `range(start, stop, rows of a tile)`.

    Args:
        corpus: whose rows.
        queries: all of them at once.  # [queries, dim]
        k: how many rows are wanted for each.
        blocks: without gaps; all queries' bars are set by the first, so it should be short.
        tile: how often the bars are repeated, so that comparing runs over more
            than a few scores at a time: the rows of a tile, or 1.
    """
    shortlists = [Shortlist(k, corpus.error(query)) for query in queries]
    columns = np.ascontiguousarray(queries.T)  # [dim, queries]
    bars = np.full((tile, len(queries)), -np.inf, dtype=np.float32)
    for block in blocks:
        fast = _fast_scores(corpus, columns, block)
        passed = np.flatnonzero(fast >= bars[: block.step])
        if len(passed) == fast.size:
            _share_all(fast, block, shortlists, bars)
        elif len(passed):
            _share(passed, fast, block.start, shortlists, bars)
    return shortlists


def _fast_scores(corpus: DenseCorpus, columns: Vectors, block: range) -> Vectors:
    """Score a block in float32; for L2 as 2 x.q - |x|^2, which ranks alike.

    numpy goes through stacked matrices in C, without the GIL: one product a tile.
    """
    stack = len(block), block.step
    rows = corpus.vectors[block.start : block.stop].reshape(*stack, -1)
    fast: Vectors = rows @ columns  # [tiles, rows, queries]
    if corpus.squares is not None:
        fast *= 2
        fast -= corpus.squares[block.start : block.stop].reshape(*stack, 1)
    return fast


def _share_all(fast: Vectors, block: range, shortlists: list[Shortlist], bars: Vectors) -> None:
    """Hand each query all rows of a block."""
    rows = np.arange(block.start, block.stop)
    for column, shortlist in enumerate(shortlists):
        shortlist.add(rows, fast[:, :, column].ravel())
        bars[:, column] = shortlist.bar


def _share(
    passed: IntArray, fast: Vectors, start: int, shortlists: list[Shortlist], bars: Vectors
) -> None:
    """Hand each query the rows of a block that passed its bar."""
    rows, columns = np.divmod(passed, len(shortlists))
    scores = fast.ravel()[passed]
    for column in np.unique(columns).tolist():
        mine = columns == column
        shortlists[column].add(rows[mine] + start, scores[mine])
        bars[:, column] = shortlists[column].bar
