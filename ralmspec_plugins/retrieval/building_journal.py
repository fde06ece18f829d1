"""The journal of an unfinished build: which batches are safely on the disk, and by which settings.

One line an entry, a CRC-32 and JSON, appended and seen to the disk after what
it speaks of. A crash can only tear the last line, and a torn line is not counted.
"""

import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from ralmspec_plugins.errors import ConfigError, IndexFileError

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
