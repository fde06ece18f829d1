"""Exact dense search with numpy: float32 products select candidates, float64 scores decide."""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Protocol, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.retrieval.dense import DenseCorpus, ExactRetriever
from ralmspec_plugins.retrieval.encoders import Encoder
from ralmspec_plugins.retrieval.optional import optional
from ralmspec_plugins.retrieval.ranking import IntArray, Metric, Shortlist, Vectors, deal
from ralmspec_plugins.types import Passage

# Candidate rows for an exact ranking: tiles of float32 products, compared with a rising bar.
# A tile of rows times all queries is one matrix product, and the selection from it one
# comparison with each query's bar: after the first tiles hardly any row passes,
# so only a few numbers are sorted or partitioned.
# `scan` uses the threads of BLAS, so its tiles are large: each is one wait for
# all threads. `OwnThreads` gives each thread its share of the rows and BLAS one
# thread: tiles are then small enough to stay in a core's cache, and no thread
# waits for another. Both use the same error bound, which is valid
# for any order of summation, so their rankings are equal.


_FIRST_ROWS = 1024  # sets the bar; all later rows are only compared with it
_SECOND_ROWS = 16_384  # raises it
_TILE_SCORES = 1 << 20  # 4 MB; each tile is one wait for all BLAS threads, so few are better

# For own threads, measured by benchmarks/batch_curves.py.
_SMALL_PRODUCT = 1_000_000  # multiplications; up to here OpenBLAS multiplies without packing
_SMALL_ROWS = 128  # 192 KB of 384 dimensions: a fraction of a core's L2 cache
_LEAST_ROWS = 16
_BLOCK_SCORES = 1 << 16  # compared at a time; 256 KB, still in the cache

_blas = threading.Lock()  # held by a product that uses all of BLAS's threads


class SlicedRows(Protocol):
    """Rows in float32, read by slices."""

    def __getitem__(self, rows: slice, /) -> Vectors:
        """Return these rows, which are valid until the thread's next slice."""
        ...


class Scanned(Protocol):
    """The protocol of scanned rows; a `DenseCorpus` implements it."""

    @property
    def size(self) -> int:
        """The number of rows."""
        ...

    @property
    def dimension(self) -> int:
        """The dimension of a row."""
        ...

    @property
    def rows_at_once(self) -> int:
        """The maximum number of rows of a slice, if they take memory."""
        ...

    @property
    def vectors(self) -> SlicedRows:
        """The rows."""
        ...

    @property
    def squares(self) -> Vectors | None:
        """The squared norm of each row, for L2."""
        ...

    def error(self, query: Vectors) -> float:
        """Return an upper bound of a float32 kernel's error for this query, over all rows."""
        ...


Scan: TypeAlias = Callable[[Scanned, Vectors, int], list[IntArray]]


def scan(corpus: Scanned, queries: Vectors, k: int) -> list[IntArray]:
    """Return, for each query, all rows that may belong to its true top k."""
    size, most = corpus.size, corpus.rows_at_once
    blocks = [
        *cut(range(min(_FIRST_ROWS, size)), min(_FIRST_ROWS, most)),
        *cut(range(_FIRST_ROWS, min(_SECOND_ROWS, size)), min(_SECOND_ROWS, most)),
        *cut(range(_SECOND_ROWS, size), min(_TILE_SCORES // len(queries), most)),
    ]
    return [shortlist.rows for shortlist in _shortlists(corpus, queries, k, blocks, 1)]


class InTurn:
    """A scan that runs once at a time in the process if BLAS has several threads.

    Such a product uses all cores; with 16 callers parallel products
    were measured 14 times slower than sequential ones.
    """

    def __init__(self) -> None:
        """Read the number of BLAS threads; several are assumed without threadpoolctl."""
        threads = os.cpu_count() or 1
        if find_spec("threadpoolctl") is not None:
            info = import_module("threadpoolctl").threadpool_info()
            threads = max(
                (one["num_threads"] for one in info if one["user_api"] == "blas"), default=1
            )
        self._alone = threads > 1

    def __call__(self, corpus: Scanned, queries: Vectors, k: int) -> list[IntArray]:
        """Return, for each query, all rows that may belong to its true top k."""
        with _blas if self._alone else nullcontext():
            return scan(corpus, queries, k)


def check_threads(threads: int | None) -> None:
    """Check a number of threads, and that its library is installed.

    Raises:
        ConfigError: it is below 1.
        MissingExtraError: threadpoolctl is not installed.
    """
    if threads is None:
        return
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise ConfigError(f"threads must be a whole number of at least 1, or None, got {threads!r}")
    optional("threadpoolctl", "threads", "threadpoolctl")


class OwnThreads:
    """A scan with own threads, each over its share of the rows.

    They start with the first search, serve concurrent searches one by one, and
    end with the last reference to the scan.
    """

    def __init__(self, threads: int) -> None:
        """Limit BLAS to one thread, permanently in the whole process."""
        check_threads(threads)
        control = optional("threadpoolctl", "threads", "threadpoolctl")
        control.threadpool_limits(limits=1, user_api="blas")
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="numpy-flat")

    def __call__(self, corpus: Scanned, queries: Vectors, k: int) -> list[IntArray]:
        """Return, for each query, all rows that may belong to its true top k."""
        share = -(-corpus.size // self._threads)
        shares = [
            range(start, min(start + share, corpus.size)) for start in range(0, corpus.size, share)
        ]
        merged, *others = self._pool.map(partial(_scan_share, corpus, queries, k), shares)
        for shortlists in others:
            for shortlist, other in zip(merged, shortlists, strict=True):
                shortlist.merge(other)
        return [shortlist.rows for shortlist in merged]


def _scan_share(corpus: Scanned, queries: Vectors, k: int, rows: range) -> list[Shortlist]:
    tile = _SMALL_PRODUCT // (corpus.dimension * len(queries))
    tile = max(_LEAST_ROWS, min(_SMALL_ROWS, tile - tile % _LEAST_ROWS))
    tiles = max(1, min(_BLOCK_SCORES // len(queries), corpus.rows_at_once) // tile)
    first = min(rows.start + _FIRST_ROWS, rows.stop)
    blocks = [
        *cut(range(rows.start, first), tile, -(-_FIRST_ROWS // tile)),
        *cut(range(first, rows.stop), tile, tiles),
    ]
    return _shortlists(corpus, queries, k, blocks, tile)


def cut(rows: range, tile: int, tiles: int = 1) -> Iterator[range]:
    """Yield blocks of whole tiles, with a shorter tile at the end.

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
    corpus: Scanned, queries: Vectors, k: int, blocks: Iterable[range], tile: int
) -> list[Shortlist]:
    """Return the shortlists over blocks of rows, each `range(start, stop, rows of a tile)`.

    Args:
        corpus: the rows.
        queries: all queries.  # [queries, dim]
        k: the number of rows of each query.
        blocks: without gaps; all queries' bars are set by the first, so it should be short.
        tile: the repetitions of the bars, for comparisons of more
            than a few scores at a time: the rows of a tile, or 1.
    """
    shortlists = [Shortlist(k, corpus.error(query)) for query in queries]
    columns = np.ascontiguousarray(queries.T)  # [dim, queries]
    bars = np.full((tile, len(queries)), -np.inf, dtype=np.float32)
    waiting = Waiting(shortlists, k)
    for block in blocks:
        fast = _fast_scores(corpus, columns, block)
        passed = np.flatnonzero(fast >= bars[: block.step])
        if len(passed) == fast.size:
            _share_all(fast, block, shortlists)
            bars[:] = [shortlist.bar for shortlist in shortlists]
        elif len(passed) and waiting.add(passed, fast, block.start):
            bars[:] = [shortlist.bar for shortlist in shortlists]
    waiting.share()
    return shortlists


def _fast_scores(corpus: Scanned, columns: Vectors, block: range) -> Vectors:
    """Return the scores of a block in float32; for L2 as 2 x.q - |x|^2, with the same order.

    numpy multiplies stacked matrices in C, without the GIL: one product per tile.
    """
    stack = len(block), block.step
    rows = corpus.vectors[block.start : block.stop].reshape(*stack, -1)
    fast: Vectors = rows @ columns  # [tiles, rows, queries]
    if corpus.squares is not None:
        fast *= 2
        fast -= corpus.squares[block.start : block.stop].reshape(*stack, 1)
    return fast


def _share_all(fast: Vectors, block: range, shortlists: list[Shortlist]) -> None:
    """Add all rows of a block to each shortlist."""
    rows = np.arange(block.start, block.stop)
    for column, shortlist in enumerate(shortlists):
        shortlist.add(rows, fast[:, :, column].ravel())


class Waiting:
    """Buffers rows that passed, until there are enough for an update of all shortlists."""

    def __init__(self, shortlists: list[Shortlist], k: int) -> None:
        """Create a buffer of k rows per query, on average."""
        self._shortlists = shortlists
        self._enough = k * len(shortlists)
        self._numbers: list[IntArray] = []
        self._fast: list[Vectors] = []
        self._count = 0

    def add(self, passed: IntArray, fast: Vectors, start: int) -> bool:
        """Add the passed rows of a block; return whether the bars were raised."""
        self._numbers.append(passed + start * len(self._shortlists))
        self._fast.append(fast.ravel()[passed])
        self._count += len(passed)
        if self._count < self._enough:
            return False
        self.share()
        return True

    def share(self) -> None:
        """Add the buffered rows to the shortlists."""
        if self._count:
            deal(np.concatenate(self._numbers), np.concatenate(self._fast), self._shortlists)
            self._numbers, self._fast, self._count = [], [], 0


class NumpyFlat(ExactRetriever):
    """Scores every passage: the hits are the true top k, bit for bit, in any batch.

    With `threads=n` the rows are scanned by n threads of the retriever,
    which is faster for batches, with the same bits. BLAS is then limited to
    one thread permanently, in the whole process: this also applies to other
    users of numpy's BLAS (and of the BLAS of scipy or FAISS).
    So it is only changed with this argument.
    `threads` is not saved; for a loaded knowledge base use
    `NumpyFlat(loaded.corpus, k=loaded.k, threads=n)`.
    """

    def __init__(self, corpus: DenseCorpus, *, k: int = 1, threads: int | None = None) -> None:
        """Create a retriever of a corpus, whose vectors may be memory-mapped and are not copied.

        Args:
            corpus: the passages and their vectors.
            k: the number of passages of a query.
            threads: the number of own threads, with BLAS limited to one thread in the
                whole process; None uses the threads of BLAS.

        Raises:
            ConfigError: k or threads is below 1.
            MissingExtraError: threads are given, and threadpoolctl is not installed.
        """
        super().__init__(corpus, "numpy-flat", k)
        self._scan: Scan = InTurn() if threads is None else OwnThreads(threads)

    @classmethod
    def build(
        cls,
        passages: Sequence[Passage],
        encoder: Encoder | None = None,
        *,
        vectors: NDArray[np.float32] | None = None,
        k: int = 1,
        metric: str = Metric.IP,
        threads: int | None = None,
    ) -> Self:
        """Return a retriever of passages, encoded unless their vectors are given."""
        check_threads(threads)  # checked before the encoding
        return cls(DenseCorpus.encoded(passages, encoder, metric, vectors), k=k, threads=threads)

    def _nominate(self, queries: Vectors, k: int) -> list[IntArray]:
        return self._scan(self.corpus, queries, k)
