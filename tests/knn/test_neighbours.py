"""Neighbours are arrays that read as a tuple of hits would."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import ArrayLike

from ralmspec_plugins.config import Settings
from ralmspec_plugins.engine.threads import Engine
from ralmspec_plugins.errors import InputError
from ralmspec_plugins.knn.search import Neighbours
from ralmspec_plugins.plain import plain
from ralmspec_plugins.scheduling.schedules import FixedStride
from ralmspec_plugins.testing import EchoWorkload
from ralmspec_plugins.types import Hit, Hits, Passage, Query, Request, fixed


class Counting:
    """A retriever that finds the same for all numbers of a decade: the decade's own."""

    k = 3
    signature = "counting"
    inline_encode = True

    def encode(self, text: str) -> Query:
        return Query(text, int(text))

    def search(self, queries: Sequence[Query]) -> list[Hits]:
        return self.search_wide(queries, self.k)

    def search_wide(self, queries: Sequence[Query], width: int) -> list[Hits]:
        steps = np.arange(width)
        tens = [query.encoding // 10 * 10 for query in queries]
        return [Neighbours(ten + steps, ten + steps.astype(np.int32), 1.0 * steps) for ten in tens]


class LastFound:
    """Guesses what was found last, cut to k."""

    inline = True

    def __init__(self) -> None:
        self.found: Hits | None = None
        self.learned: list[Hits] = []

    def guess(self, query: Query) -> Hits | None:
        return None if self.found is None else self.found[:3]

    def learn(self, query: Query, hits: Hits) -> None:
        self.found = hits
        self.learned.append(hits)


def near(ids: ArrayLike, values: ArrayLike, distances: ArrayLike) -> Neighbours:
    return Neighbours(
        np.array(ids), np.array(values, dtype=np.int32), np.array(distances, dtype=np.float64)
    )


def test_they_read_as_hits() -> None:
    """Indexing, slicing, negative indexes and iteration give what a tuple of hits would."""
    hits = (
        Hit(Passage("9", "50"), -0.25),
        Hit(Passage("4", "7"), -1.0),
        Hit(Passage("5", "7"), -1.0),
    )
    ours = near([9, 4, 5], [50, 7, 7], [0.25, 1.0, 1.0])

    assert hits == tuple(ours)
    assert hits[-1] == ours[-1]
    assert hits[1:] == tuple(ours[1:])
    assert hits[::-1] == tuple(ours[::-1])
    assert hits[:2] == tuple(ours[:2])
    with pytest.raises(IndexError):
        ours[3]


def test_a_distance_of_zero_is_a_score_of_plus_zero() -> None:
    """No score is -0.0, which prints and hashes otherwise than the retrievers' 0.0."""
    assert str(near([0], [1], [0.0])[0].score) == "0.0"


def test_equal_content_is_equal() -> None:
    """Equality and hash are by content; any one number that differs makes them unequal."""
    ours = near([9, 4], [50, 7], [0.25, 1.0])

    assert ours == near([9, 4], [50, 7], [0.25, 1.0])
    assert hash(ours) == hash(near([9, 4], [50, 7], [0.25, 1.0]))
    assert ours != near([9, 3], [50, 7], [0.25, 1.0])
    assert ours != near([9, 4], [50, 8], [0.25, 1.0])
    assert ours != near([9, 4], [50, 7], [0.25, np.nextafter(1.0, 2.0)])
    assert ours != near([9], [50], [0.25])
    assert ours != tuple(ours)


def test_nobody_can_write_to_them() -> None:
    """The arrays given, and those of a slice, are closed for writing."""
    ids = np.array([9, 4])
    ours = Neighbours(ids, np.array([50, 7], dtype=np.int32), np.array([0.25, 1.0]))

    for array in (ids, ours.values, ours.distances, ours[:1].ids):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_a_slice_does_not_hold_the_rest() -> None:
    """The first k of a wide search can be kept without its memory; the whole is itself."""
    ours = near(range(100), range(100), range(100))

    assert ours[:3].ids.base is None
    assert ours[:100] is ours
    assert ours[:] is ours


@pytest.mark.parametrize(
    ("ids", "values", "distances"), [([1], [1, 2], [0.0]), ([1], [1], []), ([[1]], [[1]], [[0.0]])]
)
def test_arrays_that_do_not_fit_are_refused(
    ids: ArrayLike, values: ArrayLike, distances: ArrayLike
) -> None:
    """Arrays of several lengths, or more than one row, are an error that names the shapes."""
    with pytest.raises(InputError, match="as many ids as values and distances"):
        near(ids, values, distances)


def test_fixed_hits_are_left_as_they_are() -> None:
    """A list becomes a tuple, as ever; neighbours stay neighbours."""
    ours = near([9], [50], [0.25])

    assert ours is fixed(ours)
    assert tuple(ours) == fixed(list(ours))


@pytest.mark.parametrize("reads_scores", [True, False])
def test_an_engine_hands_them_through(reads_scores: bool) -> None:
    """Searched, guessed, learned and recorded as arrays; the answer is the plain loop's."""
    workload, request = EchoWorkload(), Request(prompt="51 52 53 54 61 62 63 54")
    workload.reads_scores = reads_scores
    guesser = LastFound()
    expected = plain(workload, Counting(), request)
    schedule = FixedStride(stride=2)  # it guesses, however fast the search is
    settings = Settings(schedule=schedule, speculators=[guesser], prefetch=8)
    with Engine(workload, Counting(), settings) as engine:
        answer = engine.run(request)

    assert expected == answer
    assert all(type(step.hits) is Neighbours for step in (*answer.retrieved, *expected.retrieved))
    assert {(Neighbours, 8)} == {(type(hits), len(hits)) for hits in guesser.learned}
    assert answer.stats.accepted > 0
