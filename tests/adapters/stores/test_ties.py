"""Wider searches that begin with the search for k."""

from collections.abc import Sequence
from typing import NamedTuple

import pytest

from ralmspec_plugins.adapters.stores.base import decided, own_first


class Row(NamedTuple):
    """A row of some store."""

    id: str
    score: float


def test_ties_are_seen_up_to_the_first_that_is_left_out() -> None:
    """A tie behind that decides nothing."""
    assert [decided([4, 3, 2, 2, 1], k) for k in (1, 2, 3, 4)] == [False, False, True, True]


@pytest.mark.parametrize(("own", "calls"), [(1, 1), (2, 2), (4, 2)])
def test_the_own_rows_stand_first(own: int, calls: int) -> None:
    """Where ties fall otherwise in a wider search, the narrow one is asked, and only then."""
    asked: list[int] = []

    def search(vectors: Sequence[str], width: int) -> list[list[Row]]:
        asked.append(width)
        tied = ["b", "c"] if width % 2 else ["c", "b"]
        rows = [Row("a", 3), Row(tied[0], 2), Row(tied[1], 2), Row("d", 1), Row("e", 0)]
        return [rows[:width] for _ in vectors]

    found = own_first(search, ["x"], own, 5)

    assert search(["x"], own)[0] == found[0][:own]
    assert sorted(row.id for row in found[0]) == list("abcde")
    assert len(asked) == calls + 1
