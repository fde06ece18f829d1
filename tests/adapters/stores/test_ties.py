"""Wider searches that begin with the search for k."""

import asyncio
from collections.abc import Sequence
from threading import Barrier
from typing import NamedTuple

import pytest

from ralmspec_plugins.adapters.batch_search import counting_repeats
from ralmspec_plugins.adapters.stores.base import TieRecord, aown_first, decided, own_first


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

    found = own_first(search, ["x"], own, 5, TieRecord())

    assert search(["x"], own)[0] == found[0][:own]
    assert sorted(row.id for row in found[0]) == list("abcde")
    assert len(asked) == calls + 1


def _rows(vectors: Sequence[str], width: int) -> list[list[Row]]:
    """Return rows that are tied for "same", in another order in a wide search."""
    found = []
    for vector in vectors:
        score = 2 if vector == "same" else 1
        tied = [Row("b", 2), Row("c", score)]
        rows = [Row("a", 3), *(tied if width % 2 or score == 1 else tied[::-1]), Row("d", 0)]
        found.append(rows[:width])
    return found


def test_frequent_ties_are_searched_at_the_same_time_as_the_wide_search() -> None:
    """Both searches of one batch wait for each other: in sequence they would not end."""
    ties = TieRecord()
    ties.observe([True] * 4)
    meeting = Barrier(2, timeout=10)

    def search(vectors: Sequence[str], width: int) -> list[list[Row]]:
        meeting.wait()
        return _rows(vectors, width)

    with counting_repeats() as repeats:
        found = own_first(search, ["same", "other"], 3, 4, ties)

    assert _rows(["same", "other"], 3) == [rows[:3] for rows in found]
    assert _rows(["same"], 4)[0][:3] != found[0][:3]  # the wide search alone would be wrong
    assert [2] == repeats


def test_they_are_forgotten_when_they_end() -> None:
    """After many queries without ties one search is enough again."""
    ties = TieRecord()
    ties.observe([True] * 4)
    widths: list[int] = []

    def search(vectors: Sequence[str], width: int) -> list[list[Row]]:
        widths.append(width)
        return _rows(vectors, width)

    with counting_repeats() as repeats:
        for _ in range(20):
            assert _rows(["other"], 3) == [own_first(search, ["other"], 3, 4, ties)[0][:3]]

    assert [4] * 5 == widths[-5:]
    assert 0 < len(repeats) < 15


async def test_asynchronous_searches_meet_too() -> None:
    """Both requests are out at once; the rows are the narrow search's."""
    ties = TieRecord()
    ties.observe([True] * 4)
    out: list[int] = []
    both = asyncio.Event()

    async def search(vectors: Sequence[str], width: int) -> list[list[Row]]:
        out.append(width)
        if len(out) == 2:
            both.set()
        await asyncio.wait_for(both.wait(), 10)
        return _rows(vectors, width)

    with counting_repeats() as repeats:
        found = await aown_first(search, ["same", "other"], 3, 4, ties)

    assert _rows(["same", "other"], 3) == [rows[:3] for rows in found]
    assert ([2], {3, 4}) == (repeats, set(out))


async def test_an_error_of_the_wide_search_is_raised_as_it_is() -> None:
    """Not in a group; and the narrow search does not outlive it."""
    ties = TieRecord()
    ties.observe([True] * 4)
    left: list[str] = []

    async def search(_vectors: Sequence[str], width: int) -> list[list[Row]]:
        if width == 4:
            await asyncio.sleep(0)
            raise OSError("no store")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            left.append("cancelled")
            raise
        return []

    with pytest.raises(OSError, match="no store"):
        await aown_first(search, ["same"], 3, 4, ties)
    assert ["cancelled"] == left
