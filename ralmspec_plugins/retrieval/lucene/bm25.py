"""Lucene's BM25 in Python, equal to the bit: for cached passages, without Java.

A word's part of a score is computed in float32, exactly as `BM25Similarity` of
Lucene 9 does; a score is their sum in float64, rounded to float32, as all of its
scorers do:

    idf    = ln(1 + (N - df + 0.5) / (df + 0.5))
    part   = w - w / (1 + tf * c),   w = qtf * idf,   c = 1 / (k1 * (1 - b + b * L / avgdl))

with N, df and avgdl of the whole index and L the passage's length as Lucene
keeps it, in one byte (exact up to 40 words). A float32 has 24 bits, a float64
53: the sum has no rounding error, so no order of words matters, as long as the
largest part is below 2^29 times the smallest one's last place. Beyond that, if
the logarithms of Java and Python differ, or if an analyzer returns several terms for
one position of a text, the score of a guess may differ from that of the search: a wrong
guess, never a wrong answer.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ralmspec_plugins.errors import InputError
from ralmspec_plugins.retrieval.ranking import Vectors, row_numbers
from ralmspec_plugins.types import Hit, Query

_SMALL = 24  # lengths below are exact, others have four leading bits


@dataclass(frozen=True, slots=True)
class QueryTerms:
    """A query's encoding: its text, and the index's terms in it with qtf * idf of each."""

    text: str
    terms: tuple[str, ...]
    weights: Vectors


@dataclass(frozen=True, slots=True, eq=False)
class PassageTerms:
    """The terms of a cached passage, with tf * c of each."""

    terms: tuple[str, ...]
    factors: Vectors


@dataclass(frozen=True, slots=True)
class Statistics:
    """The statistics of an index for BM25."""

    passages: int  # N: those with a text
    tokens: int

    def idf(self, holding: int) -> np.float32:
        """Return the weight of a term by the number of passages that contain it.

        >>> round(float(Statistics(passages=10, tokens=100).idf(2)), 4)  # ln(1 + 8.5 / 2.5)
        1.4816
        """
        return np.float32(math.log(1 + (self.passages - holding + 0.5) / (holding + 0.5)))

    def length_factors(self, k1: float, b: float) -> Vectors:
        """Return c for each of the 256 lengths of one byte.

        >>> factors = Statistics(passages=10, tokens=100).length_factors(k1=0.5, b=0.5)
        >>> float(factors[10])  # the average length, so 1 / k1
        2.0
        """
        one, k1_32, b_32 = np.float32(1), np.float32(k1), np.float32(b)
        average = np.float32(self.tokens / self.passages)
        with np.errstate(divide="ignore"):  # k1 = 0: infinity, and a part is w
            return one / (k1_32 * ((one - b_32) + b_32 * LENGTHS.astype(np.float32) / average))


def decoded_length(code: int) -> int:
    """Return the length of a byte, as Lucene's `SmallFloat.byte4ToInt`.

    >>> [decoded_length(code) for code in (0, 23, 39, 40, 41, 48, 255)]
    [0, 23, 39, 40, 42, 56, 2013265944]
    """
    if code < _SMALL:
        return code
    bits, shift = (code - _SMALL) & 7, ((code - _SMALL) >> 3) - 1
    return _SMALL + (bits if shift < 0 else (bits | 8) << shift)


LENGTHS = np.array([decoded_length(code) for code in range(256)])


def encoded_length(length: int) -> int:
    """Return the byte of a length in Lucene: the greatest that does not exceed it.

    >>> [encoded_length(length) for length in (0, 23, 41, 42, 57)]
    [0, 23, 40, 41, 48]
    """
    return int(np.searchsorted(LENGTHS, length, side="right")) - 1


class LuceneTable:
    """The terms of cached passages, in three arrays that are scored in one operation.

    A passage's entries are appended. Those of an evicted passage remain
    without a slot, until they outnumber the others and are removed.
    """

    def __init__(self, capacity: int) -> None:
        """Create a table of `capacity` passages."""
        self._capacity = capacity
        self._ids = [""] * capacity
        self._spans = [(0, 0)] * capacity
        self._numbers: dict[str, int] = {}  # of terms
        self._weights = np.zeros(1024, dtype=np.float32)  # by term: the query's, else 0
        self._used = self._live = 0
        self._resize(4096)

    def put(self, slot: int, hit: Hit) -> None:
        """Store a passage's terms in a slot.

        Raises:
            InputError: the hit is not from a Lucene retriever.
        """
        found = hit.features
        if not isinstance(found, PassageTerms):
            raise InputError(
                f"the hit {hit.passage.id!r} has no term counts; a passage cache takes hits of its "
                "own retriever only"
            )
        start, stop = self._spans[slot]
        self._slots[start:stop] = self._capacity
        self._live -= stop - start
        self._spans[slot] = (0, 0)
        count = len(found.terms)
        if self._used + count > len(self._terms):
            self._make_room(count)
        span = slice(self._used, self._used + count)
        self._terms[span] = [self._number(term) for term in found.terms]
        self._factors[span] = found.factors
        self._slots[span] = slot
        self._spans[slot] = (span.start, span.stop)
        self._used += count
        self._live += count
        self._ids[slot] = hit.passage.id

    def rank(self, query: Query, slots: Sequence[int], k: int) -> list[tuple[int, float]]:
        """Return the best k of these slots that share a term with the query, with their scores."""
        chosen = row_numbers(slots)
        scores = self._scores(terms_of(query))[chosen]
        sharing = np.flatnonzero(scores > 0)
        if len(sharing) > k:
            kth = np.partition(scores[sharing], len(sharing) - k)[len(sharing) - k]
            sharing = sharing[scores[sharing] >= kth]
        found = list(zip(chosen[sharing].tolist(), scores[sharing].tolist(), strict=True))
        found.sort(key=lambda pair: (-pair[1], self._ids[pair[0]]))
        return found[:k]

    def _scores(self, asked: QueryTerms) -> Vectors:  # [capacity]
        numbers = self._numbers
        known = [(numbers[t], w) for t, w in zip(asked.terms, asked.weights, strict=True)
                 if t in numbers]  # fmt: skip
        places = [number for number, _ in known]
        self._weights[places] = [weight for _, weight in known]
        weights = self._weights.take(self._terms[: self._used])
        self._weights[places] = 0
        at = np.flatnonzero(weights > 0)  # twenty times as fast as of the floats themselves
        weights = weights[at]
        parts = weights - weights / (np.float32(1) + self._factors[at])
        sums = np.bincount(self._slots[at], parts, self._capacity + 1)
        return sums[: self._capacity].astype(np.float32)

    def _number(self, term: str) -> int:
        number = self._numbers.setdefault(term, len(self._numbers))
        if number == len(self._weights):
            self._weights = np.zeros(2 * number, dtype=np.float32)
        return number

    def _make_room(self, count: int) -> None:
        """Remove entries without a slot, and grow unless that frees half of the space."""
        kept = np.flatnonzero(self._slots[: self._used] < self._capacity)
        terms, factors, slots = self._terms[kept], self._factors[kept], self._slots[kept]
        room = len(self._terms)
        while room < 2 * (len(kept) + count):
            room *= 2
        self._resize(room)
        self._used = len(kept)
        live = slice(0, self._used)
        self._factors[live], self._slots[live] = factors, slots
        words = list(self._numbers)
        used, self._terms[live] = np.unique(terms, return_inverse=True)
        self._numbers = {words[old]: new for new, old in enumerate(used.tolist())}
        starts = np.searchsorted(kept, [start for start, _ in self._spans]).tolist()
        self._spans = [
            (new, new + stop - start)
            for new, (start, stop) in zip(starts, self._spans, strict=True)
        ]  # fmt: skip

    def _resize(self, room: int) -> None:
        self._terms: NDArray[np.int64] = np.zeros(room, dtype=np.int64)
        self._factors: Vectors = np.zeros(room, dtype=np.float32)
        self._slots: NDArray[np.int64] = np.full(room, self._capacity)

    def check(self) -> None:
        """Assert the invariants."""
        assert self._live == np.count_nonzero(self._slots[: self._used] < self._capacity)
        assert not self._weights.any()
        for slot, (start, stop) in enumerate(self._spans):
            assert np.all(self._slots[start:stop] == slot)


def terms_of(query: Query) -> QueryTerms:
    """Return a query's terms.

    Raises:
        InputError: it was encoded by another retriever.
    """
    asked: Any = query.encoding
    if not isinstance(asked, QueryTerms):
        raise InputError(
            f"the query {query.text!r} does not have an index's terms; create it with "
            "retriever.encode(text)"
        )
    return asked
