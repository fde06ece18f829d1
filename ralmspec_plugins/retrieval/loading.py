"""Read a saved knowledge base, and check every byte of it before anything is used."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ralmspec_plugins.errors import IndexFileError
from ralmspec_plugins.records import Passage
from ralmspec_plugins.retrieval.parts import Parts
from ralmspec_plugins.retrieval.storage import FORMAT, OWN, PASSAGES, VERSION, plain_name


def read(path: str | os.PathLike[str]) -> Parts:
    """Read a folder and check it; large arrays stay on the disk, memory-mapped.

    A backend's own files are checked as all others, and given as paths.

    Raises:
        IndexFileError: it is missing, damaged, of another version, or not one of ours.
    """
    folder = Path(path)
    manifest = _manifest(folder)
    for name, expected in manifest["files"].items():
        _check_file(folder, name, expected)
    passages = _passages(folder / PASSAGES, manifest["passages"])
    arrays = {}
    blobs = {}
    own = {}
    for name, entry in manifest["files"].items():
        if entry.get("kind") == OWN:
            own[name] = (folder / name).absolute()
        elif name.endswith(".npy"):
            arrays[name.removesuffix(".npy")] = _array(folder / name)
        elif name != PASSAGES:
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
    if wrong or PASSAGES not in manifest["files"]:
        raise IndexFileError(
            f"{file} is damaged ({', '.join(wrong) or PASSAGES} missing or wrong); build it again"
        )
    return manifest


def _check_file(folder: Path, name: str, expected: Any) -> None:
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
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    if digest != expected.get("sha256"):
        raise IndexFileError(
            f"{file} is damaged: its content is not what was written (SHA-256 differs); "
            "copy it again, or build the index again"
        )


def _passages(file: Path, count: int) -> list[Passage]:
    passages = []
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line)
                passage = Passage(
                    record["id"],
                    record["text"],
                    record.get("title", ""),
                    record.get("metadata", {}),
                )
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise IndexFileError(f"{file}, line {number}: not a passage ({error!r})") from error
            passages.append(passage)
    if len(passages) != count:
        raise IndexFileError(f"{file} holds {len(passages)} passages, kb.json says {count}")
    return passages


def _array(file: Path) -> np.ndarray[Any, Any]:
    try:
        # As a plain array over the mapping: a memmap's rows would carry its weight.
        return np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))
    except (ValueError, OSError, EOFError) as error:
        raise IndexFileError(
            f"{file} is not a plain numpy array ({error}); build it again"
        ) from error
