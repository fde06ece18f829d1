"""Files that only ever grow: additions are seen to the disk, and cut back after a crash."""

import hashlib
import os
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ralmspec_plugins.retrieval.building_journal import start_anew


class GrowingFile:
    """Bytes on the disk, of which a journal says how many count."""

    def __init__(self, file: Path, size: int) -> None:
        """Go on behind this many bytes; whatever lies behind them was not recorded.

        Raises:
            IndexFileError: the file holds less.
        """
        self._file = file
        there = file.stat().st_size if file.exists() else 0
        if there < size:
            raise start_anew(f"{file} is damaged: {size} bytes were written, {there} are there")
        if there > size:
            os.truncate(file, size)

    def add(self, content: Any) -> None:
        """Append bytes, and see them to the disk."""
        with self._file.open("ab") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    def read(self, start: int, stop: int) -> bytes:
        """Read some bytes again."""
        with self._file.open("rb") as file:
            file.seek(start)
            return file.read(stop - start)


class GrowingArray:
    """A .npy file that grows by rows; its header tells how many only at the end."""

    def __init__(self, file: Path, kind: str, row: tuple[int, ...], rows: int) -> None:
        """Go on behind this many rows, or begin.

        Args:
            file: the .npy file.
            kind: the numbers' type, as numpy writes it, such as "<f4".
            row: a row's shape; () where it is one number.
            rows: how many count.

        Raises:
            IndexFileError: the file holds fewer.
        """
        self._path = file
        self._kind = kind
        self._row = row
        self._row_bytes = np.dtype(kind).itemsize * int(np.prod(row, dtype=np.int64))
        self._file = GrowingFile(file, self._place(rows) if rows else 0)
        if not rows:
            self._file.add(self._header(0))

    def _header(self, rows: int) -> bytes:
        return npy_header(self._kind, (rows, *self._row))

    def _place(self, row: int) -> int:
        """Say where a row begins."""
        return len(self._header(0)) + self._row_bytes * row

    def add(self, rows: NDArray[Any]) -> str:
        """Append rows, and see them to the disk; give their digest."""
        numbers = np.ascontiguousarray(rows, dtype=self._kind).data
        self._file.add(numbers)
        return digest(numbers)

    def read(self, start: int, stop: int) -> bytes:
        """Read some rows' bytes again."""
        return self._file.read(self._place(start), self._place(stop))

    def finish(self, rows: int) -> None:
        """Write the number of rows into the header, unless it is there already.

        After a crash at the very end this may be the finished folder's own file,
        so it is not changed when it is complete.
        """
        header = self._header(rows)
        if self._file.read(0, len(header)) != header:
            with self._path.open("r+b") as file:
                file.write(header)
                os.fsync(file.fileno())


def digest(content: Any) -> str:
    """Give the SHA-256 of some bytes."""
    return hashlib.sha256(content).hexdigest()


def npy_header(kind: str, shape: tuple[int, ...]) -> bytes:
    """Write a .npy header; numpy leaves room in it, so that the number of rows can grow.

    >>> len(npy_header("<f4", (0, 384))) == len(npy_header("<f4", (10**12, 384)))
    True
    """
    header = BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": kind, "fortran_order": False, "shape": shape}
    )
    return header.getvalue()
