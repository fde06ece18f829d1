"""Lengths of vectors: measured in float64, checked, and scaled to 1."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ralmspec_plugins.errors import InputError
from ralmspec_plugins.retrieval.ranking import LARGEST_NORM, FloatArray, Vectors

_NUMBERS_AT_ONCE = 1 << 20  # 8 MB of float64, however long the rows are


def norm_of(vector: Vectors) -> float:
    """Give a vector's length, in float64."""
    wide = vector.astype(np.float64)
    return float(np.sqrt(wide.dot(wide)))


def squared_norms(vectors: Vectors, first_row: int = 0) -> FloatArray:
    """Square each row's length, in float64.  # [rows].

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
    """Say which squared lengths are those of vectors of length 1, or 0."""
    rows: NDArray[np.bool_] = (np.abs(squares - 1) < 1e-5) | (squares == 0)
    return rows


def normalised(vectors: Vectors) -> Vectors:
    """Scale each row to length 1; zero rows, and rows of length 1, stay as they are."""
    return normalise(vectors, squared_norms(vectors), np.empty(vectors.shape, dtype=np.float32))


def normalise(vectors: Vectors, squares: FloatArray, out: Vectors) -> Vectors:
    """Scale as `normalised` does, into `out`, which may be `vectors` itself.

    A row's result depends on that row alone. Beyond `out`, no more than a few
    rows are held in memory.
    """
    lengths = np.where(unit_rows(squares), 1, np.sqrt(squares))
    for rows in _blocks(vectors):
        out[rows] = vectors[rows] / lengths[rows, None]  # divided in float64
    return out


def _blocks(vectors: Vectors) -> Iterator[slice]:
    rows = max(1, _NUMBERS_AT_ONCE // vectors.shape[1])
    for start in range(0, len(vectors), rows):
        yield slice(start, start + rows)
