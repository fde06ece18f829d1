"""Folders that a JSON record describes: the record read, and the files held against it.

A knowledge base, a KNN-LM datastore and a saved search index are all kept so. Whatever
is wrong with one is said before anything in it is used.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from ralmspec_plugins.errors import ConfigError, IndexFileError

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
    except ValueError as error:
        raise IndexFileError(f"{file} is damaged ({error}); {kind.again}") from error
    if not isinstance(record, dict) or record.get("format") != kind.format:
        raise IndexFileError(f"{file} was not written by ralmspec_plugins; give another folder")
    if record.get("version") != kind.version:
        raise IndexFileError(
            f"{file} has version {record.get('version')!r}, but this release reads version "
            f"{kind.version}; {kind.again}, or use the release that wrote it"
        )
    return record


def file_record(file: Path) -> dict[str, Any]:
    """Say what a record must know of a finished file, to find it changed later."""
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
