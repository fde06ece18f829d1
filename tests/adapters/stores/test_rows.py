"""Vectors laid out once: used as long as they are the same, and their cosines' error bounded."""

import gc

import numpy as np
import pytest

from ralmspec_plugins.adapters.stores.rows import RowCache, laid_out


class Owner:
    """Something that has vectors."""


def vectors(count: int = 40, dimension: int = 12) -> list[list[float]]:
    table: list[list[float]] = np.random.default_rng(3).standard_normal((count, dimension)).tolist()
    return table


def test_rows_are_laid_out_anew_where_they_changed() -> None:
    """Another list, another order, more or fewer of them, another begin or end: all count."""
    cache, owner, lists = RowCache(), Owner(), vectors()
    first = cache.rows(owner, lists)
    same = cache.rows(owner, list(lists))
    replaced = [list(lists[0]), *lists[1:]]
    changes = [replaced, lists[::-1], lists[:-1], [*lists, lists[0]]]
    others = [cache.rows(owner, change) for change in changes]
    begun = cache.rows(owner, lists)
    lists[7][0] += 1.0
    ended = cache.rows(owner, lists)
    lists[7][-1] += 1.0

    assert same is first
    assert all(other is not first for other in others)
    assert begun is not ended
    assert cache.rows(owner, lists) is not ended
    assert np.array_equal(cache.rows(owner, lists).table, np.array(lists))


def test_rows_go_with_their_owner() -> None:
    """Nothing is kept of an owner that is gone."""
    cache, owner = RowCache(), Owner()
    cache.rows(owner, vectors())
    del owner
    gc.collect()

    assert cache._known == {}


def test_cosines_are_wrong_by_the_error_at_most() -> None:
    """Compared with extended precision, for rows of very different sizes."""
    lists = [[x * 10.0 ** (at % 60 - 30) for x in row] for at, row in enumerate(vectors(300, 64))]
    rows, query = laid_out(lists), vectors(1, 64)[0]
    table, wide = np.array(lists, dtype=np.longdouble), np.array(query, dtype=np.longdouble)
    exact = table @ wide / np.sqrt((table**2).sum(axis=1)) / np.sqrt((wide**2).sum())
    [cosines] = rows.cosines([query])

    assert cosines is not None
    assert np.abs(cosines - exact).max() <= rows.error / 2


@pytest.mark.parametrize("odd", [0.0, float("nan"), float("inf"), 1e-200, 1e200])
def test_odd_vectors_promise_nothing(odd: float) -> None:
    """A zero, a NaN or a huge vector, among the rows or as the query, has no bounded cosine."""
    lists = vectors(3, 2)
    whole = laid_out(lists)

    assert whole.cosines([[odd, odd], lists[0]])[0] is None
    assert whole.cosines([[odd, odd], lists[0]])[1] is not None
    assert laid_out([*lists, [odd, odd]]).cosines([lists[0]]) == [None]


@pytest.mark.parametrize("lists", [[[1, 2], [3, 4]], [[1.0], [2.0, 3.0]], [["a"]]])
def test_what_is_not_rows_of_floats_is_refused(lists: list[list[object]]) -> None:
    """Whole numbers, rows of different lengths, texts: the host is to see to them."""
    with pytest.raises(ValueError, match=r"rows|inhomogeneous"):
        laid_out(lists)
