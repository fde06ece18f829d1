"""The files of a datastore's folder: their names, and the checks before they are used."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ralmspec_plugins.errors import IndexFileError, InputError
from ralmspec_plugins.knn.datastore_info import DatastoreInfo
from ralmspec_plugins.retrieval.growing_file import npy_header
from ralmspec_plugins.retrieval.recorded import (
    RecordKind,
    Verify,
    check_file,
    check_verify,
    file_record,
    read_record,
)

KEYS = "keys.npy"
VALUES = "values.npy"
DOCUMENT_ENDS = "document_ends.npy"
FILES = (KEYS, VALUES, DOCUMENT_ENDS)
ABOUT = "about.json"
_KIND = RecordKind(
    missing=f"is no datastore: it has no {ABOUT}; make one with ralmspec knn build",
    file=ABOUT,
    format="ralmspec-knn-datastore",
    version=1,
    again="build the datastore again",
)


def array_digest(array: NDArray[Any]) -> str:
    """Give the SHA-256 of the .npy file that would hold an array."""
    digest = hashlib.sha256(npy_header(array.dtype.str, array.shape))
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def about_bytes(info: DatastoreInfo, folder: Path) -> bytes:
    """Write `about.json` of the finished files in a folder, reading each once."""
    files = {name: file_record(folder / name) for name in FILES}
    head = {"format": _KIND.format, "version": _KIND.version}
    record = {**head, "about": asdict(info), "files": files}
    return json.dumps(record, indent=2).encode() + b"\n"


def read_about(folder: Path, verify: Verify) -> tuple[DatastoreInfo, list[str]]:
    """Read `about.json`, and check the files that it names; give their digests, too.

    Raises:
        ConfigError: another word for `verify`.
        IndexFileError: the folder is missing, damaged, of another version, or not one of ours.
    """
    check_verify(verify)
    record = read_record(folder, _KIND)
    try:
        info, files = DatastoreInfo(**record["about"]), record["files"]
        for name in FILES:
            check_file(folder / name, files[name], verify, _KIND.again)
        return info, [str(files[name]["sha256"]) for name in FILES]
    except (KeyError, TypeError, AttributeError, InputError) as error:
        raise IndexFileError(f"{folder / ABOUT} is damaged ({error!r}); {_KIND.again}") from error
