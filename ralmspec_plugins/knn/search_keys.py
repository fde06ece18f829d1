"""A datastore's keys as searches need them: in float32 by blocks, measured, and ranked exactly."""

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ralmspec_plugins.errors import ConfigError, InputError
from ralmspec_plugins.knn.datastore import Datastore, Ids
from ralmspec_plugins.knn.neighbours import Neighbours
from ralmspec_plugins.knn.search_widening import widen
from ralmspec_plugins.retrieval.ranking import (
    LARGEST_NORM,
    FloatArray,
    Metric,
    Vectors,
    best_first,
    exact_scores,
    kernel_error,
)
from ralmspec_plugins.retrieval.vectors import norm_of, squared_norms
from ralmspec_plugins.types import Query

_ROWS_AT_ONCE = 4096
_NUMBERS_AT_ONCE = 1 << 18  # widened at once: 1 MB, which a core's cache holds
HELD_BYTES = 2**31  # of float32 keys: 500,000 entries of 1024 dimensions


class Keys:
    """The keys of a datastore: what a `Scanned` offers, with the squared distance as metric."""

    def __init__(self, datastore: Datastore, memory_bytes: int = HELD_BYTES) -> None:
        """Read all keys once, and hold as many as fit, in float32.

        Args:
            datastore: whose keys may be memory-mapped.
            memory_bytes: how much the float32 copy may take. Keys beyond it are read from the
                datastore and widened at each search, once for all queries of a batch.

        Raises:
            ConfigError: less than no memory.
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
            squares = squared_norms(self.vectors[rows], start)
            self.squares[rows] = squares
            largest = max(largest, float(squares.max()))
        self.largest_norm = float(np.sqrt(largest))

    def error(self, query: Vectors) -> float:
        """Bound a float32 kernel's error for this query, over all keys."""
        return kernel_error(Metric.L2, self.dimension, self.largest_norm, norm_of(query))

    def exact(self, ids: Ids, query: Vectors) -> FloatArray:
        """Give minus the squared distances, in float64, each entry's independent of the others."""
        return exact_scores(self.vectors.take(ids), query, Metric.L2)

    def ranked(self, ids: Ids, query: Vectors, k: int) -> Neighbours:
        """Order nominated entries by their exact distances, ties by id."""
        return nearest_of(ids, self.datastore.values[ids], self.exact(ids, query), k)


def nearest_of(ids: Ids, values: NDArray[np.int32], scores: FloatArray, k: int) -> Neighbours:
    """Give the best k of these entries, by their exact scores, ties by id."""
    best = best_first(scores, ids, k)
    return Neighbours(ids[best], values[best], 0.0 - scores[best])


def hidden_states(queries: Sequence[Query], dimension: int) -> Vectors:
    """Stack the queries' hidden states.  # [queries, dimension].

    Raises:
        InputError: a query without one, of another dimension, or with NaN.
    """
    for query in queries:
        check_hidden(query, dimension)
    return np.array([query.encoding for query in queries], dtype=np.float32)


def check_hidden(query: Query, dimension: int) -> None:
    """Refuse what cannot be searched.

    Raises:
        InputError: no hidden state, one of another dimension, or with NaN.
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
    """Half-precision rows, given in float32: of the first ones a copy is held.

    The others are widened when they are asked for, into a buffer of the asking
    thread's own, which its next such slice overwrites.
    """

    def __init__(self, halves: NDArray[np.float16], held: int) -> None:
        """Hold the first `held` rows widened."""
        self._halves = halves
        self._buffers = threading.local()
        self._held: Vectors = np.empty((held, halves.shape[1]), dtype=np.float32)
        for start in range(0, held, _ROWS_AT_ONCE):
            rows = slice(start, min(start + _ROWS_AT_ONCE, held))
            np.copyto(self._held[rows], halves[rows])

    def __getitem__(self, rows: slice, /) -> Vectors:
        """Give a slice of neighbouring rows; see the class on how long it lasts."""
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
        """Give some rows, in float32 where they are held: the same numbers in any case."""
        if len(ids) and int(ids.max()) < len(self._held):
            return self._held[ids]
        return self._halves[ids]
