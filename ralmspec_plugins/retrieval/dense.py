"""Dense retrievers: passages with vectors, their metric and their ranking."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from ralmspec_plugins.errors import ConfigError, IndexFileError, InputError
from ralmspec_plugins.retrieval.artifacts import IndexArtifacts
from ralmspec_plugins.retrieval.encoders import Encoder, encode_all, encoder_name
from ralmspec_plugins.retrieval.ranking import (
    FLOAT32_ROUNDOFF,
    LARGEST_NORM,
    FloatArray,
    IntArray,
    Metric,
    Vectors,
    best_first,
    exact_scores,
    kernel_error,
    metric_of,
    nominees,
)
from ralmspec_plugins.retrieval.storage.corpus import check_k, fingerprint, kept, places_of
from ralmspec_plugins.types import Hit, Hits, Passage, Query

# Lengths of vectors: measured in float64, checked, and scaled to 1.


_NUMBERS_AT_ONCE = 1 << 20  # 8 MB of float64, independently of the dimension


def norm_of(vector: Vectors) -> float:
    """Return a vector's length, in float64."""
    wide = vector.astype(np.float64)
    return float(np.sqrt(wide.dot(wide)))


def squared_norms(vectors: Vectors, first_row: int = 0) -> FloatArray:
    """Return the squared norm of each row, in float64.  # [rows].

    Args:
        vectors: may be memory-mapped; only a few rows are copied at a time.
        first_row: the number of the first, for the message.

    Raises:
        InputError: a row holds NaN or infinity, or is too long for float32 products.
    """
    squares = np.empty(len(vectors))
    for rows in _blocks(vectors):
        wide = vectors[rows].astype(np.float64)
        squares[rows] = np.einsum("ij,ij->i", wide, wide)
    bad = np.flatnonzero(~(squares < LARGEST_NORM**2))
    if len(bad):
        raise InputError(
            f"{len(bad)} of {len(vectors)} vectors hold NaN, infinite or huge entries; the first "
            f"is in row {first_row + bad[0]}"
        )
    return squares


def unit_rows(squares: FloatArray) -> NDArray[np.bool_]:
    """Return which squared norms are those of vectors of norm 1 or 0."""
    rows: NDArray[np.bool_] = (np.abs(squares - 1) < 1e-5) | (squares == 0)
    return rows


def normalised(vectors: Vectors) -> Vectors:
    """Return each row scaled to norm 1; rows of norm 0 or 1 are unchanged."""
    return normalise(vectors, squared_norms(vectors), np.empty(vectors.shape, dtype=np.float32))


def normalise(vectors: Vectors, squares: FloatArray, out: Vectors) -> Vectors:
    """Normalise rows as `normalised` does, into `out`, which may be `vectors` itself.

    A row's result depends only on that row. Besides `out`, only a few
    rows are in memory.
    """
    lengths = np.where(unit_rows(squares), 1, np.sqrt(squares))
    for rows in _blocks(vectors):
        out[rows] = vectors[rows] / lengths[rows, None]  # divided in float64
    return out


def _blocks(vectors: Vectors) -> Iterator[slice]:
    rows = max(1, _NUMBERS_AT_ONCE // vectors.shape[1])
    for start in range(0, len(vectors), rows):
        yield slice(start, start + rows)


# The vectors of cached passages, ranked as a search over all passages ranks them.


class DenseTable:
    """The vectors of cached passages, ranked as the retriever ranks all."""

    def __init__(self, metric: Metric, dimension: int, capacity: int) -> None:
        """Create a table of `capacity` passages."""
        self._metric = metric
        self._vectors = np.zeros((capacity, dimension), dtype=np.float32)
        self._squares = np.zeros(capacity, dtype=np.float32)
        self._norms = np.zeros(capacity)
        self._ids = [""] * capacity

    def put(self, slot: int, hit: Hit) -> None:
        """Store a passage's vector in a slot.

        Raises:
            InputError: the hit has no vector of the right dimension.
        """
        vector = np.asarray(hit.features)
        if vector.shape != self._vectors.shape[1:]:
            raise InputError(
                f"the hit {hit.passage.id!r} has no vector of {self._vectors.shape[1]} "
                "dimensions; a passage cache takes hits of its own retriever only"
            )
        norm = norm_of(vector)
        if not norm < LARGEST_NORM:
            raise InputError(
                f"the vector of {hit.passage.id!r} holds NaN, infinite or huge entries"
            )
        self._vectors[slot] = vector
        self._squares[slot] = norm * norm
        self._norms[slot] = norm
        self._ids[slot] = hit.passage.id

    def rank(self, query: Query, slots: Sequence[int], k: int) -> list[tuple[int, float]]:
        """Return the best k of these slots with exact scores; `range(n)` is the fastest."""
        if not len(slots) or k < 1:
            return []
        whole = isinstance(slots, range) and slots.step == 1
        chosen = slice(slots[0], slots[-1] + 1) if whole else np.asarray(slots, dtype=np.int64)
        rows: Vectors = self._vectors[chosen]
        vector: Vectors = query.encoding
        fast = rows @ vector
        if self._metric is Metric.L2:
            fast = 2 * fast - self._squares[chosen]
        largest = float(self._norms[chosen].max())
        error = kernel_error(self._metric, len(vector), largest, norm_of(vector))
        near = nominees(fast, k, error)
        scores = exact_scores(rows[near], vector, self._metric).tolist()
        found = [(slots[at], score) for at, score in zip(near.tolist(), scores, strict=True)]
        if len(found) > 1:
            found.sort(key=lambda pair: (-pair[1], self._ids[pair[0]]))
        return found[:k]


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """Values computed from all vectors when they were saved."""

    fingerprint: str
    largest_norm: float
    squares: Vectors | None = None  # of each row's length; for L2


class DenseCorpus:
    """Passages and their vectors, checked once, with their metric, but without a search.

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
        """Check that passages and vectors match.

        Args:
            passages: in the order of the rows.
            vectors: one row per passage; for cosine they are normalised, in
                a copy unless they are the corpus's own.
            encoder: encodes queries; not needed if queries are already encoded.
            metric: "ip", "cosine" or "l2".
            own: whether the vectors belong to the corpus, and may be changed.
            measured: saved values; with them no vector is read here.

        Raises:
            InputError: there are no passages, a wrong shape, NaN, or duplicate ids.
            ConfigError: the metric is unknown.
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
        """Read all vectors, normalise them for cosine, and return the values that searches need."""
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
        places_of(passages)  # checked before the encoding
        return cls(passages, encode_all(encoder, passages), encoder, metric, own=True)

    def artifacts(self, backend: str, k: int, **extra: Any) -> IndexArtifacts:
        """Return the artifacts to save, with a backend's extra settings."""
        settings = {
            "k": k,
            "metric": self.metric.value,
            "dimension": self.dimension,
            "fingerprint": self.print,
            "largest_norm": self.largest_norm,
            "encoder": encoder_name(self.encoder),
            "encoder_settings": getattr(self.encoder, "settings", None),
            **extra,
        }
        arrays = {"vectors": self.vectors}
        if self.squares is not None:
            arrays["squares"] = self.squares
        return IndexArtifacts(backend, settings, self.passages, arrays)

    @classmethod
    def from_artifacts(cls, parts: IndexArtifacts, encoder: Encoder | None) -> Self:
        """Return the corpus of saved artifacts.

        Raises:
            IndexFileError: the encoder is not the saved one, or the vectors do not match.
        """
        vectors, dimension = parts.array("vectors"), parts.setting("dimension")
        if vectors.shape != (len(parts.passages), dimension):
            raise IndexFileError(
                f"vectors.npy has shape {vectors.shape}, but kb.json says "
                f"{(len(parts.passages), dimension)}; build the knowledge base again"
            )
        _check_encoder(parts, encoder)
        metric = parts.setting("metric")
        measured = _saved_measures(parts, metric)
        return cls(parts.passages, vectors, encoder, metric, measured=measured)

    @property
    def size(self) -> int:
        """The number of passages."""
        return len(self.passages)

    @property
    def rows_at_once(self) -> int:
        """The number of vectors that a scan may read at a time: all, since a slice is free."""
        return self.size

    @property
    def dimension(self) -> int:
        """The dimension of each vector."""
        return int(self.vectors.shape[1])

    @property
    def inline_encode(self) -> bool:
        """Whether encoding a query takes microseconds, by the encoder's `inline`."""
        return bool(getattr(self.encoder, "inline", False))

    @property
    def encode_lanes(self) -> int:
        """The number of queries that may be encoded at a time, by the encoder's `lanes`."""
        lanes: int = getattr(self.encoder, "lanes", 1)
        return lanes

    @property
    def identity(self) -> tuple[str, str, str]:
        """The part of a signature that identifies this corpus."""
        return self.metric.value, self.print, encoder_name(self.encoder)

    def encode(self, text: str) -> Query:
        """Encode one query, in a batch of one.

        Raises:
            InputError: there is no encoder, or its result is invalid.
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
        """Return the queries' encodings as a matrix.  # [queries, dim].

        Raises:
            InputError: a query has no encoding, or one of another dimension or with NaN.
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

    def error(self, query: Vectors, roundoff: float = FLOAT32_ROUNDOFF) -> float:
        """Return an upper bound of a float32 kernel's error for this query, over all rows."""
        norms = self.largest_norm, norm_of(query)
        return kernel_error(self.metric, self.dimension, *norms, roundoff)

    def exact(self, rows: IntArray, query: Vectors) -> FloatArray:
        """Return the exact scores of rows."""
        return exact_scores(self.vectors[rows], query, self.metric)

    def ranked(self, rows: IntArray, query: Vectors, k: int) -> Hits:
        """Return candidate rows in the order of their exact scores, ties by passage id."""
        scores = self.exact(rows, query)
        best = best_first(scores, self.places[rows], k)
        return self.hits(rows[best], scores[best])

    def hits(self, rows: IntArray, scores: FloatArray) -> Hits:
        """Return the hits of rows and scores."""
        return tuple(
            Hit(self.passages[row], score, self.vectors[row])
            for row, score in zip(rows.tolist(), scores.tolist(), strict=True)
        )

    def table(self, capacity: int) -> "DenseTable":
        """Return an empty table that ranks cached passages as a search does."""
        return DenseTable(self.metric, self.dimension, capacity)


def _check_encoder(parts: IndexArtifacts, encoder: Encoder | None) -> None:
    saved, settings = parts.setting("encoder"), parts.settings.get("encoder_settings")
    if encoder is not None and settings and encoder_name(encoder) != saved:
        raise IndexFileError(
            f"this knowledge base was encoded by {saved!r}, got the encoder "
            f"{encoder_name(encoder)!r}; give the same encoder, or build it again"
        )


def _saved_measures(parts: IndexArtifacts, metric: str) -> Measured:
    largest = parts.setting("largest_norm")
    if not isinstance(largest, float) or not 0 <= largest < LARGEST_NORM:
        raise IndexFileError(
            f"kb.json says that the longest vector has the length {largest!r}; build it again"
        )
    squares = parts.array("squares") if metric == Metric.L2 else None
    if squares is not None and (
        squares.shape != (len(parts.passages),) or squares.dtype != np.float32
    ):
        raise IndexFileError(
            f"squares.npy is a {squares.dtype} array of shape {squares.shape}, but there are "
            f"{len(parts.passages)} passages; build the knowledge base again"
        )
    return Measured(str(parts.setting("fingerprint")), largest, squares)


class DenseRetriever:
    """Base class of retrievers over a `DenseCorpus`; a subclass defines `search`."""

    exact: ClassVar[bool]
    pure: ClassVar[bool] = True

    def __init__(self, corpus: DenseCorpus, backend: str, k: int, *depends_on: Hashable) -> None:
        """Create a retriever of a corpus.

        Args:
            corpus: the passages and their vectors.
            backend: its name.
            k: the number of passages of a query.
            depends_on: other values that the hits depend on, for the signature.

        Raises:
            ConfigError: k is below 1.
        """
        self.corpus = corpus
        self.backend = backend
        self.k = check_k(k)
        self.size = corpus.size
        self.inline_encode, self.encode_lanes = corpus.inline_encode, corpus.encode_lanes
        self.signature: Hashable = (backend, k, *depends_on, *corpus.identity)

    def encode(self, text: str) -> Query:
        """Encode one query, in a batch of one."""
        return self.corpus.encode(text)

    def table(self, capacity: int) -> DenseTable:
        """Return an empty table for a passage cache."""
        return self.corpus.table(capacity)

    def parts(self) -> IndexArtifacts:
        """Return the artifacts to save."""
        return self.corpus.artifacts(self.backend, self.k)


_QUERIES_AT_ONCE = 64


class ExactRetriever(DenseRetriever):
    """A dense search that scores every passage: the true top k, bit for bit, in any batch."""

    exact: ClassVar[bool] = True

    def search(self, queries: Sequence[Query]) -> list[Hits]:
        """Return the best k passages of each query."""
        return self.search_wide(queries, self.k)

    def search_wide(self, queries: Sequence[Query], width: int) -> list[Hits]:
        """Return the best `width` passages of each query."""
        check_k(width)
        if not queries:
            return []
        matrix = self.corpus.matrix(queries)
        found = []
        for start in range(0, len(matrix), _QUERIES_AT_ONCE):
            batch = matrix[start : start + _QUERIES_AT_ONCE]
            for query, rows in zip(batch, self._nominate(batch, width), strict=True):
                found.append(self.corpus.ranked(rows, query, width))
        return found

    def _nominate(self, queries: Vectors, k: int) -> Sequence[IntArray]:
        """Return, for each query, candidate rows that contain its true top k."""
        raise NotImplementedError

    @classmethod
    def from_parts(cls, parts: IndexArtifacts, encoder: Encoder | None, k: int) -> Self:
        """Return the retriever of saved artifacts."""
        make: Any = cls  # all subclasses take a corpus and k
        made: Self = make(DenseCorpus.from_artifacts(parts, encoder), k=k)
        return made
