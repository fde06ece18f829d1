"""The searches of a datastore by name, each imported on first use.

| name | finds | needs the extra |
|---|---|---|
| exact | the true neighbours: every key is scored | none |
| hnsw | most of them, along a graph | faiss |
| ivfpq | most of them, in lists of quantised keys: the least memory | faiss |
"""

import os
import threading
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, ClassVar, Final, Protocol, Self, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from ralmspec_plugins.errors import ConfigError, IndexFileError, InputError
from ralmspec_plugins.knn.datastore import Datastore, Ids
from ralmspec_plugins.retrieval.dense import norm_of, squared_norms
from ralmspec_plugins.retrieval.numpy_flat import InTurn, OwnThreads, Scan
from ralmspec_plugins.retrieval.ranking import (
    LARGEST_NORM,
    FloatArray,
    Metric,
    Vectors,
    best_first,
    exact_scores,
    kernel_error,
)
from ralmspec_plugins.retrieval.storage.corpus import check_k
from ralmspec_plugins.types import Hit, Passage, Query

# The neighbours of a query as arrays with the interface of hits.


Tokens: TypeAlias = NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Neighbours(Sequence[Hit]):
    """Entries of a datastore, nearest first, ties by id; immutable.

    Code for KNN-LM reads the arrays. As a sequence they are hits, each created
    on access: its passage's id is the entry's, its text the token's number,
    its score minus the squared distance. Neighbours are equal if all numbers in their arrays
    are.

    >>> values = np.array([50, 60], dtype=np.int32)
    >>> near = Neighbours(np.array([7, 3]), values, np.array([0.5, 2.0]))
    >>> near[0].passage.id, near[0].passage.text, near[0].score
    ('7', '50', -0.5)
    >>> [hit.score for hit in near], near[:1].ids.tolist()
    ([-0.5, -2.0], [7])

    Attributes:
        ids: of the entries, their rows in the datastore.  # int64 [k]
        values: the tokens that came next.  # int32 [k]
        distances: squared Euclidean distances to the query, ascending.  # float64 [k]
    """

    ids: Ids
    values: Tokens
    distances: FloatArray
    immutable: ClassVar[bool] = True  # `types.fixed` returns them unchanged

    def __post_init__(self) -> None:
        """Make the arrays read-only.

        Raises:
            InputError: they are not of one length.
        """
        for name, kind in (("ids", np.int64), ("values", np.int32), ("distances", np.float64)):
            array = np.ascontiguousarray(getattr(self, name), dtype=kind)
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        shapes = self.ids.shape, self.values.shape, self.distances.shape
        if self.ids.ndim != 1 or len(set(shapes)) > 1:
            raise InputError(
                f"neighbours need as many ids as values and distances, in one row each; got "
                f"arrays of the shapes {shapes[0]}, {shapes[1]} and {shapes[2]}"
            )

    def __len__(self) -> int:
        """Return the number of neighbours."""
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> Hit: ...

    @overload
    def __getitem__(self, index: slice) -> Self: ...

    def __getitem__(self, index: int | slice) -> Hit | Self:
        """Return one hit, or a copied part of the neighbours, so that the others can be freed."""
        if isinstance(index, slice):
            if len(range(*index.indices(len(self)))) == len(self) and (index.step or 1) > 0:
                return self
            ids, values, distances = self.ids[index], self.values[index], self.distances[index]
            return type(self)(ids.copy(), values.copy(), distances.copy())
        passage = Passage(str(self.ids[index]), str(self.values[index]))
        return Hit(passage, 0.0 - float(self.distances[index]))  # never -0.0

    def __eq__(self, other: object) -> bool:
        """Return whether all ids, values and distances are the same, to the bit."""
        if self is other:
            return True
        if not isinstance(other, Neighbours):
            return NotImplemented
        return (
            np.array_equal(self.ids, other.ids)
            and np.array_equal(self.values, other.values)
            and np.array_equal(self.distances, other.distances)
        )

    def __hash__(self) -> int:
        """Return a hash of ids and distances."""
        return hash((self.ids.tobytes(), (self.distances + 0.0).tobytes()))

    def __repr__(self) -> str:
        """Return the number of neighbours and the nearest one."""
        nearest = f", nearest {self.ids[0]} at {self.distances[0]:.4g}" if len(self) else ""
        return f"Neighbours({len(self)}{nearest})"


_HERE = "ralmspec_plugins.knn"
SEARCHES = {
    "exact": (f"{_HERE}.search", "ExactSearch"),
    "hnsw": (f"{_HERE}.ann_search", "hnsw_search"),
    "ivfpq": (f"{_HERE}.ann_search", "ivfpq_search"),
}
GUESSED: Final = 64  # neighbours of a replica that is opened by name
_MOST_THREADS: Final = 8  # more threads are limited by memory and by Python's lock


class NeighbourSearch(Protocol):
    """The protocol of searches; `exact` ones can be searched wider than k, too."""

    exact: bool
    pure: bool
    inline_encode: bool
    k: int
    size: int
    datastore: Datastore

    @property
    def signature(self) -> Hashable:
        """A key of the datastore's content, the index, and all settings that results depend on."""
        ...

    def encode(self, text: str) -> Query:
        """Raise an error: queries are hidden states."""
        ...

    def search(self, queries: Sequence[Query]) -> list[Neighbours]:
        """Return the neighbours of each query, independently of its batch."""
        ...


def open_search(
    name: str, datastore: Datastore, *, k: int = 1024, **settings: Any
) -> NeighbourSearch:
    """Return the search of this name over a datastore.

    Args:
        name: one of `SEARCHES`.
        datastore: the datastore to search.
        k: the number of neighbours of a query.
        settings: of the search: `memory_bytes` and `threads` of `ExactSearch`
            (`own_threads()` by default); `index`, `rerank`, `search_list`, `probes` and others
            of `approximate_search`.

    Raises:
        ConfigError: the name is unknown (the message lists the known ones), or a setting is
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
    """Return the number of own threads of an exact search; `None` for those of BLAS.

    One for each core where threadpoolctl is installed (extra hf), eight at most; batches gain
    most by it (docs/benchmarks.md).
    """
    if find_spec("threadpoolctl") is None:
        return None
    known = hasattr(os, "sched_getaffinity")  # not on every system
    cores = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    return min(cores, _MOST_THREADS)


# Conversion of half precision to float32, exact, and eight times as fast as numpy's own.
# A half is a sign, 5 bits of exponent (bias 15) and 10 of fraction; a float32 has 8 (bias 127)
# and 23. Shifted left by 13 they lie where a float32 has them, but for the sign, which an
# extension to 32 bits has put in front, and for the bias: 2^(127 - 15) makes up for that. The
# product is exact, and takes a subnormal half, by then a subnormal float32, to the right number.
_SHIFT = 13
_MASK = np.uint32(0x8FFFE000).view(np.int32)
_SCALE = np.float32(2.0**112)
_SUBNORMAL = np.full(1, 2.0**-136, dtype=np.float32)  # the smallest half, shifted


def widen(halves: NDArray[np.float16], out: Vectors) -> None:
    """Write finite halves to `out`, of the same shape, as float32.

    >>> out = np.empty(4, dtype=np.float32)
    >>> widen(np.array([1.5, -0.0, 2.0**-24, -65504.0], dtype=np.float16), out)
    >>> out.tolist() == [1.5, 0.0, 2.0**-24, -65504.0]
    True
    """
    if not (_SUBNORMAL * _SCALE)[0]:  # this thread flushes subnormal numbers to 0
        np.copyto(out, halves)
        return
    bits = out.view(np.int32)
    np.copyto(bits, halves.view(np.int16))
    bits <<= _SHIFT
    bits &= _MASK
    out *= _SCALE


# A datastore's keys for searches: in float32 by blocks, with exact distances.


_ROWS_AT_ONCE = 4096
_NUMBERS_AT_ONCE = 1 << 18  # numbers converted at a time: 1 MB, which fits into a core's cache
HELD_BYTES = 2**31  # of float32 keys: 500,000 entries of 1024 dimensions


class Keys:
    """The keys of a datastore as a `Scanned` table, with the squared distance as metric."""

    def __init__(self, datastore: Datastore, memory_bytes: int = HELD_BYTES) -> None:
        """Read all keys once, and keep as many as fit, in float32.

        Args:
            datastore: the datastore, whose keys may be memory-mapped.
            memory_bytes: the maximum size of the float32 copy. Other keys are read from the
                datastore and converted at each search, once for all queries of a batch.

        Raises:
            ConfigError: `memory_bytes` is negative.
        """
        if isinstance(memory_bytes, bool) or not isinstance(memory_bytes, int) or memory_bytes < 0:
            raise ConfigError(f"memory_bytes must be at least 0, got {memory_bytes!r}")
        self.datastore = datastore
        self.size = len(datastore)
        self.dimension = datastore.about.dimension
        held = min(self.size, memory_bytes // (4 * self.dimension))
        self.vectors = WidenedRows(datastore.keys, held)
        widened = max(1, _NUMBERS_AT_ONCE // self.dimension)
        self.rows_at_once = self.size if held == self.size else widened
        self.squares: Vectors = np.empty(self.size, dtype=np.float32)
        largest = 0.0
        for start in range(0, self.size, _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            try:
                squares = squared_norms(self.vectors[rows], start)
            except InputError as error:  # they were finite when it was built
                raise IndexFileError(
                    f"the datastore's keys are damaged ({error}); copy it again, or build it again"
                ) from error
            self.squares[rows] = squares
            largest = max(largest, float(squares.max()))
        self.largest_norm = float(np.sqrt(largest))

    def error(self, query: Vectors) -> float:
        """Return an upper bound of a float32 kernel's error for this query, over all keys."""
        return kernel_error(Metric.L2, self.dimension, self.largest_norm, norm_of(query))

    def exact(self, ids: Ids, query: Vectors) -> FloatArray:
        """Return minus the squared distances, in float64, computed separately for each entry."""
        return exact_scores(self.vectors.take(ids), query, Metric.L2)

    def ranked(self, ids: Ids, query: Vectors, k: int) -> Neighbours:
        """Return candidates in the order of their exact distances, ties by id."""
        return nearest_of(ids, self.datastore.values[ids], self.exact(ids, query), k)


def nearest_of(ids: Ids, values: NDArray[np.int32], scores: FloatArray, k: int) -> Neighbours:
    """Return the best k of these entries, by their exact scores, ties by id."""
    best = best_first(scores, ids, k)
    return Neighbours(ids[best], values[best], 0.0 - scores[best])


def hidden_states(queries: Sequence[Query], dimension: int) -> Vectors:
    """Return the queries' hidden states.  # [queries, dimension].

    Raises:
        InputError: a query has none, or one of another dimension or with NaN.
    """
    for query in queries:
        check_hidden(query, dimension)
    return np.array([query.encoding for query in queries], dtype=np.float32)


def check_hidden(query: Query, dimension: int) -> None:
    """Check that a query has a valid hidden state.

    Raises:
        InputError: it has none, or one of another dimension or with NaN.
    """
    if query.encoding is None:
        raise InputError(
            "a datastore is searched with hidden states, and this query has none; "
            "give it as Query('', hidden, key=hidden.tobytes())"
        )
    hidden = np.asarray(query.encoding)
    if hidden.shape != (dimension,):
        raise InputError(
            f"a query's hidden state has the shape {hidden.shape}, but the datastore's keys have "
            f"{dimension} dimensions; use the model that the datastore was built with"
        )
    if not float(np.abs(hidden.astype(np.float64)).max()) < LARGEST_NORM / dimension:
        raise InputError("a query's hidden state has NaN, infinite or huge entries")


class WidenedRows:
    """Half-precision rows, read as float32, with a converted copy of the first ones.

    The others are converted on access, into a buffer of the reading
    thread, which its next slice overwrites.
    """

    def __init__(self, halves: NDArray[np.float16], held: int) -> None:
        """Convert and keep the first `held` rows."""
        self._halves = halves
        self._buffers = threading.local()
        self._held: Vectors = np.empty((held, halves.shape[1]), dtype=np.float32)
        for start in range(0, held, _ROWS_AT_ONCE):
            rows = slice(start, min(start + _ROWS_AT_ONCE, held))
            np.copyto(self._held[rows], halves[rows])

    def __getitem__(self, rows: slice, /) -> Vectors:
        """Return a slice of rows, which is valid until the thread's next one."""
        start, stop, _ = rows.indices(len(self._halves))
        if stop <= len(self._held):
            return self._held[start:stop]
        out = self._buffer(stop - start)
        widen(self._halves[start:stop], out)
        return out

    def _buffer(self, rows: int) -> Vectors:
        buffer: Vectors | None = getattr(self._buffers, "rows", None)
        if buffer is None or len(buffer) < rows:
            buffer = np.empty((rows, self._halves.shape[1]), dtype=np.float32)
            self._buffers.rows = buffer
        return buffer[:rows]

    def take(self, ids: Ids) -> NDArray[np.floating[Any]]:
        """Return some rows, in float32 if they are kept: the numbers are the same."""
        if len(ids) and int(ids.max()) < len(self._held):
            return self._held[ids]
        return self._halves[ids]


# Exact search of a datastore: every key is scored, and float64 distances decide.


_QUERIES_AT_ONCE = 64


class ExactSearch:
    """Finds the true k nearest entries, ties by id: the same bits in any batch.

    float32 products select candidates, with a margin that certifiably contains the true
    neighbours; these are measured again in float64 and sorted. A batch reads
    the keys once, so 16 queries take little longer than one.
    """

    exact = True
    pure = True
    inline_encode = True  # queries are hidden states and need no encoding

    def __init__(
        self,
        datastore: Datastore,
        *,
        k: int = 1024,
        memory_bytes: int = HELD_BYTES,
        threads: int | None = None,
    ) -> None:
        """Create an exact search of a datastore.

        Args:
            datastore: the datastore, whose keys may be memory-mapped.
            k: the number of neighbours of a query; all entries if there are fewer.
            memory_bytes: the maximum size of a float32 copy of the keys (2 GiB). Other keys
                stay on the disk, and are converted at each search, once for all its queries.
            threads: scan with this number of threads, with numpy's BLAS limited to one thread in
                the whole process; None uses the threads of BLAS. The results are equal.

        Raises:
            ConfigError: k or threads are below 1, or `memory_bytes` is negative.
            MissingExtraError: threads are given, and threadpoolctl is not installed.
        """
        self.k = check_k(k)
        self._scan: Scan = InTurn() if threads is None else OwnThreads(threads)
        self.keys = Keys(datastore, memory_bytes)
        self.datastore = datastore
        self.size = len(datastore)
        self.signature: Hashable = ("knn-exact", k, datastore.signature)

    def encode(self, text: str) -> Query:
        """Raise an error: the queries are the model's hidden states.

        Raises:
            InputError: always.
        """
        return encode_no_text(text)

    def search(self, queries: Sequence[Query]) -> list[Neighbours]:
        """Return the k nearest entries of each query."""
        return self.search_wide(queries, self.k)

    def search_wide(self, queries: Sequence[Query], width: int) -> list[Neighbours]:
        """Return the `width` nearest entries of each query.

        Raises:
            InputError: a query without hidden state, of another dimension, or with NaN.
        """
        check_k(width)
        if not queries:
            return []
        keys = self.keys
        matrix = hidden_states(queries, keys.dimension)
        found = []
        for start in range(0, len(matrix), _QUERIES_AT_ONCE):
            batch = matrix[start : start + _QUERIES_AT_ONCE]
            for query, ids in zip(batch, self._scan(keys, batch, width), strict=True):
                found.append(keys.ranked(ids, query, width))
        return found


def encode_no_text(text: str) -> Query:
    """Raise an error for any text.

    Raises:
        InputError: always.
    """
    raise InputError(
        f"a datastore is searched with hidden states, not with texts, got {text!r}; "
        "give a Query whose encoding is one"
    )
