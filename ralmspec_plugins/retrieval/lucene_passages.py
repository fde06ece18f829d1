"""What is known of the passages that searches found: the passage, and its terms for a pool.

A passage is read from the index when it is found for the first time, in the same
piece of work as the search: a pool that ranks it later asks Java nothing.
"""

import threading
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ralmspec_plugins.retrieval.corpus import places_of
from ralmspec_plugins.retrieval.lucene_bm25 import PassageTerms
from ralmspec_plugins.retrieval.lucene_index import Found, LuceneIndex, LuceneSettings
from ralmspec_plugins.types import Passage

_KEPT = 16_384  # the most that are kept, some 5 KB each


@dataclass(frozen=True, slots=True)
class Known:
    """A passage, and what a pool needs to rank it."""

    passage: Passage
    terms: PassageTerms


class FoundPassages:
    """Reads passages when they are found, and keeps those that were found last. Thread-safe."""

    def __init__(
        self,
        index: LuceneIndex,
        settings: LuceneSettings,
        passages: Sequence[Passage] | None,
        *,
        kept: int = _KEPT,
    ) -> None:
        """Start empty.

        Args:
            index: where term counts are read.
            settings: how they are weighed.
            passages: where texts are read; `None` for an index that stores them itself.
            kept: how many passages are kept.
        """
        self._index = index
        self._passages = passages
        self._in_order = None if passages is None else np.argsort(places_of(passages))
        self._factors = index.statistics.length_factors(settings.k1, settings.b)
        self._size = kept
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, Known] = OrderedDict()

    def known(self, wanted: Mapping[int, Found]) -> dict[int, Known]:
        """Give what is known of found passages, by number; within `in_java` only."""
        known: dict[int, Known] = {}
        with self._lock:
            for number in wanted:
                if number in self._kept:
                    self._kept.move_to_end(number)
                    known[number] = self._kept[number]
        fresh = self._read([wanted[number] for number in sorted(wanted.keys() - known.keys())])
        with self._lock:
            self._kept.update(fresh)
            while len(self._kept) > self._size:
                self._kept.popitem(last=False)
        return known | fresh

    def _read(self, founds: Sequence[Found]) -> dict[int, Known]:
        if not founds:
            return {}
        passages = [self._passage(one.id) for one in founds]
        counted = self._index.term_counts([(p.id, indexed_text(p)) for p in passages])
        lengths = self._index.lengths([one.number for one in founds])
        read = {}
        for one, passage, counts, length in zip(founds, passages, counted, lengths, strict=True):
            factors = np.array(list(counts.values()), dtype=np.float32) * self._factors[length]
            read[one.number] = Known(passage, PassageTerms(tuple(counts), factors))
        return read

    def _passage(self, identity: str) -> Passage:
        passages, order = self._passages, self._in_order
        if passages is None or order is None:
            return self._index.passage(identity)
        # Not a dictionary of all: saved passages lie on the disk, and are read one by one.
        at = bisect_left(order, identity, key=lambda row: passages[int(row)].id)
        passage: Passage = passages[int(order[at])]
        return passage


def indexed_text(passage: Passage) -> str:
    """Give what is indexed of a passage: the title before the text."""
    return f"{passage.title}\n{passage.text}" if passage.title else passage.text
