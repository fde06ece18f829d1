"""Folders described by a JSON record: reading the record, and checking the files.

A knowledge base, a KNN-LM datastore and a saved search index have this format.
Errors are reported before any file is used.
"""

import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeAlias, TypeVar, get_args

from ralmspec_plugins.errors import ConfigError, IndexFileError, RalmSpecError
from ralmspec_plugins.retrieval.storage.files import DAMAGE, atomic_replace

_MOST_ATTEMPTS = 50
OpenedT = TypeVar("OpenedT")
Verify: TypeAlias = Literal["digests", "sizes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordKind:
    """A kind of folder, and the messages for errors.

    Attributes:
        missing: the message about a folder without the record, after its name.
        file: the record's name.
        format: its value of "format".
        version: the version that this release reads.
        again: the remedy for a damaged folder.
    """

    missing: str
    file: str
    format: str
    version: int
    again: str


def check_verify(verify: str) -> None:
    """Check a mode of verification.

    Raises:
        ConfigError: it is unknown; the message lists the known ones.
    """
    if verify not in get_args(Verify):
        raise ConfigError(f"verify must be one of {', '.join(get_args(Verify))}, got {verify!r}")


def read_record(folder: Path, kind: RecordKind) -> dict[str, Any]:
    """Return the record of a folder.

    Raises:
        IndexFileError: it is missing, damaged, or in another format.
    """
    file = folder / kind.file
    if not file.is_file():
        raise IndexFileError(f"{folder} {kind.missing}")
    try:
        record = json.loads(file.read_bytes())
    except DAMAGE as error:
        raise IndexFileError(f"{file} is damaged ({error}); {kind.again}") from error
    if not isinstance(record, dict) or record.get("format") != kind.format:
        raise IndexFileError(f"{file} was not written by ralmspec_plugins; give another folder")
    if record.get("version") != kind.version:
        raise IndexFileError(
            f"{file} has version {record.get('version')!r}, but this release reads version "
            f"{kind.version}; {kind.again}, or use the release that wrote it"
        )
    return record


def opened_whole(folder: Path, open_once: Callable[[Path], OpenedT]) -> OpenedT:
    """Return a folder's opened files consistently, even if it is replaced at the same time.

    A folder is replaced in one step, but its files are opened one by one. So
    links are resolved once at the start, and the result is only used if the name
    referred to the same folder before and after; otherwise all files are opened again. The
    result is the old or the new folder.

    Args:
        folder: the folder to open.
        open_once: opens and checks all files of a folder.

    Raises:
        IndexFileError: the error of `open_once` for an unchanged folder; or it is replaced
            repeatedly.
    """
    for attempt in range(_MOST_ATTEMPTS):
        real = _followed(folder)
        before = _identity(real)
        try:
            opened = open_once(real)
        except (RalmSpecError, OSError, ValueError):
            stayed = _followed(folder) == real and _identity(real) == before
            if stayed and (before is not None or not _moved_aside(real)):
                raise
        else:
            if before is not None and _identity(real) == before:
                return opened
        time.sleep(0.001 * attempt)
    raise IndexFileError(
        f"{folder} was replaced {_MOST_ATTEMPTS} times while it was opened; open it again when "
        "its writer has finished"
    )


def _followed(folder: Path) -> Path:
    """Return the folder with all links resolved.

    Raises:
        IndexFileError: the links form a cycle.
    """
    try:
        return folder.resolve()
    except (OSError, RuntimeError) as error:
        raise IndexFileError(
            f"{folder} cannot be resolved ({error}); give another folder"
        ) from error


def _moved_aside(folder: Path) -> bool:
    """Return whether a folder is being replaced by two renames, without an exchange."""
    return any(folder.parent.glob(f".{folder.name}.old-*"))


def _identity(folder: Path) -> tuple[int, int, int] | None:
    """Return the identity of a folder; a rename changes the last number."""
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_ctime_ns


def file_record(file: Path) -> dict[str, Any]:
    """Return the record of a finished file, to detect later changes."""
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return {"bytes": file.stat().st_size, "sha256": digest}


def check_file(file: Path, expected: Mapping[str, Any], verify: Verify, again: str) -> None:
    """Compare a file with its record.

    Raises:
        IndexFileError: it is missing, or has another length; with "digests", another content.
    """
    if not file.is_file():
        raise IndexFileError(f"{file} is missing; copy it again, or {again}")
    size = file.stat().st_size
    if size != expected.get("bytes"):
        raise IndexFileError(
            f"{file} is damaged: {expected.get('bytes')} bytes were written, {size} are there; "
            f"copy it again, or {again}"
        )
    if verify == "digests" and file_record(file)["sha256"] != expected.get("sha256"):
        raise IndexFileError(
            f"{file} is damaged: its content is not what was written (SHA-256 differs); "
            f"copy it again, or {again}"
        )


FORMAT = "ralmspec-knowledge-base"
VERSION = 2  # version 1 had no offsets and no places
OWN = "own"  # the mark in kb.json of files that are loaded as paths


def write_folder(
    target: Path,
    write: Callable[[Path], None],
    check: Callable[[Path], None],
    place: Path | None = None,
) -> None:
    """Write a folder atomically.

    After an error (a full disk, Ctrl-C) the previous target is
    unchanged, and no other file remains.

    Args:
        target: the folder's path; not a link.
        write: writes into an empty folder.
        check: raises for a target that must not be replaced. Called again at the end: writing
            can take minutes, and the target may have changed.
        place: the temporary folder; next to the target by default.
    """
    check(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = place or target.with_name(f".{target.name}.new-{secrets.token_hex(8)}")
    shutil.rmtree(fresh, ignore_errors=True)  # of a killed process
    try:  # created inside: an interruption may follow immediately
        fresh.mkdir(mode=0o700)
        write(fresh)
        check(target)
        atomic_replace(target, fresh)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def check_target(
    path: str | os.PathLike[str], *, kind: str = "knowledge base", mark: str = "kb.json"
) -> None:
    """Check the target of `save` before the work.

    Free paths, empty folders and saved knowledge bases are accepted.

    Args:
        path: the target.
        kind: the kind of folder that may be replaced, for error messages.
        mark: the file of such a folder.

    Raises:
        IndexFileError: the target is something else.
    """
    target = Path(path)
    if not target.exists() or (target / mark).is_file():
        return
    if not target.is_dir() or any(target.iterdir()):
        raise IndexFileError(
            f"{target} exists and is not a {kind}; choose another folder, or remove it"
        )


def plain_name(name: str) -> bool:
    """Return whether a file's name is a canonical path inside the folder.

    >>> plain_name("index.bin"), plain_name("lucene/segments_1")
    (True, True)
    >>> plain_name("../kb"), plain_name("/etc/passwd"), plain_name("a/./b"), plain_name("")
    (False, False, False, False)
    """
    path = PurePosixPath(name)
    return (
        name not in ("", ".")
        and str(path) == name
        and not path.is_absolute()
        and (".." not in path.parts and "\\" not in name and "\0" not in name)
    )
