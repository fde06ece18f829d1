"""Folders that a JSON record describes: the record read, and the files checked against it.

A knowledge base, a KNN-LM datastore and a saved search index are all stored so.
Whatever is wrong with one is reported before anything in it is used.
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
    """What a folder is, and what to do about one that is not.

    Attributes:
        missing: what is said of a folder without the record, behind its name.
        file: the record's name.
        format: what stands in it as "format".
        version: the one that this release reads.
        again: what helps when it is damaged.
    """

    missing: str
    file: str
    format: str
    version: int
    again: str


def check_verify(verify: str) -> None:
    """Refuse a word that is no way to verify.

    Raises:
        ConfigError: the message says which there are.
    """
    if verify not in get_args(Verify):
        raise ConfigError(f"verify must be one of {', '.join(get_args(Verify))}, got {verify!r}")


def read_record(folder: Path, kind: RecordKind) -> dict[str, Any]:
    """Read the record of a folder.

    Raises:
        IndexFileError: it is missing, damaged, of another version, or not one of ours.
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
    """Open a folder's files as one, also while another folder takes its name.

    A folder is replaced as a whole, in one step, but its files are opened one by one. So
    links are followed once, at the beginning, and what was opened counts only if the name
    then led to the same folder before and after; otherwise all of it is opened again. What
    is returned is the old or the new one.

    Args:
        folder: what is opened.
        open_once: opens and checks all files of the folder that it is given.

    Raises:
        IndexFileError: what `open_once` raises, of a folder that stayed; or it is replaced
            again and again.
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
    """Return the folder itself, behind all links.

    Raises:
        IndexFileError: they lead in a circle.
    """
    try:
        return folder.resolve()
    except (OSError, RuntimeError) as error:
        raise IndexFileError(f"{folder} leads nowhere ({error}); give another folder") from error


def _moved_aside(folder: Path) -> bool:
    """Whether a folder is just being replaced by two renames, where there is no exchange."""
    return any(folder.parent.glob(f".{folder.name}.old-*"))


def _identity(folder: Path) -> tuple[int, int, int] | None:
    """Tell one folder under a name from the next; a rename changes the last number."""
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_ctime_ns


def file_record(file: Path) -> dict[str, Any]:
    """Return what a record must know of a finished file, to find it changed later."""
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return {"bytes": file.stat().st_size, "sha256": digest}


def check_file(file: Path, expected: Mapping[str, Any], verify: Verify, again: str) -> None:
    """Compare a file with what was written.

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
VERSION = 2  # 1 had no offsets and no places
OWN = "own"  # kb.json marks so the files that are given back as paths


def write_folder(
    target: Path,
    write: Callable[[Path], None],
    check: Callable[[Path], None],
    place: Path | None = None,
) -> None:
    """Have a folder written, and give it its name: whole or not at all.

    Whatever goes wrong on the way (a full disk, Ctrl-C), what had the name before stays
    as it was, and nothing else is left behind.

    Args:
        target: the folder's name; not a link.
        write: writes into an empty folder.
        check: refuses what must not be replaced. Called again at the end: writing can take
            minutes, and others may have come.
        place: where it is written; beside the target by default.
    """
    check(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = place or target.with_name(f".{target.name}.new-{secrets.token_hex(8)}")
    shutil.rmtree(fresh, ignore_errors=True)  # a killed attempt's
    try:  # made inside: it may be stopped as soon as it is there
        fresh.mkdir(mode=0o700)
        write(fresh)
        check(target)
        atomic_replace(target, fresh)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def check_target(
    path: str | os.PathLike[str], *, kind: str = "knowledge base", mark: str = "kb.json"
) -> None:
    """Refuse a place that `save` would refuse, so that it can be known before the work.

    Free places, empty folders and saved knowledge bases are accepted.

    Args:
        path: the place.
        kind: what may be replaced there, in words.
        mark: the file that such a folder has.

    Raises:
        IndexFileError: something else is in the way.
    """
    target = Path(path)
    if not target.exists() or (target / mark).is_file():
        return
    if not target.is_dir() or any(target.iterdir()):
        raise IndexFileError(
            f"{target} exists and is not a {kind}; choose another folder, or remove it"
        )


def plain_name(name: str) -> bool:
    """Whether a file's name stays inside the folder, and is written in only one way.

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
