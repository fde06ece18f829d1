"""The journal of an unfinished build: which batches are safely on the disk, and by which settings.

One line an entry, a CRC-32 and JSON, appended and seen to the disk after what
it speaks of. A crash can only tear the last line, and a torn line is not counted.
"""

import hashlib
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ralmspec_plugins.errors import ConfigError, IndexFileError
from ralmspec_plugins.retrieval.ranking import Vectors
from ralmspec_plugins.retrieval.storage.files import OFFSETS, PASSAGES, PLACES, sync_folder

JOURNAL = "journal.jsonl"
_VERSION = 1
_ANEW = "start anew with restart=True (--restart on the command line)"


@dataclass(frozen=True, slots=True)
class Entry:
    """A batch that is on the disk; the first two numbers count from the beginning."""

    passages: int
    lines_end: int  # in bytes
    lines: str  # SHA-256 of the batch's lines
    vectors: str  # and of its vectors
    dimension: int


EntryT = TypeVar("EntryT")  # a dataclass: `Entry`, or what another kind of build records


class Journal(Generic[EntryT]):
    """Entries so far, and a file that new ones are appended to."""

    def __init__(self, file: Path, entries: list[EntryT], *, finished: bool) -> None:
        """Go on with a journal; `open` reads one or begins one."""
        self._file = file
        self.entries = entries
        self.finished = finished

    @classmethod
    def open(
        cls, folder: Path, settings: Mapping[str, Any], kind: type[EntryT]
    ) -> "Journal[EntryT]":
        """Read the folder's journal, or begin one, of this kind of entries.

        Raises:
            ConfigError: it was begun with other settings.
            IndexFileError: it is damaged beyond its last line.
        """
        file = folder / JOURNAL
        records = _records(file)
        if len(records) < 2:  # no batch yet, so nothing that could be mixed
            file.unlink(missing_ok=True)
            _append(file, {"version": _VERSION, "settings": dict(settings)})
            return cls(file, [], finished=False)
        head, *rest = records
        _compare(folder, head, settings)
        finished = bool(rest) and "finished" in rest[-1]
        try:
            entries = [kind(**record) for record in (rest[:-1] if finished else rest)]
        except TypeError as error:
            raise IndexFileError(f"{file} is damaged ({error}); {_ANEW}") from error
        return cls(file, entries, finished=finished)

    def add(self, entry: EntryT) -> None:
        """Record a batch, once its files are safely on the disk."""
        record: Any = entry
        _append(self._file, asdict(record))
        self.entries.append(entry)

    def finish(self) -> None:
        """Record that there are no more passages."""
        if not self.finished:
            _append(self._file, {"finished": True})
            self.finished = True


def _append(file: Path, record: Mapping[str, Any]) -> None:
    text = json.dumps(record).encode()
    with file.open("ab") as opened:
        opened.write(b"%08x %s\n" % (zlib.crc32(text), text))
        opened.flush()
        os.fsync(opened.fileno())


def _records(file: Path) -> list[dict[str, Any]]:
    """Read all lines but a torn one at the end, which is cut off."""
    content = file.read_bytes() if file.exists() else b""
    *lines, _ = content.split(b"\n")
    records: list[dict[str, Any]] = []
    whole = 0
    for number, line in enumerate(lines, start=1):
        record = _parsed(line)
        if record is None:
            if number < len(lines):
                raise IndexFileError(f"{file}, line {number}, is damaged; {_ANEW}")
            break
        records.append(record)
        whole += len(line) + 1
    if whole < len(content):
        os.truncate(file, whole)
    return records


def _parsed(line: bytes) -> dict[str, Any] | None:
    crc, _, text = line.partition(b" ")
    if crc != b"%08x" % zlib.crc32(text):
        return None
    record: dict[str, Any] = json.loads(text)
    return record


def _compare(folder: Path, head: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    begun = head.get("settings")
    if head.get("version") != _VERSION or not isinstance(begun, dict):
        raise IndexFileError(f"{folder} was not written by this release; {_ANEW}")
    differing = [
        f"{name} was {begun.get(name)!r} and is {settings.get(name)!r}"
        for name in sorted({*begun, *settings})
        if begun.get(name) != settings.get(name)
    ]
    if differing:
        raise ConfigError(
            f"{folder} holds an unfinished build with other settings: {', '.join(differing)}. "
            f"Give the same to go on with it, or {_ANEW}"
        )


def start_anew(problem: str, otherwise: str = "") -> IndexFileError:
    """Say why an unfinished build cannot be gone on with, and what to do."""
    return IndexFileError(f"{problem}; {otherwise + ', or ' if otherwise else ''}{_ANEW}")


# Files that only ever grow: additions are seen to the disk, and cut back after a crash.


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


# The folder beside the target where a knowledge base grows: its lock, its files, its end.
#
# `passages.jsonl` and `vectors.npy` only ever grow, and are cut back to what the
# journal says when a build is gone on with. They are the finished knowledge
# base's own files: at the end they are linked into it, not copied.


VECTORS = "vectors.npy"
LOCK = "lock"


def folder_of(target: Path) -> Path:
    """Say where the knowledge base of this name grows."""
    return target.parent / f".{target.name}.building"


@contextmanager
def locked(target: Path) -> Iterator[Path]:
    """Hold a target's building folder against all other builders; a crash lets go of it.

    Raises:
        IndexFileError: somebody else is building there.
    """
    folder = folder_of(target)
    lock = _lock(folder, target)
    try:
        for stale in folder.parent.glob(f".{target.name}.done-*"):
            shutil.rmtree(stale, ignore_errors=True)
        yield folder
    finally:
        os.close(lock)


def _lock(folder: Path, target: Path) -> int:
    try:
        import fcntl
    except ImportError as error:  # Windows
        raise ConfigError(
            "building on the disk needs a Unix system; build in memory with open_retriever, and "
            "save that"
        ) from error
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # its holder has just finished, and removed the folder
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock), (folder / LOCK).stat()):
                return lock
        except FileNotFoundError:  # removed between opening and locking
            pass
        except BlockingIOError as error:
            os.close(lock)
            raise IndexFileError(
                f"{target} is being built by another process already; wait until that one has "
                "finished, or choose another folder"
            ) from error
        except OSError:
            os.close(lock)
            raise
        os.close(lock)


def remove(folder: Path) -> None:
    """Remove a building folder that is held; a new one may then be begun at once."""
    prefix = folder.name.removesuffix("building") + "done-"
    gone = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    folder.rename(gone / "building")
    shutil.rmtree(gone, ignore_errors=True)


def clear(folder: Path) -> None:
    """Remove all but the lock."""
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != LOCK:
            entry.unlink()


class GrowingFiles:
    """Passages and vectors on the disk, batch after batch."""

    def __init__(self, folder: Path, entries: Sequence[Entry]) -> None:
        """Go on behind the last entry.

        Raises:
            IndexFileError: the files hold less than what was recorded.
        """
        self._folder = folder
        self._ends = [(0, 0), *((entry.passages, entry.lines_end) for entry in entries)]
        passages, lines_end = self._ends[-1]
        self._lines = GrowingFile(folder / PASSAGES, lines_end)
        self._vectors = self._array(entries[-1].dimension, passages) if entries else None

    def _array(self, dimension: int, rows: int) -> GrowingArray:
        return GrowingArray(self._folder / VECTORS, "<f4", (dimension,), rows)

    def append(self, lines: Sequence[bytes], vectors: Vectors) -> Entry:
        """Write a batch and see it to the disk; give what the journal must say."""
        dimension = vectors.shape[1]
        first = self._vectors is None
        array = self._vectors = self._vectors or self._array(dimension, 0)
        passages, lines_end = self._ends[-1]
        content = b"".join(lines)
        self._lines.add(content)
        numbers = array.add(vectors)
        if first:
            sync_folder(self._folder)  # their names, too
        self._ends.append((passages + len(lines), lines_end + len(content)))
        return Entry(*self._ends[-1], digest(content), numbers, dimension)

    def check(self, number: int, entry: Entry, lines: Sequence[bytes]) -> Vectors:
        """Compare a recorded batch with the input and with the disk, and give its vectors.

        Raises:
            IndexFileError: the passages are others, or the files are not what was written.
        """
        assert self._vectors is not None, "a batch is recorded, so there is a file"
        first, lines_start = self._ends[number]
        rows = f"passages {first} to {entry.passages - 1}"
        if digest(b"".join(lines)) != entry.lines:
            raise start_anew(
                f"{rows} are not those that were encoded before", "give the same to go on"
            )
        written = self._lines.read(lines_start, entry.lines_end)
        content = self._vectors.read(first, entry.passages)
        if (digest(written), digest(content)) != (entry.lines, entry.vectors):
            raise start_anew(f"what {self._folder} holds of {rows} is not what was written")
        return np.frombuffer(content, dtype="<f4").reshape(-1, entry.dimension)

    def ids(self, count: int) -> Iterator[str]:
        """Read the ids of the first passages again."""
        if not count:
            return
        with (self._folder / PASSAGES).open("rb") as lines:
            for line in islice(lines, count):
                yield json.loads(line)["id"]

    def finish(self, offsets: NDArray[np.int64], places: NDArray[np.int64]) -> None:
        """Complete the files: the number of vectors, and what finds and orders passages."""
        assert self._vectors is not None, "an empty knowledge base was not refused"
        self._vectors.finish(len(places))
        for name, array in ((OFFSETS, offsets), (PLACES, places)):
            (self._folder / name).unlink(missing_ok=True)
            with (self._folder / name).open("wb") as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
                os.fsync(file.fileno())
