"""Where a build's vectors come from: an encoder, or an array that is there already."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ralmspec_plugins.errors import InputError
from ralmspec_plugins.retrieval.building_journal import start_anew
from ralmspec_plugins.retrieval.encoders import Encoder, encoder_name
from ralmspec_plugins.retrieval.encoding import check_batch, encode_batch
from ralmspec_plugins.retrieval.ranking import Metric, Vectors
from ralmspec_plugins.retrieval.vectors import norm_of, normalise, squared_norms
from ralmspec_plugins.types import Passage

_SAME_ENCODER = 0.01  # relative; far above what batches and devices differ by


class Source(Protocol):
    """Gives each batch its vectors, always the same ones."""

    encoder: Encoder | None

    @property
    def identity(self) -> Mapping[str, Any]:
        """Name what the vectors depend on; compared when a build is gone on with."""
        ...

    def rows(self, first: int, passages: Sequence[Passage]) -> Vectors:
        """Give the vectors of a batch.  # [passages, dim]."""
        ...

    def compare(self, first: int, passages: Sequence[Passage], recorded: Vectors) -> None:
        """Refuse to go on with vectors that this source would not give."""
        ...

    def check_count(self, count: int) -> None:
        """Refuse another number of passages in all."""
        ...


class Encoded:
    """Vectors by an encoder, a batch at a time."""

    def __init__(self, encoder: Encoder, metric: str) -> None:
        """Encode for a metric."""
        self.encoder: Encoder | None = encoder
        self._encode = encoder
        self._metric = metric
        self._dimension: int | None = None

    @property
    def identity(self) -> Mapping[str, Any]:
        """Name encoder and metric; a function without a name has no more than its own."""
        encoder = self._encode
        name = getattr(encoder, "name", None) or getattr(encoder, "__qualname__", None)
        kind = type(encoder).__qualname__
        return {"encoder": name or kind, "metric": self._metric, "vectors": "encoded"}

    def rows(self, first: int, passages: Sequence[Passage]) -> Vectors:
        """Encode a batch.

        Raises:
            InputError: NaN, or another shape than before.
        """
        rows = encode_batch(self._encode, passages)
        self._dimension = self._dimension or rows.shape[1]
        check_batch(self._encode, rows, (len(passages), self._dimension))
        return _ready(rows, self._metric, first)

    def compare(self, first: int, passages: Sequence[Passage], recorded: Vectors) -> None:
        """Encode the very first passage again: another model may have the same name.

        Raises:
            IndexFileError: the vector is another one.
        """
        if first == 0:
            again = self.rows(0, passages[:1])[0]
            same = again.shape == recorded[0].shape
            if not same or norm_of(again - recorded[0]) > _SAME_ENCODER * norm_of(recorded[0]):
                raise start_anew(
                    f"the encoder {encoder_name(self._encode)} gives passage "
                    f"{passages[0].id!r} another vector than before",
                    "give the same to go on",
                )

    def check_count(self, count: int) -> None:
        """Any number can be encoded."""


class Given:
    """Vectors that are there already, in memory or as a .npy file, converted block by block."""

    def __init__(
        self,
        vectors: NDArray[Any] | str | os.PathLike[str],
        encoder: Encoder | None,
        metric: str,
    ) -> None:
        """Look at the vectors, without reading them.

        Raises:
            InputError: they are no two-dimensional array of floating numbers, the file cannot be
                read, or the encoder makes vectors of another dimension.
        """
        self.encoder = encoder
        self._metric = metric
        self._vectors = vectors if isinstance(vectors, np.ndarray) else _opened(Path(vectors))
        shape, kind = self._vectors.shape, self._vectors.dtype
        if len(shape) != 2 or shape[1] < 1 or kind.kind != "f":
            raise InputError(
                "vectors must be an array of floating numbers of shape (passages, dimension), got "
                f"{kind} of shape {shape}"
            )
        if encoder is not None:
            made = np.asarray(encoder("Does the encoder fit the vectors?")).shape
            if made != shape[1:]:
                raise InputError(
                    f"the encoder {encoder_name(encoder)} gave a vector of shape {made}, but the "
                    f"passages' have {shape[1]} dimensions; use the encoder that encoded the "
                    "passages"
                )

    @property
    def identity(self) -> Mapping[str, Any]:
        """Name no more than the metric: each block is compared itself."""
        return {"encoder": None, "metric": self._metric, "vectors": "given"}

    def rows(self, first: int, passages: Sequence[Passage]) -> Vectors:
        """Convert a block.

        Raises:
            InputError: there are too few, or NaN.
        """
        last = first + len(passages)
        if last > len(self._vectors):
            raise InputError(
                f"{last} passages, or more, need as many vectors, got an array of shape "
                f"{self._vectors.shape}"
            )
        with np.errstate(over="ignore"):  # becomes infinity, and is refused as that
            rows = self._vectors[first:last].astype(np.float32)
        return _ready(rows, self._metric, first)

    def compare(self, first: int, passages: Sequence[Passage], recorded: Vectors) -> None:
        """Convert the block again.

        Raises:
            IndexFileError: it is another one.
        """
        if not np.array_equal(self.rows(first, passages), recorded):
            raise start_anew(
                f"the vectors of passages {first} to {first + len(passages) - 1} are not those "
                "that were given before",
                "give the same to go on",
            )

    def check_count(self, count: int) -> None:
        """Refuse vectors that nobody has a passage for.

        Raises:
            InputError: there are too many.
        """
        if count != len(self._vectors):
            raise InputError(
                f"{count} passages need as many vectors, got an array of shape "
                f"{self._vectors.shape}"
            )


def _ready(rows: Vectors, metric: str, first: int) -> Vectors:
    """Refuse unusable rows, and normalise for cosine; each row by itself."""
    squares = squared_norms(rows, first)
    return normalise(rows, squares, rows) if metric == Metric.COSINE else rows


def _opened(file: Path) -> NDArray[Any]:
    if not file.is_file():
        raise InputError(f"there is no file {file}; vectors are taken from a .npy file")
    try:
        return np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))
    except (ValueError, EOFError) as error:
        raise InputError(f"{file} is not a plain numpy array: {error}") from error
