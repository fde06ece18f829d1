"""What all dense retrievers share: passages with vectors, their metric and their ranking."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ralmspec_plugins.errors import ConfigError, InputError
from ralmspec_plugins.retrieval.corpus import fingerprint, kept, places_of
from ralmspec_plugins.retrieval.dense_table import DenseTable
from ralmspec_plugins.retrieval.encoders import Encoder, encoder_name
from ralmspec_plugins.retrieval.encoding import encode_all
from ralmspec_plugins.retrieval.ranking import (
    LARGEST_NORM,
    FloatArray,
    IntArray,
    Metric,
    Vectors,
    best_first,
    exact_scores,
    kernel_error,
    metric_of,
)
from ralmspec_plugins.retrieval.vectors import (
    norm_of,
    normalise,
    normalised,
    squared_norms,
    unit_rows,
)
from ralmspec_plugins.types import Hit, Hits, Passage, Query


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """What was worked out of all vectors when they were saved, and need not be again."""

    fingerprint: str
    largest_norm: float
    squares: Vectors | None = None  # of each row's length; for L2


class DenseCorpus:
    """Passages and their vectors, checked once; knows the metric, not how to search.

    `vectors` may be memory-mapped: rows are read when they are needed, and a
    hit's `features` is a view of its row.
    """

    def __init__(
        self,
        passages: Sequence[Passage],
        vectors: NDArray[np.float32],  # [passages, dim]
        encoder: Encoder | None = None,
        metric: str = Metric.IP,
        *,
        own: bool = False,
        measured: Measured | None = None,
    ) -> None:
        """Check that passages and vectors fit together.

        Args:
            passages: in the order of the rows.
            vectors: one row a passage; for cosine, lengths that are not 1 or 0 are made so, in
                a copy unless they are the corpus's own.
            encoder: makes queries from texts; not needed where queries come encoded.
            metric: "ip", "cosine" or "l2".
            own: the vectors are nobody else's, and may be changed.
            measured: what storage knows already; then no vector is read here.

        Raises:
            InputError: no passages, wrong shape, NaN, two passages with one id.
            ConfigError: an unknown metric.
        """
        self.metric = metric_of(metric)
        self.places = places_of(passages)
        self.passages = kept(passages)
        self.encoder = encoder
        self.vectors = np.asarray(vectors)
        if self.vectors.dtype != np.float32 or self.vectors.ndim != 2:
            raise InputError(
                f"vectors must be a float32 array of shape (passages, dimension), got "
                f"{self.vectors.dtype} of shape {self.vectors.shape}"
            )
        if len(self.vectors) != len(self.passages) or self.vectors.shape[1] < 1:
            raise InputError(
                f"{len(self.passages)} passages need as many vectors of at least one dimension, "
                f"got an array of shape {self.vectors.shape}"
            )
        measured = measured or self._measure(own)
        self.squares = measured.squares
        self.largest_norm = measured.largest_norm
        self.print = measured.fingerprint

    def _measure(self, own: bool) -> Measured:
        """Read all vectors, normalise them for cosine, and keep what searches need to know."""
        squares = squared_norms(self.vectors)
        if self.metric is Metric.COSINE and not unit_rows(squares).all():
            vectors = self.vectors
            out = vectors if own else np.empty(vectors.shape, dtype=np.float32)
            self.vectors = normalise(vectors, squares, out)
            squares = squared_norms(self.vectors)
        return Measured(
            fingerprint(self.passages, self.vectors),
            float(np.sqrt(squares.max())),
            squares.astype(np.float32) if self.metric is Metric.L2 else None,
        )

    @classmethod
    def encoded(
        cls,
        passages: Sequence[Passage],
        encoder: Encoder | None,
        metric: str = Metric.IP,
        vectors: NDArray[np.float32] | None = None,
    ) -> "DenseCorpus":
        """Encode the passages, title before text, unless their vectors are given."""
        metric_of(metric)
        if vectors is not None:
            return cls(passages, vectors, encoder, metric)
        if encoder is None:
            raise ConfigError("give an encoder, or the passages' vectors, or both")
        places_of(passages)  # refuse what cannot be used before encoding for hours
        return cls(passages, encode_all(encoder, passages), encoder, metric, own=True)

    @property
    def size(self) -> int:
        """How many passages there are."""
        return len(self.passages)

    @property
    def rows_at_once(self) -> int:
        """How many vectors a scan may ask for at once: all, since a slice costs nothing."""
        return self.size

    @property
    def dimension(self) -> int:
        """The length of each vector."""
        return int(self.vectors.shape[1])

    @property
    def inline_encode(self) -> bool:
        """Whether encoding a query costs microseconds, as the encoder says of itself."""
        return bool(getattr(self.encoder, "inline", False))

    @property
    def identity(self) -> tuple[str, str, str]:
        """What a signature needs to say about this corpus."""
        return self.metric.value, self.print, encoder_name(self.encoder)

    def encode(self, text: str) -> Query:
        """Encode one query, alone in its pass.

        Raises:
            InputError: there is no encoder, or it gave something unusable.
        """
        if self.encoder is None:
            raise InputError(
                "this knowledge base has no encoder, so a text cannot be searched; "
                "give encoder=... when it is loaded or built"
            )
        vector = np.array(self.encoder(text), dtype=np.float32)
        self._check(vector, f"the encoder {encoder_name(self.encoder)}")
        if self.metric is Metric.COSINE:
            vector = normalised(vector[None])[0]
        vector.setflags(write=False)
        return Query(text, vector)

    def matrix(self, queries: Sequence[Query]) -> Vectors:
        """Stack the queries' encodings.  # [queries, dim].

        Raises:
            InputError: a query without encoding, of another dimension, or with NaN.
        """
        for query in queries:
            if query.encoding is None:
                raise InputError(
                    f"the query {query.text!r} has no encoding; make it with retriever.encode(text)"
                )
            self._check(np.asarray(query.encoding), f"the query {query.text!r}")
        return np.array([query.encoding for query in queries], dtype=np.float32)

    def _check(self, vector: NDArray[np.generic], source: str) -> None:
        if vector.shape != (self.dimension,):
            raise InputError(
                f"{source} gave a vector of shape {vector.shape}, but the passages' have "
                f"{self.dimension} dimensions; use the encoder that encoded the passages"
            )
        largest = float(np.abs(vector.astype(np.float64)).max())
        if not largest < LARGEST_NORM / self.dimension:
            raise InputError(f"{source} gave a vector with NaN, infinite or huge entries")

    def error(self, query: Vectors) -> float:
        """Bound a float32 kernel's error for this query, over all rows."""
        return kernel_error(self.metric, self.dimension, self.largest_norm, norm_of(query))

    def exact(self, rows: IntArray, query: Vectors) -> FloatArray:
        """Score rows exactly."""
        return exact_scores(self.vectors[rows], query, self.metric)

    def ranked(self, rows: IntArray, query: Vectors, k: int) -> Hits:
        """Order nominated rows by their exact scores, ties by passage id."""
        scores = self.exact(rows, query)
        best = best_first(scores, self.places[rows], k)
        return self.hits(rows[best], scores[best])

    def hits(self, rows: IntArray, scores: FloatArray) -> Hits:
        """Turn rows and scores into hits."""
        return tuple(
            Hit(self.passages[row], score, self.vectors[row])
            for row, score in zip(rows.tolist(), scores.tolist(), strict=True)
        )

    def table(self, capacity: int) -> "DenseTable":
        """Make an empty table that ranks a pool's passages as a search would."""
        return DenseTable(self.metric, self.dimension, capacity)
