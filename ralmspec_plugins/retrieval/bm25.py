"""Sparse search: BM25 with Lucene's formula, by the score matrix of bm25s.

bm25s computes every (word, passage) score when the index is built; a search
sums the query's columns. They are summed here in the query's word order, in
float32, for all passages or for cached ones only: the same additions, and so the same
bits, as in bm25s's own search.
"""

import json
import math
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ralmspec_plugins.errors import ConfigError, IndexFileError, InputError
from ralmspec_plugins.retrieval.artifacts import IndexArtifacts
from ralmspec_plugins.retrieval.encoders import Encoder
from ralmspec_plugins.retrieval.optional import optional
from ralmspec_plugins.retrieval.ranking import Vectors, best_first, row_numbers
from ralmspec_plugins.retrieval.storage.corpus import check_k, fingerprint, kept, places_of
from ralmspec_plugins.types import Hit, Hits, Passage, Query

# The score of every word in every passage, and sums over a query's words.


@dataclass(frozen=True, slots=True, eq=False)
class ScoreMatrix:
    """A sparse matrix by columns: the score of each word in each passage that has it."""

    data: NDArray[np.float32]
    rows: NDArray[np.int32]  # ascending within a column
    starts: NDArray[np.int64]  # [words + 1]

    def all_scores(self, words: Sequence[int], size: int) -> Vectors:
        """Return the sum of the words' columns.  # [passages]."""
        scores = np.zeros(size, dtype=np.float32)
        for word in words:
            column = slice(self.starts[word], self.starts[word + 1])
            scores[self.rows[column]] += self.data[column]  # a passage occurs once in a column
        return scores

    def scores_of(self, words: Sequence[int], rows: NDArray[np.int32]) -> Vectors:
        """Return the sum of the words' columns for some passages, to the same bits."""
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
        """Return a matrix from the three arrays of a sparse format: these columns, in row order."""
        starts = np.asarray(scores["indptr"], dtype=np.int64)
        lengths = np.diff(starts)[list(numbers)]
        places = np.empty(len(starts) - 1, dtype=np.int64)
        places[list(numbers)] = np.arange(len(numbers))
        rows = np.asarray(scores["indices"], dtype=np.int32)
        order = np.lexsort((rows, np.repeat(places, np.diff(starts))))
        data = np.asarray(scores["data"], dtype=np.float32)
        return cls(data[order], rows[order], np.concatenate([[0], np.cumsum(lengths)]))

    def fits(self, words: int, passages: int) -> bool:
        """Return whether the arrays match each other, and the numbers of words and passages."""
        return (
            len(self.data) == len(self.rows)
            and len(self.starts) > words
            and int(self.starts[-1]) == len(self.data)
            and bool(np.all(np.diff(self.starts) >= 0))
            and (not len(self.rows) or 0 <= self.rows.min() <= self.rows.max() < passages)
        )


def check_bm25(k1: float, b: float) -> None:
    """Check the parameters of BM25.

    Raises:
        ConfigError: `k1` is negative, or `b` not in [0, 1].
    """
    numbers = all(isinstance(one, int | float) for one in (k1, b))
    if not numbers or not 0 <= k1 < math.inf or not 0 <= b <= 1:
        raise ConfigError(f"k1 must be at least 0 and b in [0, 1], got {k1!r} and {b!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bm25Settings:
    """The settings of tokenisation and scoring; saved with the index."""

    k1: float = 0.9  # Anserini's defaults, which the paper's sparse retriever uses
    b: float = 0.4
    lower: bool = True
    token_pattern: str = r"(?u)\b\w\w+\b"  # noqa: S105 no password: words, as bm25s has them
    stopwords: str | None = "english"

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ConfigError: the message names the setting.
        """
        check_bm25(self.k1, self.b)
        try:
            re.compile(self.token_pattern)
        except (re.error, TypeError) as error:
            raise ConfigError(
                f"token_pattern must be a regular expression, got {self.token_pattern!r} ({error})"
            ) from error
        if self.stopwords is not None and not isinstance(self.stopwords, str):
            raise ConfigError(f"stopwords must be a language or None, got {self.stopwords!r}")

    def words(self, texts: Sequence[str]) -> list[list[str]]:
        """Return the words of texts.

        Raises:
            ConfigError: bm25s has no stop words of that language.
        """
        try:
            words: list[list[str]] = _bm25s().tokenize(
                list(texts),
                lower=self.lower,
                token_pattern=self.token_pattern,
                stopwords=self.stopwords or [],
                return_ids=False,
                show_progress=False,
            )
        except ValueError as error:
            raise ConfigError(f"stopwords={self.stopwords!r}: {error}") from error
        return words


class Bm25Retriever:
    """Exact BM25, ties by passage id; passages without any of the words score 0 and come last."""

    exact = True
    pure = True
    inline_encode = True
    needs_encoder = False

    def __init__(
        self,
        passages: Sequence[Passage],
        matrix: ScoreMatrix,
        vocabulary: Mapping[str, int],
        settings: Bm25Settings,
        *,
        k: int = 1,
        print_of_files: str | None = None,
    ) -> None:
        """Create a retriever of an existing index; `build` creates one."""
        self.places = places_of(passages)
        self.passages = kept(passages)
        self.size = len(self.passages)
        self.k = check_k(k)
        self._matrix = matrix
        self._vocabulary = dict(vocabulary)
        self._settings = settings
        self._print = print_of_files or fingerprint(self.passages)
        self.signature: Hashable = ("bm25s", k, self._print, settings)

    @classmethod
    def build(
        cls,
        passages: Sequence[Passage],
        encoder: Encoder | None = None,  # noqa: ARG003 all backends have the same signature
        *,
        k: int = 1,
        **settings: Any,
    ) -> Self:
        """Index the passages, title before text; no encoder is needed.

        Args:
            passages: the knowledge base.
            encoder: not used.
            k: the number of passages of a query.
            settings: those of `Bm25Settings`.

        Raises:
            InputError: no passage has a word.
        """
        chosen = Bm25Settings(**settings)
        places_of(passages)
        words = chosen.words([f"{p.title}\n{p.text}" if p.title else p.text for p in passages])
        if not any(word for passage in words for word in passage):
            raise InputError("no passage has any word that the tokenizer keeps")
        engine = _bm25s().BM25(k1=chosen.k1, b=chosen.b, method="lucene")
        engine.index(words, show_progress=False)
        columns = len(engine.scores["indptr"]) - 1  # bm25s numbers an empty word without a column
        # bm25s numbers words in a set's order, which differs between processes.
        known = sorted(word for word, number in engine.vocab_dict.items() if number < columns)
        matrix = ScoreMatrix.of_columns(engine.scores, [engine.vocab_dict[w] for w in known])
        vocabulary = {word: number for number, word in enumerate(known)}
        return cls(passages, matrix, vocabulary, chosen, k=k)

    def encode(self, text: str) -> Query:
        """Return the numbers of a text's known words, in order, with repetitions."""
        words = self._settings.words([text])[0]
        known = self._vocabulary
        return Query(text, tuple(known[word] for word in words if word in known))

    def search(self, queries: Sequence[Query]) -> list[Hits]:
        """Return the best k passages of each query."""
        return self.search_wide(queries, self.k)

    def search_wide(self, queries: Sequence[Query], width: int) -> list[Hits]:
        """Return the best `width` passages of each query; a batch saves no time."""
        check_k(width)
        return [self._best(self.check(query), width) for query in queries]

    def _best(self, words: Sequence[int], width: int) -> Hits:
        scores = self._matrix.all_scores(words, self.size)
        rows = best_first(scores, self.places, width)
        return tuple(
            Hit(self.passages[row], score, row)
            for row, score in zip(rows.tolist(), scores[rows].tolist(), strict=True)
        )

    def check(self, query: Query) -> Sequence[int]:
        """Return a query's word numbers.

        Raises:
            InputError: it was encoded by another retriever.
        """
        words = query.encoding
        if not isinstance(words, tuple) or not all(
            isinstance(word, int) and 0 <= word < len(self._matrix.starts) - 1 for word in words
        ):
            raise InputError(
                f"the query {query.text!r} does not have this index's word numbers; create it with "
                "retriever.encode(text)"
            )
        return words

    def table(self, capacity: int) -> "Bm25Table":
        """Return an empty table, which scores with the whole corpus's statistics."""
        return Bm25Table(self, self._matrix, capacity)

    def parts(self) -> IndexArtifacts:
        """Return the artifacts to save."""
        matrix, words = self._matrix, json.dumps(self._vocabulary).encode()
        return IndexArtifacts(
            "bm25s",
            {"k": self.k, "fingerprint": self._print, "bm25": asdict(self._settings)},
            self.passages,
            {"data": matrix.data, "rows": matrix.rows, "starts": matrix.starts},
            written={"vocabulary.json": lambda write: write(words)},
        )

    @classmethod
    def from_parts(
        cls,
        parts: IndexArtifacts,
        encoder: Encoder | None,  # noqa: ARG003 all backends have the same signature
        k: int,
    ) -> Self:
        """Return the retriever of saved artifacts.

        Raises:
            IndexFileError: the parts do not fit together.
        """
        matrix = ScoreMatrix(parts.array("data"), parts.array("rows"), parts.array("starts"))
        vocabulary = json.loads(parts.file("vocabulary.json").read_bytes())
        if not matrix.fits(max(vocabulary.values(), default=-1) + 1, len(parts.passages)):
            raise IndexFileError("the saved BM25 matrix does not fit its passages; build it again")
        settings = Bm25Settings(**parts.setting("bm25"))
        settings.words([""])  # checks the token pattern
        print_of_files = parts.setting("fingerprint")
        return cls(parts.passages, matrix, vocabulary, settings, k=k, print_of_files=print_of_files)


class Bm25Table:
    """The rows of cached passages, scored by the corpus's matrix."""

    def __init__(self, retriever: Bm25Retriever, matrix: ScoreMatrix, capacity: int) -> None:
        """Create a table of `capacity` passages."""
        self._retriever = retriever
        self._matrix = matrix
        self._rows = np.zeros(capacity, dtype=np.int32)

    def put(self, slot: int, hit: Hit) -> None:
        """Store a passage's row in a slot.

        Raises:
            InputError: the hit is from another retriever.
        """
        row, retriever = hit.features, self._retriever
        if not isinstance(row, int) or not 0 <= row < retriever.size:
            raise InputError(
                f"the hit {hit.passage.id!r} has no row number; a passage cache takes hits of its "
                "own retriever only"
            )
        self._rows[slot] = row

    def rank(self, query: Query, slots: Sequence[int], k: int) -> list[tuple[int, float]]:
        """Return the best k of these slots with the scores of a search."""
        chosen = row_numbers(slots)
        rows = self._rows[chosen]
        scores = self._matrix.scores_of(self._retriever.check(query), rows)
        best = best_first(scores, self._retriever.places[rows], k)
        return list(zip(chosen[best].tolist(), scores[best].tolist(), strict=True))


def _bm25s() -> Any:
    return optional("bm25s", "bm25", "bm25s")
