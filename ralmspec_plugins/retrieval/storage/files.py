"""Passages that stay on the disk: each is read through a memory map when it is asked for.

Three files: `passages.jsonl` (a passage a line), where each line starts, and
each passage's place in the order of ids. A million passages so cost no memory
but what the system's file cache holds, and opening them parses no line.
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

# What the readers of numpy, JSON and our own records raise for a file of nonsense.
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
_KEPT = 4096  # passages kept ready: a few megabytes, and more than a request meets twice
_ROWS_AT_ONCE = 16_384


class PassageFile(Sequence[Passage]):
    """Saved passages in the order of their rows; equal to those that were saved.

    May be used from several threads at once. The files stay readable when they
    are replaced or removed meanwhile; they must not be changed where they are.
    """

    def __init__(
        self, lines: mmap.mmap, offsets: NDArray[np.int64], places: NDArray[np.int64], name: str
    ) -> None:
        """Take over the contents of checked files; `open` reads a folder.

        Args:
            lines: all lines.
            offsets: where each line starts, and the end of the last.  # [passages + 1]
            places: each passage's place in the order of ids.  # [passages]
            name: the file's name, for messages.
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
            IndexFileError: the three files do not fit together, or hold another number.
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
        """Count the passages."""
        return len(self.places)

    @overload
    def __getitem__(self, row: int) -> Passage: ...

    @overload
    def __getitem__(self, row: slice) -> list[Passage]: ...

    def __getitem__(self, row: int | slice) -> Passage | list[Passage]:
        """Read one passage, or some.

        Raises:
            IndexFileError: a line is no passage.
        """
        if isinstance(row, slice):
            return [self._passage(at) for at in range(*row.indices(len(self)))]
        at = index(row)
        if not -len(self) <= at < len(self):
            raise IndexError(f"there are {len(self)} passages, and none in row {at}")
        return self._passage(at % len(self))

    def __iter__(self) -> Iterator[Passage]:
        """Read all passages in order, keeping none."""
        read = _reader(self._lines, self._offsets, self._name)
        return map(read, range(len(self)))

    def blocks(self) -> Iterator[bytes]:
        """Give all lines as they are saved, many at a time."""
        ends = [*range(0, len(self), _ROWS_AT_ONCE), len(self)]
        for start, stop in pairwise(self._offsets[ends].tolist()):
            yield self._lines[start:stop]

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Where each line starts, and the end of the last."""
        return self._offsets


def open_array(file: Path) -> NDArray[Any]:
    """Map an array into memory.

    Raises:
        IndexFileError: it is none, or one of Python objects.
    """
    try:
        # As a plain array over the mapping: a memmap's rows would carry its weight.
        return np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))
    except (OSError, *DAMAGE) as error:
        raise IndexFileError(
            f"{file} is not a plain numpy array ({error}); build it again"
        ) from error


def write_array(file: Path, array: NDArray[Any]) -> None:
    """Write a .npy file, and see it to the disk; a file that is there is replaced, not changed."""
    file.unlink(missing_ok=True)
    with file.open("wb") as opened:
        np.lib.format.write_array(opened, array, allow_pickle=False)
        opened.flush()
        os.fsync(opened.fileno())


def _reader(lines: mmap.mmap, offsets: NDArray[np.int64], name: str) -> Callable[[int], Passage]:
    """Make what reads a row; not a method, so that keeping it does not keep the file for ever."""

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
    """Whether offsets cut a file of this size into lines, and places are an order of them."""
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


# Put a finished folder in another one's place, so that there always is one of the two.


_HERE = -100  # AT_FDCWD: paths are given as they are
_EXCHANGE = 2  # RENAME_EXCHANGE
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.EACCES)  # the last one on Windows


def atomic_replace(target: Path, fresh: Path) -> None:
    """Give a finished folder its name; what had the name before is removed.

    Where the system can exchange two folders in one step (Linux, most file
    systems), the name leads to a whole folder at every moment. Elsewhere the old
    folder is moved aside first, and put back if that is where it stops.
    """
    fresh.chmod(0o755)  # 0700 would lock out other users of the folder
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
        if old.exists() and not target.exists():  # stopped between the two
            old.rename(target)
        shutil.rmtree(old.parent, ignore_errors=True)


def exchange(one: Path, other: Path) -> bool:
    """Exchange two folders' names in one step, and say whether the system could."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):  # a C library without it, such as an old musl
        return False
    done: int = rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE)
    return done == 0


def sync_folder(folder: Path) -> None:
    """See a folder's names to the disk; a system that cannot is left alone."""
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


# Writes a file as a whole: what was there stays until then, and nothing else is ever left.


def write_whole(file: Path, content: bytes) -> None:
    """Write beside the file, and give it its name at the end.

    Raises:
        OSError: it cannot be written there.
    """
    fresh = file.with_name(f".{file.name}.{os.getpid()}.new")
    try:
        fresh.write_bytes(content)
        fresh.replace(file)
    finally:
        fresh.unlink(missing_ok=True)
