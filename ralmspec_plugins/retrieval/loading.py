"""Read a saved knowledge base, and check every byte of it before anything is used."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ralmspec_plugins.errors import IndexFileError
from ralmspec_plugins.retrieval.parts import Parts
from ralmspec_plugins.retrieval.passage_file import PASSAGE_FILES, PassageFile, open_array
from ralmspec_plugins.retrieval.recorded import (
    RecordKind,
    Verify,
    check_file,
    check_verify,
    read_record,
)
from ralmspec_plugins.retrieval.storage import FORMAT, OWN, VERSION, plain_name

_KIND = RecordKind(
    missing="is not a saved knowledge base: it has no kb.json; make one with save(retriever, path)",
    file="kb.json",
    format=FORMAT,
    version=VERSION,
    again="build the knowledge base again",
)


def read(path: str | os.PathLike[str], verify: Verify = "digests") -> Parts:
    """Read a folder and check it; passages and arrays stay on the disk, memory-mapped.

    A backend's own files are checked as all others, and given as paths.

    Args:
        path: the folder.
        verify: "digests" reads every file once and compares its SHA-256; "sizes" only
            compares the files' lengths, and so opens an index of any size at once, but
            does not notice a changed byte.

    Raises:
        ConfigError: another word for `verify`.
        IndexFileError: it is missing, damaged, of another version, or not one of ours.
    """
    check_verify(verify)
    folder = Path(path)
    manifest = _manifest(folder)
    for name, expected in manifest["files"].items():
        _check_file(folder, name, expected, verify)
    passages = PassageFile.open(folder, manifest["passages"])
    arrays = {}
    blobs = {}
    own = {}
    for name, entry in manifest["files"].items():
        if entry.get("kind") == OWN:
            own[name] = (folder / name).absolute()
        elif name in PASSAGE_FILES:
            continue
        elif name.endswith(".npy"):
            arrays[name.removesuffix(".npy")] = open_array(folder / name)
        else:
            blobs[name] = (folder / name).read_bytes()
    return Parts(manifest["backend"], manifest["settings"], passages, arrays, blobs, own)


def _manifest(folder: Path) -> dict[str, Any]:
    manifest = read_record(folder, _KIND)
    kinds = {"backend": str, "settings": dict, "files": dict, "passages": int}
    wrong = [name for name, kind in kinds.items() if not isinstance(manifest.get(name), kind)]
    wrong = wrong or [name for name in PASSAGE_FILES if name not in manifest["files"]]
    if wrong:
        raise IndexFileError(
            f"{folder / _KIND.file} is damaged ({', '.join(wrong)} missing or wrong); {_KIND.again}"
        )
    return manifest


def _check_file(folder: Path, name: str, expected: Any, verify: Verify) -> None:
    if not plain_name(name) or not isinstance(expected, Mapping):
        raise IndexFileError(f"{folder / _KIND.file} names a strange file {name!r}; {_KIND.again}")
    check_file(folder / name, expected, verify, _KIND.again)
