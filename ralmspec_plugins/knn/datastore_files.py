"""The files of a datastore's folder: their names, and the checks before they are used."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from ralmspec_plugins.errors import ConfigError, IndexFileError, InputError
from ralmspec_plugins.knn.datastore_info import DatastoreInfo
from ralmspec_plugins.retrieval.growing_file import npy_header
from ralmspec_plugins.retrieval.loading import Verify

KEYS = "keys.npy"
VALUES = "values.npy"
DOCUMENT_ENDS = "document_ends.npy"
FILES = (KEYS, VALUES, DOCUMENT_ENDS)
ABOUT = "about.json"
_FORMAT = "ralmspec-knn-datastore"
_VERSION = 1


def array_digest(array: NDArray[Any]) -> str:
    """Give the SHA-256 of the .npy file that would hold an array."""
    digest = hashlib.sha256(npy_header(array.dtype.str, array.shape))
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def about_bytes(info: DatastoreInfo, folder: Path) -> bytes:
    """Write `about.json` of the finished files in a folder, reading each once."""
    files = {}
    for name in FILES:
        with (folder / name).open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        files[name] = {"bytes": (folder / name).stat().st_size, "sha256": digest}
    record = {"format": _FORMAT, "version": _VERSION, "about": asdict(info), "files": files}
    return json.dumps(record, indent=2).encode() + b"\n"


def read_about(folder: Path, verify: Verify) -> tuple[DatastoreInfo, list[str]]:
    """Read `about.json`, and check the files that it names; give their digests, too.

    Raises:
        ConfigError: another word for `verify`.
        IndexFileError: the folder is missing, damaged, of another version, or not one of ours.
    """
    if verify not in get_args(Verify):
        raise ConfigError(f"verify must be one of {', '.join(get_args(Verify))}, got {verify!r}")
    record = _record(folder / ABOUT)
    try:
        info = DatastoreInfo(**record["about"])
        digests = [_checked(folder / name, record["files"][name], verify) for name in FILES]
    except (KeyError, TypeError, InputError) as error:
        raise IndexFileError(
            f"{folder / ABOUT} is damaged ({error!r}); build the datastore again"
        ) from error
    return info, digests


def _record(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise IndexFileError(
            f"{file.parent} is no datastore: it has no {ABOUT}; make one with ralmspec knn build"
        )
    try:
        record = json.loads(file.read_bytes())
    except ValueError as error:
        raise IndexFileError(f"{file} is damaged ({error}); build the datastore again") from error
    if not isinstance(record, dict) or record.get("format") != _FORMAT:
        raise IndexFileError(f"{file} was not written by ralmspec_plugins; give another folder")
    if record.get("version") != _VERSION:
        raise IndexFileError(
            f"{file} has version {record.get('version')!r}, but this release reads version "
            f"{_VERSION}; build the datastore again, or use the release that wrote it"
        )
    return record


def _checked(file: Path, expected: Mapping[str, Any], verify: Verify) -> str:
    """Compare a file with what was written; give its digest, as it was written."""
    if not file.is_file():
        raise IndexFileError(f"{file} is missing; copy it again, or build the datastore again")
    size = file.stat().st_size
    if size != expected["bytes"]:
        raise IndexFileError(
            f"{file} is damaged: {expected['bytes']} bytes were written, {size} are there; "
            "copy it again, or build the datastore again"
        )
    written = str(expected["sha256"])
    if verify == "digests":
        with file.open("rb") as opened:
            if hashlib.file_digest(opened, "sha256").hexdigest() != written:
                raise IndexFileError(
                    f"{file} is damaged: its content is not what was written (SHA-256 differs); "
                    "copy it again, or build the datastore again"
                )
    return written
