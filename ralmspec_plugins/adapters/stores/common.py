"""Wider searches that begin with the search for k, where ties were decided another way."""

import threading
import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import is_
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

RowT = TypeVar("RowT")
VectorT = TypeVar("VectorT")


def decided(scores: Sequence[float], k: int) -> bool:
    """Say whether the order of the first k, or who is among them, was decided by a tie.

    >>> decided([3.0, 2.0, 2.0], 1), decided([3.0, 2.0, 2.0], 2)
    (False, True)
    """
    first = scores[: k + 1]
    return any(left == right for left, right in pairwise(first))


def own_first(
    search: Callable[[Sequence[VectorT], int], list[list[RowT]]],
    vectors: Sequence[VectorT],
    own: int,
    width: int,
    score_of: Callable[[RowT], float],
    id_of: Callable[[RowT], Hashable],
    again: Callable[[], None],
) -> list[list[RowT]]:
    """Search wide, so that the first rows are those of the search for `own` rows.

    Where a tie is among the first or at their end, who comes first may depend on the
    width: these are searched once more, and what else the wide search found is put behind.

    Args:
        search: gives the rows of each vector, best first, at most so many.
        vectors: what is searched for.
        own: how many rows are to be exactly those of the narrow search.
        width: how many are wanted in all.
        score_of: a row's score.
        id_of: a row's id.
        again: called when a second search is made.
    """
    found = search(vectors, width)
    if width <= own:
        return found
    doubtful = tied(found, own, score_of)
    if doubtful:
        again()
        narrow = search([vectors[at] for at in doubtful], own)
        put_first(found, doubtful, narrow, id_of)
    return found


def tied(found: Sequence[Sequence[RowT]], own: int, score_of: Callable[[RowT], float]) -> list[int]:
    """List the queries whose first rows were decided by ties."""
    return [at for at, rows in enumerate(found) if decided([*map(score_of, rows)], own)]


def put_first(
    found: list[list[RowT]],
    places: Sequence[int],
    narrow: Sequence[Sequence[RowT]],
    id_of: Callable[[RowT], Hashable],
) -> None:
    """Put the rows of narrow searches before what else wide ones found."""
    for at, rows in zip(places, narrow, strict=True):
        first = {id_of(row) for row in rows}
        found[at] = [*rows, *(row for row in found[at] if id_of(row) not in first)]


# Vectors that a host keeps as lists, laid out as one array as long as they are the same.
#
# To lay out 20,000 lists of 384 floats takes a quarter of a second, several times as long
# as to search them: stores in Python do it for every query.


Floats: TypeAlias = NDArray[np.float64]

_UNIT = 2.0**-53  # float64's rounding error
_SMALLEST, _LARGEST = 1e-100, 1e100  # of norms whose squares and products are harmless


@dataclass(frozen=True, slots=True)
class RowTable:
    """Vectors as an array [rows, dimension], with their norms."""

    lists: Sequence[Any]
    table: Floats
    norms: Floats

    def holds(self, lists: Sequence[Any]) -> bool:
        """Whether these very lists were laid out, and still begin and end as they did."""
        if len(lists) != len(self.lists) or not all(map(is_, lists, self.lists)):
            return False
        if not lists:
            return True
        ends = [(row[0], row[-1]) for row in lists]
        return bool((self.table[:, [0, -1]] == np.array(ends)).all())

    def cosines(self, queries: Sequence[Any]) -> list[Floats | None]:
        """Give each query's cosines with all rows, wrong by `error` at most.

        `None` where that cannot be promised: for vectors of zeros, of NaN, or of a size that
        makes a square overflow.
        """
        if not len(self.table):
            return [np.zeros(0) for _ in queries]
        if not self._tame(self.norms):
            return [None for _ in queries]
        found: list[Floats | None] = []
        table = np.stack([np.asarray(query, dtype=np.float64) for query in queries])
        with np.errstate(all="ignore"):  # what overflows is seen in the norms
            norms = np.linalg.norm(table, axis=1)
            products = table @ self.table.T  # [queries, rows]
        for row, norm in zip(products, norms, strict=True):
            found.append(row / (self.norms * norm) if self._tame(norm) else None)
        return found

    @property
    def error(self) -> float:
        """Bound how far two ways to compute a cosine in float64 lie apart.

        A product of dimension d, in any order of adding, is wrong by d u |a| |b| at most, and
        each norm by (d / 2 + 1) u: so a cosine by (2 d + 8) u, and two of them by twice that.

        >>> RowTable([], np.zeros((0, 384)), np.zeros(0)).error < 2e-13
        True
        """
        dimension = int(self.table.shape[1])
        return 2 * (2 * dimension + 8) * _UNIT

    @staticmethod
    def _tame(norms: Any) -> bool:
        return bool(np.all((norms > _SMALLEST) & (norms < _LARGEST)))


class RowCache:
    """Keeps the rows of each owner until it goes, or its vectors change. Thread-safe.

    A vector counts as changed when another list stands in its place, or its list begins or
    ends otherwise.
    """

    def __init__(self) -> None:
        """Keep nothing yet."""
        self._lock = threading.RLock()  # a garbage collection may come to `forget` under it
        self._known: dict[int, tuple[weakref.ref[Any], RowTable]] = {}

    def rows(self, owner: object, lists: Sequence[Any]) -> RowTable:
        """Give the rows of these lists, laid out anew where they changed.

        Raises:
            ValueError: they are not vectors of one dimension.
        """
        with self._lock:
            known = self._known.get(id(owner))
        if known is not None and known[0]() is owner and known[1].holds(lists):
            return known[1]
        rows = laid_out(lists)

        def forget(ref: weakref.ref[Any]) -> None:
            with self._lock:
                kept = self._known.get(key)
                if kept is not None and kept[0] is ref:
                    del self._known[key]

        key = id(owner)
        with self._lock:
            self._known[key] = weakref.ref(owner, forget), rows
        return rows


def laid_out(lists: Sequence[Any]) -> RowTable:
    """Make the array of some vectors.

    Raises:
        ValueError: they are not vectors of one dimension, or not of float64.
    """
    table = np.array(lists) if lists else np.zeros((0, 0))
    if table.ndim != 2 or table.dtype != np.float64:
        raise ValueError(f"not rows of floats: an array of {table.dtype}, shape {table.shape}")
    with np.errstate(all="ignore"):
        return RowTable(list(lists), table, np.linalg.norm(table, axis=1))


# Counts the calls of a store that a batch search makes besides the batch itself.


class TieCounter:
    """A number that several threads add to."""

    def __init__(self) -> None:
        """Start at nothing."""
        self._lock = threading.Lock()
        self._count = 0

    def add(self) -> None:
        """Count one more."""
        with self._lock:
            self._count += 1

    @property
    def count(self) -> int:
        """What has been counted."""
        with self._lock:
            return self._count
