"""Builds that are resumed after a crash: batches on the disk, and a journal of which count.

A build grows in a hidden folder beside its target, `.<name>.building`. Its files are
the finished folder's own: they only ever grow, batch after batch, and are linked
into it at the end, not copied. `journal.jsonl` has one line a batch, a CRC-32 and
JSON, appended and synced to the disk after the batch itself. A crash can only tear the last
line, and a torn line does not count: what was written for it is cut off again.
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
_VERSION = 2  # 1 had entries of its own for each kind of build
_ANEW = "start anew with restart=True (--restart on the command line)"
_HEADER = 128  # bytes of a .npy file's header, as long as a row is short
Content: TypeAlias = bytes | NDArray[Any]


def start_anew(problem: str, otherwise: str = "") -> IndexFileError:
    """Say why an unfinished build cannot be resumed, and what to do."""
    return IndexFileError(f"{problem}; {otherwise + ', or ' if otherwise else ''}{_ANEW}")


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


@dataclass(frozen=True, slots=True)
class Entry:
    """A batch that is on the disk.

    Attributes:
        rows: passages, or entries of a datastore, from the beginning.
        source: SHA-256 of what the batch was made of.
        ends: where it ends in each file, in bytes.
        digests: SHA-256 of what each file holds of it.
    """

    rows: int
    source: str
    ends: Sequence[int]
    digests: Sequence[str]

    @classmethod
    def of(cls, record: Mapping[str, Any], files: int) -> "Entry":
        """Read an entry.

        Raises:
            TypeError: it is none.
        """
        entry = cls(**record)
        numbers = [entry.rows, *entry.ends]
        if not all(isinstance(number, int) for number in numbers) or len(numbers) != files + 1:
            raise TypeError(f"{record} is no entry of {files} files")
        return entry


class ResumableBuild:
    """A build in a folder that is held, batch by batch; goes on behind what is recorded.

    Each batch is asked for with `recorded`, and added with `append` where an earlier
    run has not written it; `end` comes behind the last one.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], noun: str, files: Sequence[str]
    ) -> None:
        """Begin in a folder, or resume what was begun there.

        Args:
            folder: held by `building`.
            settings: what the rows depend on besides the input.
            noun: what a row is, in the plural, for messages.
            files: those that grow; .npy files take arrays, the others bytes.

        Raises:
            ConfigError: it was begun with other settings.
            IndexFileError: the journal is damaged beyond its last line, or a file is too short.
        """
        self.folder = folder
        self.rows = 0  # of the batches that were asked for or appended
        self._noun = noun
        self._files = [folder / name for name in files]
        self._journal = folder / JOURNAL
        self._entries: list[Entry] = []
        self._finished = False
        self._at = 0  # the next batch
        records = _records(self._journal)
        if len(records) < 2:  # no batch yet, so nothing that could be mixed
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
        """Read the next batch back, if an earlier run has written it.

        Args:
            source: `digest` of what it is made of.
            rows: how many it has.

        Raises:
            IndexFileError: the input is another, there is more of it than before, or a file
                does not hold what was written.
        """
        if self._at == len(self._entries):
            if self._finished:
                raise start_anew(
                    f"there are more than the {self.rows} {self._noun} there were before",
                    "give the same to go on",
                )
            return None
        entry = self._entries[self._at]
        what = f"{self._noun} {self.rows} to {entry.rows - 1}"
        if (source, self.rows + rows) != (entry.source, entry.rows):
            raise start_anew(
                f"{what} are not those that were encoded before", "give the same to go on"
            )
        contents = [
            _read(file, start, stop)
            for file, start, stop in zip(self._files, self._ends(self._at), entry.ends, strict=True)
        ]
        if [digest(content) for content in contents] != list(entry.digests):
            raise start_anew(f"what {self.folder} holds of {what} is not what was written")
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
            IndexFileError: there was more of it before.
        """
        before = self._entries[-1].rows if self._entries else 0
        if self.rows < before:
            raise start_anew(
                f"there are only {self.rows} of the {before} {self._noun} that were encoded before",
                "give the same to go on",
            )
        if not self._finished:
            self._record({"finished": True})
            self._finished = True

    def finish_array(self, name: str, kind: str, row: tuple[int, ...] = ()) -> None:
        """Write the number of rows into a .npy file's header, unless it is there already.

        After a crash at the very end this may be the finished folder's own file,
        so it is not changed when it is complete.
        """
        file, header = self.folder / name, npy_header(kind, (self.rows, *row))
        if _read(file, 0, len(header)) != header:
            with file.open("r+b") as opened:
                opened.write(header)
                os.fsync(opened.fileno())

    def publish(
        self, target: Path, write: Callable[[Path], None], check: Callable[[Path], None]
    ) -> None:
        """Have the finished folder written, and put it at the target; see `write_folder`."""
        write_folder(target, write, check, place=self.folder / "fresh")

    def _ends(self, number: int) -> Sequence[int]:
        """Say where the files end before a recorded batch; the first one is behind the headers."""
        if number:
            return self._entries[number - 1].ends
        return [_HEADER if file.suffix == ".npy" else 0 for file in self._files]

    def _record(self, record: Mapping[str, Any]) -> None:
        text = json.dumps(record).encode()
        _sync_to(self._journal, b"%08x %s\n" % (zlib.crc32(text), text))


def _sync_to(file: Path, *contents: Any) -> None:
    """Append to a file, and see it to the disk."""
    with file.open("ab") as opened:
        for content in contents:
            opened.write(content)
        opened.flush()
        os.fsync(opened.fileno())


def _add(file: Path, content: Content) -> str:
    """Append a batch's bytes, behind a .npy file's header, and give their digest."""
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
    """Cut off what lies behind the recorded bytes.

    Raises:
        IndexFileError: the file holds less.
    """
    there = file.stat().st_size if file.exists() else 0
    if there < size:
        raise start_anew(f"{file} is damaged: {size} bytes were written, {there} are there")
    if there > size:
        os.truncate(file, size)


def _records(file: Path) -> list[dict[str, Any]]:
    """Read all lines but a torn one at the end, which is cut off."""
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
            f"Give the same to go on with it, or {_ANEW}"
        )


def link(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the file system cannot."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)
        with target.open("rb") as copied:
            os.fsync(copied.fileno())


# The folder where a build grows: held by one builder at a time, and removed at the end.


def folder_of(target: Path) -> Path:
    """Say where the build of this target grows."""
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
    """Hold a target's building folder, and resume or begin its build.

    Where this ends well the folder is removed. After an error it stays, unless nothing in it
    cost any work.

    Args:
        target: the finished folder's place.
        settings: as for `ResumableBuild`.
        noun: as for `ResumableBuild`.
        files: as for `ResumableBuild`.
        restart: forget what was begun.
        cheap: what this run has written costs nothing, so an error of ours forgets it.

    Raises:
        ConfigError: a system without file locks; or as for `ResumableBuild`.
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


def _clear(folder: Path) -> None:
    """Remove all but the lock."""
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != LOCK:
            entry.unlink()
