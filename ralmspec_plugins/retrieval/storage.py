"""Save a knowledge base as a folder, whole or not at all, and load it with every byte checked.

A folder holds `kb.json` (format, version, backend, settings, and each file's
size and SHA-256), `passages.jsonl`, and the backend's arrays as `.npy`. Nothing
is ever pickled. It is written beside its final place and renamed.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from ralmspec_plugins.errors import IndexFileError
from ralmspec_plugins.records import Passage
from ralmspec_plugins.retrieval.corpus import passage_line
from ralmspec_plugins.retrieval.parts import Parts

FORMAT = "ralmspec-knowledge-base"
VERSION = 1
_PASSAGES = "passages.jsonl"
_LINES_AT_ONCE = 4096


class Saveable(Protocol):
    """A retriever that can be taken apart."""

    def parts(self) -> Parts:
        """Give everything that must be saved."""
        ...


def save(retriever: Saveable, path: str | os.PathLike[str]) -> None:
    """Save a retriever's knowledge base, replacing one that is already there.

    Whatever goes wrong on the way (a full disk, Ctrl-C), the old folder stays
    as it was and nothing else is left behind.

    Raises:
        IndexFileError: something that is not a knowledge base is in the way.
    """
    target = Path(path).absolute()
    _refuse_foreign(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}.new-", dir=target.parent))
    try:
        _write(retriever.parts(), fresh)
        _replace(target, fresh)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def read(path: str | os.PathLike[str]) -> Parts:
    """Read a folder and check it; large arrays stay on the disk, memory-mapped.

    Raises:
        IndexFileError: it is missing, damaged, of another version, or not one of ours.
    """
    folder = Path(path)
    manifest = _manifest(folder)
    for name, expected in manifest["files"].items():
        _check_file(folder, name, expected)
    passages = _passages(folder / _PASSAGES, manifest["passages"])
    arrays = {}
    blobs = {}
    for name in manifest["files"]:
        if name.endswith(".npy"):
            arrays[name.removesuffix(".npy")] = _array(folder / name)
        elif name != _PASSAGES:
            blobs[name] = (folder / name).read_bytes()
    return Parts(manifest["backend"], manifest["settings"], passages, arrays, blobs)


class _Recorder:
    """A file that counts and digests what is written to it."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._digest = hashlib.sha256()
        self._bytes = 0

    def write(self, data: Any) -> int:
        self._digest.update(data)
        self._bytes += len(memoryview(data).cast("B"))
        return self._file.write(data)

    def finish(self) -> dict[str, Any]:
        self._file.flush()
        os.fsync(self._file.fileno())
        return {"bytes": self._bytes, "sha256": self._digest.hexdigest()}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *problem: object) -> None:
        self._file.close()


def _write(parts: Parts, folder: Path) -> None:
    files: dict[str, Any] = {}
    with _Recorder(folder / _PASSAGES) as file:
        for lines in _batches(passage_line(passage) for passage in parts.passages):
            file.write("".join(lines).encode())
        files[_PASSAGES] = file.finish()
    for name, array in parts.arrays.items():
        with _Recorder(folder / f"{name}.npy") as file:
            np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)
            files[f"{name}.npy"] = file.finish()
    for name, blob in parts.blobs.items():
        with _Recorder(folder / name) as file:
            file.write(blob)
            files[name] = file.finish()
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "backend": parts.backend,
        "passages": len(parts.passages),
        "settings": dict(parts.settings),
        "files": files,
    }
    with _Recorder(folder / "kb.json") as file:
        file.write(json.dumps(manifest, indent=2).encode())
        file.finish()


def _batches(lines: Iterable[str]) -> Iterable[list[str]]:
    batch: list[str] = []
    for line in lines:
        batch.append(line)
        if len(batch) == _LINES_AT_ONCE:
            yield batch
            batch = []
    yield batch


def _replace(target: Path, fresh: Path) -> None:
    fresh.chmod(0o755)  # mkdtemp's 0700 would lock out other users of the folder
    if not target.exists():
        fresh.rename(target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old-", dir=target.parent)) / "kb"
    try:
        target.rename(old)
        fresh.rename(target)
    finally:
        if old.exists() and not target.exists():  # stopped between the two
            old.rename(target)
        shutil.rmtree(old.parent, ignore_errors=True)


def _refuse_foreign(target: Path) -> None:
    if not target.exists() or (target / "kb.json").is_file():
        return
    if not target.is_dir() or any(target.iterdir()):
        raise IndexFileError(
            f"{target} exists and is not a knowledge base; choose another folder, or remove it"
        )


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
    if wrong or _PASSAGES not in manifest["files"]:
        raise IndexFileError(
            f"{file} is damaged ({', '.join(wrong) or _PASSAGES} missing or wrong); build it again"
        )
    return manifest


def _check_file(folder: Path, name: str, expected: Any) -> None:
    file = folder / name
    if Path(name).name != name or not isinstance(expected, Mapping):
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
