"""Wider searches that begin with the search for k, where ties were decided another way."""

from collections.abc import Callable, Hashable, Sequence
from itertools import pairwise
from typing import TypeVar

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
