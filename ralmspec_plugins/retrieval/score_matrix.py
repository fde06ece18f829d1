"""The score of every word in every passage, and sums over a query's words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ralmspec_plugins.retrieval.ranking import Vectors


@dataclass(frozen=True, slots=True, eq=False)
class ScoreMatrix:
    """A sparse matrix by columns: the score of each word in each passage that has it."""

    data: NDArray[np.float32]
    rows: NDArray[np.int32]  # ascending within a column
    starts: NDArray[np.int64]  # [words + 1]

    def all_scores(self, words: Sequence[int], size: int) -> Vectors:
        """Add up the words' columns.  # [passages]."""
        scores = np.zeros(size, dtype=np.float32)
        for word in words:
            column = slice(self.starts[word], self.starts[word + 1])
            scores[self.rows[column]] += self.data[column]  # a passage is in a column once
        return scores

    def scores_of(self, words: Sequence[int], rows: NDArray[np.int32]) -> Vectors:
        """Add up the words' columns for some passages alone, to the same bits."""
        scores = np.zeros(len(rows), dtype=np.float32)
        for word in words:
            start, stop = self.starts[word], self.starts[word + 1]
            column = self.rows[start:stop]
            if not len(column):
                continue
            at = np.searchsorted(column, rows)  # both int32, or numpy would convert the column
            at[at == len(column)] = 0
            there = np.flatnonzero(column[at] == rows)
            scores[there] += self.data[start:stop][at[there]]
        return scores

    @classmethod
    def of_columns(cls, scores: Mapping[str, Any], numbers: Sequence[int]) -> Self:
        """Take over a matrix in the usual three arrays: these columns, each in row order."""
        starts = np.asarray(scores["indptr"], dtype=np.int64)
        lengths = np.diff(starts)[list(numbers)]
        places = np.empty(len(starts) - 1, dtype=np.int64)
        places[list(numbers)] = np.arange(len(numbers))
        rows = np.asarray(scores["indices"], dtype=np.int32)
        order = np.lexsort((rows, np.repeat(places, np.diff(starts))))
        data = np.asarray(scores["data"], dtype=np.float32)
        return cls(data[order], rows[order], np.concatenate([[0], np.cumsum(lengths)]))

    def fits(self, words: int, passages: int) -> bool:
        """Whether the arrays belong together and to so many words and passages."""
        return (
            len(self.data) == len(self.rows)
            and len(self.starts) > words
            and int(self.starts[-1]) == len(self.data)
            and bool(np.all(np.diff(self.starts) >= 0))
            and (not len(self.rows) or 0 <= self.rows.min() <= self.rows.max() < passages)
        )
