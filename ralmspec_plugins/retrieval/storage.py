"""Save a knowledge base as a folder, whole or not at all.

A folder holds `kb.json` (format, version, backend, settings, and each file's
size and SHA-256), `passages.jsonl`, the backend's arrays as `.npy`, and files
that only the backend can read. Nothing is ever pickled. It is written beside
its final place and renamed.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, Self

import numpy as np

from ralmspec_plugins.errors import IndexFileError
from ralmspec_plugins.retrieval.corpus import passage_line
from ralmspec_plugins.retrieval.parts import Parts

FORMAT = "ralmspec-knowledge-base"
VERSION = 1
PASSAGES = "passages.jsonl"
OWN = "own"  # kb.json marks so the files that are given back as paths
_LINES_AT_ONCE = 4096
_BYTES_AT_ONCE = 1 << 20


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
    check_target(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}.new-", dir=target.parent))
    try:
        _write(retriever.parts(), fresh)
        check_target(target)  # again: writing can take minutes, and others may have come
        _replace(target, fresh)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def check_target(path: str | os.PathLike[str]) -> None:
    """Refuse a place that `save` would refuse, so that it can be known before the work.

    Free places, empty folders and saved knowledge bases are accepted.

    Raises:
        IndexFileError: something that is not a knowledge base is in the way.
    """
    target = Path(path)
    if not target.exists() or (target / "kb.json").is_file():
        return
    if not target.is_dir() or any(target.iterdir()):
        raise IndexFileError(
            f"{target} exists and is not a knowledge base; choose another folder, or remove it"
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
    with _Recorder(folder / PASSAGES) as file:
        for lines in _batches(passage_line(passage) for passage in parts.passages):
            file.write("".join(lines).encode())
        files[PASSAGES] = file.finish()
    for name, array in parts.arrays.items():
        with _Recorder(folder / f"{name}.npy") as file:
            np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)
            files[f"{name}.npy"] = file.finish()
    for name, blob in parts.blobs.items():
        with _Recorder(folder / name) as file:
            file.write(blob)
            files[name] = file.finish()
    for name, source in parts.files.items():
        files[name] = {**_copy(source, folder, name), "kind": OWN}
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


def _copy(source: Path, folder: Path, name: str) -> dict[str, Any]:
    """Copy a backend's own file, piece by piece."""
    assert plain_name(name), f"a backend calls its file {name!r}"
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    try:
        with source.open("rb") as opened, _Recorder(folder / name) as file:
            while piece := opened.read(_BYTES_AT_ONCE):
                file.write(piece)
            return file.finish()
    except FileNotFoundError as error:
        raise IndexFileError(
            f"{source} is gone, so {name} cannot be saved; build the index again"
        ) from error


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
