"""Resumable builds: batches on the disk, and a journal of complete ones.

A build is written to a hidden folder next to its target, `.<name>.building`. Its files are
those of the finished folder: they are only appended to, batch by batch, and are linked
into it at the end, not copied. `journal.jsonl` has one line per batch, a CRC-32 and
JSON, appended and synced to the disk after the batch itself. A crash can only truncate the
last line, and the data of an incomplete line is removed.
"""

import hashlib
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ralmspec_plugins.errors import ConfigError, IndexFileError, RalmSpecError
from ralmspec_plugins.retrieval.storage.files import sync_folder
from ralmspec_plugins.retrieval.storage.format import write_folder

JOURNAL = "journal.jsonl"
LOCK = "lock"
_VERSION = 2  # version 1 had different entries for each kind of build
_ANEW = "start again with restart=True (--restart on the command line)"
_HEADER = 128  # bytes of a .npy file's header, for short rows
Content: TypeAlias = bytes | NDArray[Any]


def start_anew(problem: str, otherwise: str = "") -> IndexFileError:
    """Return the error of an unfinished build that cannot be resumed."""
    return IndexFileError(f"{problem}; {otherwise + ', or ' if otherwise else ''}{_ANEW}")


def digest(content: Any) -> str:
    """Return the SHA-256 of some bytes."""
    return hashlib.sha256(content).hexdigest()


def npy_header(kind: str, shape: tuple[int, ...]) -> bytes:
    """Return a .npy header, padded by numpy, so that the number of rows can grow.

    >>> len(npy_header("<f4", (0, 384))) == len(npy_header("<f4", (10**12, 384)))
    True
    """
    header = BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": kind, "fortran_order": False, "shape": shape}
    )
    return header.getvalue()


@dataclass(frozen=True, slots=True)
class Entry:
    """A batch on the disk.

    Attributes:
        rows: the number of passages, or entries of a datastore, up to its end.
        source: SHA-256 of its source.
        ends: its end in each file, in bytes.
        digests: SHA-256 of its part of each file.
    """

    rows: int
    source: str
    ends: Sequence[int]
    digests: Sequence[str]

    @classmethod
    def of(cls, record: Mapping[str, Any], files: int) -> "Entry":
        """Return an entry from its record.

        Raises:
            TypeError: it is not an entry.
        """
        entry = cls(**record)
        numbers = [entry.rows, *entry.ends]
        if not all(isinstance(number, int) for number in numbers) or len(numbers) != files + 1:
            raise TypeError(f"{record} is no entry of {files} files")
        return entry


class ResumableBuild:
    """A build in a locked folder, in batches, which continues after the recorded ones.

    Each batch is requested with `recorded`, and added with `append` if no earlier
    run has written it; `end` follows the last one.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], noun: str, files: Sequence[str]
    ) -> None:
        """Start or resume a build in a folder.

        Args:
            folder: locked by `building`.
            settings: all that the rows depend on besides the input.
            noun: the plural of a row's name, for error messages.
            files: the growing files; .npy files take arrays, the others bytes.

        Raises:
            ConfigError: it was started with other settings.
            IndexFileError: the journal is damaged beyond its last line, or a file is too short.
        """
        self.folder = folder
        self.rows = 0  # of the requested or appended batches
        self._noun = noun
        self._files = [folder / name for name in files]
        self._journal = folder / JOURNAL
        self._entries: list[Entry] = []
        self._finished = False
        self._at = 0  # the next batch
        records = _records(self._journal)
        if len(records) < 2:  # no batch yet, so any settings are valid
            self._journal.unlink(missing_ok=True)
            self._record({"version": _VERSION, "settings": dict(settings)})
        else:
            head, *rest = records
            _compare(folder, head, settings)
            self._finished = "finished" in rest[-1]
            try:
                self._entries = [Entry.of(one, len(files)) for one in rest if "finished" not in one]
            except TypeError as error:
                raise start_anew(f"{self._journal} is damaged ({error})") from error
        self.resumed = bool(self._entries)
        ends = self._ends(len(self._entries)) if self.resumed else [0] * len(files)
        for file, size in zip(self._files, ends, strict=True):
            _cut(file, size)

    @property
    def empty(self) -> bool:
        """Whether no batch is on the disk."""
        return not self._entries

    def recorded(self, source: str, rows: int) -> list[bytes] | None:
        """Return the next batch, if an earlier run has written it.

        Args:
            source: `digest` of its source.
            rows: its number of rows.

        Raises:
            IndexFileError: the input differs, is longer than before, or a file
                does not match its record.
        """
        if self._at == len(self._entries):
            if self._finished:
                raise start_anew(
                    f"there are more than the {self.rows} {self._noun} there were before",
                    "use the same to continue",
                )
            return None
        entry = self._entries[self._at]
        what = f"{self._noun} {self.rows} to {entry.rows - 1}"
        if (source, self.rows + rows) != (entry.source, entry.rows):
            raise start_anew(
                f"{what} are not those that were encoded before", "use the same to continue"
            )
        contents = [
            _read(file, start, stop)
            for file, start, stop in zip(self._files, self._ends(self._at), entry.ends, strict=True)
        ]
        if [digest(content) for content in contents] != list(entry.digests):
            raise start_anew(f"the content of {self.folder} for {what} is not what was written")
        self.rows, self._at = entry.rows, self._at + 1
        return contents

    def append(self, source: str, rows: int, contents: Sequence[Content]) -> None:
        """Write the next batch to its files, sync them, and record it."""
        digests = [_add(file, content) for file, content in zip(self._files, contents, strict=True)]
        if self.empty:
            sync_folder(self.folder)  # the files' names, too
        self.rows += rows
        ends = [file.stat().st_size for file in self._files]
        entry = Entry(self.rows, source, ends, digests)
        self._record(asdict(entry))
        self._entries.append(entry)
        self._at += 1

    def end(self) -> None:
        """Record that there is no more input.

        Raises:
            IndexFileError: there was more input before.
        """
        before = self._entries[-1].rows if self._entries else 0
        if self.rows < before:
            raise start_anew(
                f"there are only {self.rows} of the {before} {self._noun} that were encoded before",
                "use the same to continue",
            )
        if not self._finished:
            self._record({"finished": True})
            self._finished = True

    def finish_array(self, name: str, kind: str, row: tuple[int, ...] = ()) -> None:
        """Write the number of rows to a .npy file's header, unless it is complete.

        After a crash at the end this may be the finished folder's own file,
        so a complete file is not changed.
        """
        file, header = self.folder / name, npy_header(kind, (self.rows, *row))
        if _read(file, 0, len(header)) != header:
            with file.open("r+b") as opened:
                opened.write(header)
                os.fsync(opened.fileno())

    def publish(
        self, target: Path, write: Callable[[Path], None], check: Callable[[Path], None]
    ) -> None:
        """Write the finished folder to the target; see `write_folder`."""
        write_folder(target, write, check, place=self.folder / "fresh")

    def _ends(self, number: int) -> Sequence[int]:
        """Return the ends of the files before a recorded batch; the first follows the headers."""
        if number:
            return self._entries[number - 1].ends
        return [_HEADER if file.suffix == ".npy" else 0 for file in self._files]

    def _record(self, record: Mapping[str, Any]) -> None:
        text = json.dumps(record).encode()
        _sync_to(self._journal, b"%08x %s\n" % (zlib.crc32(text), text))


def _sync_to(file: Path, *contents: Any) -> None:
    """Append to a file, and sync it to the disk."""
    with file.open("ab") as opened:
        for content in contents:
            opened.write(content)
        opened.flush()
        os.fsync(opened.fileno())


def _add(file: Path, content: Content) -> str:
    """Append a batch's bytes, after a .npy file's header, and return their digest."""
    if isinstance(content, bytes):
        _sync_to(file, content)
        return digest(content)
    array = np.ascontiguousarray(content)
    new = not file.exists() or not file.stat().st_size
    header = npy_header(array.dtype.str, (0, *array.shape[1:])) if new else b""
    assert len(header) in (0, _HEADER), "a row has many dimensions"
    _sync_to(file, header, array.data)
    return digest(array.data)


def _read(file: Path, start: int, stop: int) -> bytes:
    with file.open("rb") as opened:
        opened.seek(start)
        return opened.read(stop - start)


def _cut(file: Path, size: int) -> None:
    """Truncate a file to its recorded size.

    Raises:
        IndexFileError: the file is shorter.
    """
    there = file.stat().st_size if file.exists() else 0
    if there < size:
        raise start_anew(f"{file} is damaged: {size} bytes were written, {there} are there")
    if there > size:
        os.truncate(file, size)


def _records(file: Path) -> list[dict[str, Any]]:
    """Return all lines, and truncate an incomplete one at the end."""
    content = file.read_bytes() if file.exists() else b""
    *lines, _ = content.split(b"\n")
    records: list[dict[str, Any]] = []
    whole = 0
    for number, line in enumerate(lines, start=1):
        crc, _, text = line.partition(b" ")
        if crc != b"%08x" % zlib.crc32(text):
            if number < len(lines):
                raise start_anew(f"{file}, line {number}, is damaged")
            break
        records.append(json.loads(text))
        whole += len(line) + 1
    if whole < len(content):
        _cut(file, whole)
    return records


def _compare(folder: Path, head: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    begun = head.get("settings")
    if head.get("version") != _VERSION or not isinstance(begun, dict):
        raise start_anew(f"{folder} was not written by this release")
    differing = [
        f"{name} was {begun.get(name)!r} and is {settings.get(name)!r}"
        for name in sorted({*begun, *settings})
        if begun.get(name) != settings.get(name)
    ]
    if differing:
        raise ConfigError(
            f"{folder} holds an unfinished build with other settings: {', '.join(differing)}. "
            f"Use the same settings to resume it, or {_ANEW}"
        )


def link(source: Path, target: Path) -> None:
    """Link a file, or copy it if the file system does not support links."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)
        with target.open("rb") as copied:
            os.fsync(copied.fileno())


# The folder of a build: locked by one process, and removed at the end.


def folder_of(target: Path) -> Path:
    """Return the folder of a target's build."""
    return target.parent / f".{target.name}.building"


@contextmanager
def building(
    target: Path,
    settings: Mapping[str, Any],
    noun: str,
    files: Sequence[str],
    *,
    restart: bool,
    cheap: bool = False,
) -> Iterator[ResumableBuild]:
    """Lock a target's building folder, and resume or start its build.

    On success the folder is removed. After an error it is kept, unless it is empty
    or cheap.

    Args:
        target: the finished folder's path.
        settings: as for `ResumableBuild`.
        noun: as for `ResumableBuild`.
        files: as for `ResumableBuild`.
        restart: discard an unfinished build.
        cheap: the data of this run is discarded after an error.

    Raises:
        ConfigError: the system has no file locks; or as for `ResumableBuild`.
        IndexFileError: another process builds there; or as for `ResumableBuild`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = folder_of(target)
    lock = _lock(folder, target)
    try:
        for stale in folder.parent.glob(f".{target.name}.done-*"):
            shutil.rmtree(stale, ignore_errors=True)
        if restart:
            _clear(folder)
        worthless = not (folder / JOURNAL).exists()
        build = None
        try:
            build = ResumableBuild(folder, settings, noun, files)
            yield build
        except BaseException as error:
            if build is not None:
                forget = cheap and not build.resumed and isinstance(error, RalmSpecError)
                worthless = build.empty or forget
            if worthless:
                remove(folder)
            raise
        remove(folder)
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
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:  # by `exist_ok` what is there is no folder, or has just gone
            if folder.is_dir() or not os.path.lexists(folder):
                continue
            raise
        try:
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # the other process has finished, and removed the folder
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
    """Remove a locked building folder."""
    prefix = folder.name.removesuffix("building") + "done-"
    gone = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    folder.rename(gone / "building")
    shutil.rmtree(gone, ignore_errors=True)


def _clear(folder: Path) -> None:
    """Remove all files except the lock."""
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != LOCK:
            entry.unlink()
