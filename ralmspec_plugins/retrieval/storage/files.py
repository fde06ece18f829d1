"""Passages on the disk: each is read from a memory map on access.

Three files: `passages.jsonl` (one passage per line), the start of each line, and
each passage's position in the order of ids. So a million passages use no memory
besides the system's file cache, and opening them parses no line.
"""

import ctypes
import errno
import json
import mmap
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from operator import index
from pathlib import Path
from tokenize import TokenError
from typing import Any, Self, overload

import numpy as np
from numpy.typing import NDArray

from ralmspec_plugins.errors import IndexFileError
from ralmspec_plugins.types import Passage

# Errors of the readers of numpy, JSON and records for an invalid file.
DAMAGE = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RecursionError,
    SyntaxError,
    TokenError,
    TypeError,
    ValueError,
)
PASSAGES = "passages.jsonl"
OFFSETS = "passages.offsets.npy"
PLACES = "passages.places.npy"
PASSAGE_FILES = (PASSAGES, OFFSETS, PLACES)
_KEPT = 4096  # cached passages: a few megabytes
_ROWS_AT_ONCE = 16_384


class PassageFile(Sequence[Passage]):
    """Saved passages in the order of their rows; equal to those that were saved.

    Thread-safe. The files stay readable when they
    are replaced or removed; they must not be changed in place.
    """

    def __init__(
        self, lines: mmap.mmap, offsets: NDArray[np.int64], places: NDArray[np.int64], name: str
    ) -> None:
        """Store the contents of checked files; `open` reads a folder.

        Args:
            lines: all lines.
            offsets: the start of each line, and the end of the last.  # [passages + 1]
            places: each passage's position in the order of ids.  # [passages]
            name: the file's name, for error messages.
        """
        self._lines = lines
        self._offsets = offsets
        self._name = name
        self.places = places
        self._passage: Callable[[int], Passage] = lru_cache(_KEPT)(_reader(lines, offsets, name))

    @classmethod
    def open(cls, folder: Path, count: int) -> Self:
        """Open a folder's passages without reading them.

        Raises:
            IndexFileError: the three files do not match, or have another number.
        """
        file = folder / PASSAGES
        offsets, places = (open_array(folder / name) for name in (OFFSETS, PLACES))
        try:
            with file.open("rb") as opened:
                lines = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:
            raise IndexFileError(f"{file} is empty; build the knowledge base again") from error
        if len(places) != count:
            raise IndexFileError(
                f"{file} holds {len(places)} passages, kb.json says {count}; build the knowledge "
                "base again"
            )
        if not _fits(offsets, places, len(lines)):
            raise IndexFileError(
                f"{file} does not fit {OFFSETS} and {PLACES}; build the knowledge base again"
            )
        return cls(lines, offsets, places, str(file))

    def __len__(self) -> int:
        """Return the number of passages."""
        return len(self.places)

    @overload
    def __getitem__(self, row: int) -> Passage: ...

    @overload
    def __getitem__(self, row: slice) -> list[Passage]: ...

    def __getitem__(self, row: int | slice) -> Passage | list[Passage]:
        """Return one passage, or a list of a slice.

        Raises:
            IndexFileError: a line is not a passage.
        """
        if isinstance(row, slice):
            return [self._passage(at) for at in range(*row.indices(len(self)))]
        at = index(row)
        if not -len(self) <= at < len(self):
            raise IndexError(f"there are {len(self)} passages, and none in row {at}")
        return self._passage(at % len(self))

    def __iter__(self) -> Iterator[Passage]:
        """Iterate over all passages in order, without caching."""
        read = _reader(self._lines, self._offsets, self._name)
        return map(read, range(len(self)))

    def blocks(self) -> Iterator[bytes]:
        """Yield all saved lines, many at a time."""
        ends = [*range(0, len(self), _ROWS_AT_ONCE), len(self)]
        for start, stop in pairwise(self._offsets[ends].tolist()):
            yield self._lines[start:stop]

    @property
    def offsets(self) -> NDArray[np.int64]:
        """The start of each line, and the end of the last."""
        return self._offsets


def open_array(file: Path) -> NDArray[Any]:
    """Return a memory-mapped array.

    Raises:
        IndexFileError: it is not an array, or one of Python objects.
    """
    try:
        # As a plain array over the mapping: rows of a memmap have a higher overhead.
        return np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))
    except (OSError, *DAMAGE) as error:
        raise IndexFileError(
            f"{file} is not a plain numpy array ({error}); build it again"
        ) from error


def write_array(file: Path, array: NDArray[Any]) -> None:
    """Write a .npy file, and sync it to the disk; an existing file is replaced, not changed."""
    file.unlink(missing_ok=True)
    with file.open("wb") as opened:
        np.lib.format.write_array(opened, array, allow_pickle=False)
        opened.flush()
        os.fsync(opened.fileno())


def _reader(lines: mmap.mmap, offsets: NDArray[np.int64], name: str) -> Callable[[int], Passage]:
    """Return the reader of a row, which has no reference to its file object."""

    def read(row: int) -> Passage:
        try:
            return _passage(json.loads(lines[int(offsets[row]) : int(offsets[row + 1])]))
        except DAMAGE as error:
            raise IndexFileError(
                f"{name}, line {row + 1}: not a passage ({error!r}); build it again"
            ) from error

    return read


def _passage(record: Any) -> Passage:
    """Make the passage of a line's record.

    Raises:
        KeyError: it has no id or no text.
        TypeError: they are of another type.
    """
    title, metadata = record.get("title", ""), record.get("metadata", {})
    for name, value in (("id", record["id"]), ("text", record["text"]), ("title", title)):
        if not isinstance(value, str):
            raise TypeError(f"its {name} is no text: {value!r:.80}")
    if not isinstance(metadata, dict):
        raise TypeError(f"its metadata are no dict: {metadata!r:.80}")
    return Passage(record["id"], record["text"], title, metadata)


def _fits(offsets: NDArray[Any], places: NDArray[Any], size: int) -> bool:
    """Return whether offsets divide a file of this size into lines, and places are their order."""
    count = len(places)
    if {offsets.dtype, places.dtype} != {np.dtype(np.int64)} or offsets.shape != (count + 1,):
        return False
    if not count or offsets[0] != 0 or offsets[-1] != size or np.any(np.diff(offsets) <= 0):
        return False
    if places.min() < 0 or places.max() >= count:
        return False
    taken = np.zeros(count, dtype=np.bool_)
    taken[places] = True
    return bool(taken.all())


# Atomic replacement of a folder.


_HERE = -100  # AT_FDCWD
_EXCHANGE = 2  # RENAME_EXCHANGE
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.EACCES)  # the last one on Windows


def atomic_replace(target: Path, fresh: Path) -> None:
    """Rename a finished folder to its target; the previous target is removed.

    If the system can exchange two folders in one step (Linux, most file
    systems), the target is a complete folder at any time. On other systems the old
    folder is moved first, and restored after an interruption.
    """
    fresh.chmod(0o755)  # 0700 would exclude other users of the folder
    sync_folder(fresh)
    try:
        fresh.rename(target)  # to a free name, or an empty folder's
    except OSError as error:
        if error.errno not in _TAKEN:
            raise
        if exchange(target, fresh):
            shutil.rmtree(fresh, ignore_errors=True)
        else:
            _move_aside(target, fresh)
    sync_folder(target.parent)


def _move_aside(target: Path, fresh: Path) -> None:
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old-", dir=target.parent)) / "kb"
    try:
        target.rename(old)
        fresh.rename(target)
    finally:
        if old.exists() and not target.exists():  # interrupted between the two
            old.rename(target)
        shutil.rmtree(old.parent, ignore_errors=True)


def exchange(one: Path, other: Path) -> bool:
    """Exchange two folders' names in one step; return whether the system supports it."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):  # a C library without it, such as an old musl
        return False
    done: int = rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE)
    return done == 0


def sync_folder(folder: Path) -> None:
    """Sync a folder's entries to the disk, if the system supports it."""
    try:
        opened = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(opened)
    except OSError:
        return
    finally:
        os.close(opened)


# Atomic replacement of a file.


def write_whole(file: Path, content: bytes) -> None:
    """Write a file atomically, by a temporary file in the same folder.

    Raises:
        OSError: it cannot be written there.
    """
    fresh = file.with_name(f".{file.name}.{os.getpid()}.new")
    try:
        fresh.write_bytes(content)
        fresh.replace(file)
    finally:
        fresh.unlink(missing_ok=True)
