"""Read a saved knowledge base, and check every byte of it before anything is used."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from ralmspec_plugins.errors import ConfigError, IndexFileError
from ralmspec_plugins.retrieval.parts import Parts
from ralmspec_plugins.retrieval.passage_file import PASSAGE_FILES, PassageFile, open_array
from ralmspec_plugins.retrieval.storage import FORMAT, OWN, VERSION, plain_name

Verify = Literal["digests", "sizes"]


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
    if verify not in get_args(Verify):
        raise ConfigError(f"verify must be one of {', '.join(get_args(Verify))}, got {verify!r}")
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
    file = folder / "kb.json"
    if not file.is_file():
        raise IndexFileError(
            f"{folder} is not a saved knowledge base: it has no kb.json; "
            "make one with save(retriever, path)"
        )
    try:
        manifest = json.loads(file.read_bytes())
    except ValueError as error:
        raise IndexFileError(f"{file} is damaged ({error}); build it again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise IndexFileError(f"{file} was not written by ralmspec_plugins; give another folder")
    if manifest.get("version") != VERSION:
        raise IndexFileError(
            f"{file} has version {manifest.get('version')!r}, but this release reads version "
            f"{VERSION}; build the knowledge base again, or use the release that wrote it"
        )
    kinds = {"backend": str, "settings": dict, "files": dict, "passages": int}
    wrong = [name for name, kind in kinds.items() if not isinstance(manifest.get(name), kind)]
    wrong = wrong or [name for name in PASSAGE_FILES if name not in manifest["files"]]
    if wrong:
        raise IndexFileError(
            f"{file} is damaged ({', '.join(wrong)} missing or wrong); build it again"
        )
    return manifest


def _check_file(folder: Path, name: str, expected: Any, verify: Verify) -> None:
    file = folder / name
    if not plain_name(name) or not isinstance(expected, Mapping):
        raise IndexFileError(f"{folder / 'kb.json'} names a strange file {name!r}; build it again")
    if not file.is_file():
        raise IndexFileError(f"{file} is missing; copy it again, or build the index again")
    size = file.stat().st_size
    if size != expected.get("bytes"):
        raise IndexFileError(
            f"{file} is damaged: {expected.get('bytes')} bytes were written, {size} are there; "
            "copy it again, or build the index again"
        )
    if verify == "sizes":
        return
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    if digest != expected.get("sha256"):
        raise IndexFileError(
            f"{file} is damaged: its content is not what was written (SHA-256 differs); "
            "copy it again, or build the index again"
        )
