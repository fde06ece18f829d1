"""Artifacts of a saved retriever: passages, arrays, settings and files.

A folder holds `kb.json` (format, version, backend, settings, and each file's
size and SHA-256), the passages' three files (`storage/files.py`), the backend's
arrays as `.npy`, and files that only the backend can read. Nothing is
pickled. It is written next to its target and renamed, so that saving is atomic.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, Self, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from ralmspec_plugins.errors import IndexFileError
from ralmspec_plugins.retrieval.storage.corpus import (
    batched,
    passage_blocks,
    passage_line,
    places_of,
)
from ralmspec_plugins.retrieval.storage.files import (
    OFFSETS,
    PASSAGES,
    PLACES,
    PassageFile,
)
from ralmspec_plugins.retrieval.storage.format import (
    FORMAT,
    OWN,
    VERSION,
    check_target,
    file_record,
    plain_name,
    write_folder,
)
from ralmspec_plugins.types import Passage

PartT = TypeVar("PartT")
WriteTo: TypeAlias = Callable[[Callable[[bytes], Any]], None]


@dataclass(frozen=True, slots=True)
class IndexArtifacts:
    """The artifacts of a retriever. Settings are plain JSON values.

    `files` are for data that is too large for memory, or is opened by another
    library: the keys are names in the saved folder ("index.bin",
    or "lucene/segments_1" in a subfolder), the values current paths.
    They are copied when saved, and loaded as checked paths.
    `written` are such files that do not exist yet: each value is called
    with a function, and writes the file to it in pieces.
    """

    backend: str
    settings: Mapping[str, Any]
    passages: Sequence[Passage]
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    written: Mapping[str, WriteTo] = field(default_factory=dict)

    def setting(self, name: str) -> Any:
        """Return a setting.

        Raises:
            IndexFileError: kb.json lacks it.
        """
        return _found(self.settings, name, f"kb.json lacks the setting {name!r}")

    def array(self, name: str) -> NDArray[Any]:
        """Return an array.

        Raises:
            IndexFileError: it was not saved.
        """
        return _found(self.arrays, name, f"the knowledge base lacks {name}.npy")

    def file(self, name: str) -> Path:
        """Return the path of a file, which is not read.

        Raises:
            IndexFileError: it was not saved.
        """
        return _found(self.files, name, f"the knowledge base lacks {name}")


def _found(parts: Mapping[str, PartT], name: str, lacking: str) -> PartT:
    if name not in parts:
        raise IndexFileError(f"{lacking}; build it again")
    return parts[name]


_LINES_AT_ONCE = 4096
_BYTES_AT_ONCE = 1 << 20


class Saveable(Protocol):
    """A retriever that can be saved."""

    def parts(self) -> IndexArtifacts:
        """Return the artifacts to save."""
        ...


def save(retriever: Saveable, path: str | os.PathLike[str]) -> None:
    """Save a retriever's knowledge base, replacing one that is already there.

    After an error (a full disk, Ctrl-C) the old folder is
    unchanged and no other file remains.

    Raises:
        IndexFileError: the target exists, and is not a knowledge base.
    """
    target = Path(path).resolve()  # resolved, so that a link is preserved
    write_folder(target, lambda folder: write(retriever.parts(), folder, {}), check_target)


class _Recorder:
    """A file with the size and digest of its written content."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._digest = hashlib.sha256()
        self._bytes = 0

    def write(self, data: Any) -> int:
        self._digest.update(data)
        self._bytes += len(memoryview(data).cast("B"))
        return self._file.write(data)

    @property
    def entry(self) -> dict[str, Any]:
        return {"bytes": self._bytes, "sha256": self._digest.hexdigest()}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *problem: object) -> None:
        with self._file:
            if kind is None:
                self._file.flush()
                os.fsync(self._file.fileno())


def write(parts: IndexArtifacts, folder: Path, there: Mapping[str, Path]) -> None:
    """Write a knowledge base into an empty folder.

    Args:
        parts: the artifacts.
        folder: the empty folder.
        there: by name, files on this disk with the same content, which
            are linked instead.
    """
    writer = _Writer(folder, there)
    writer.passages(parts.passages)
    for name, array in parts.arrays.items():
        writer.array(f"{name}.npy", array)
    for name, source in parts.files.items():
        writer.own(name, partial(_copy, source, name))
    for name, write_to in parts.written.items():
        writer.own(name, write_to)
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "backend": parts.backend,
        "passages": len(parts.passages),
        "settings": dict(parts.settings),
        "files": writer.files,
    }
    with _Recorder(folder / "kb.json") as file:
        file.write(json.dumps(manifest, indent=2).encode())


class _Writer:
    """Writes a folder's files, and records them for kb.json."""

    def __init__(self, folder: Path, there: Mapping[str, Path]) -> None:
        self._folder = folder
        self._there = there
        self.files: dict[str, Any] = {}

    @contextmanager
    def recorder(self, name: str) -> Iterator[_Recorder]:
        with _Recorder(self._folder / name) as file:
            yield file
        self.files[name] = file.entry

    def passages(self, passages: Sequence[Passage]) -> None:
        if self._link(PASSAGES):
            assert isinstance(passages, PassageFile), "only saved passages lie on the disk already"
            offsets = passages.offsets
        elif isinstance(passages, PassageFile):
            offsets = passages.offsets
            with self.recorder(PASSAGES) as file:
                for block in passage_blocks(passages):
                    file.write(block)
        else:
            lengths = []
            with self.recorder(PASSAGES) as file:
                for some in batched(passages, _LINES_AT_ONCE):
                    lines = [passage_line(passage).encode() for passage in some]
                    lengths.append(np.fromiter(map(len, lines), dtype=np.int64))
                    file.write(b"".join(lines))
            offsets = np.concatenate([[0], np.concatenate(lengths).cumsum()])
        self.array(OFFSETS, offsets)
        self.array(PLACES, places_of(passages))

    def array(self, name: str, array: NDArray[Any]) -> None:
        if not self._link(name):
            with self.recorder(name) as file:
                np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)

    def own(self, name: str, write_to: WriteTo) -> None:
        """Write a backend's own file."""
        assert plain_name(name), f"a backend calls its file {name!r}"
        (self._folder / name).parent.mkdir(parents=True, exist_ok=True)
        with self.recorder(name) as file:
            write_to(file.write)
        self.files[name]["kind"] = OWN

    def _link(self, name: str) -> bool:
        """Link an existing file; return whether that was possible."""
        source = self._there.get(name)
        if source is None:
            return False
        try:
            (self._folder / name).hardlink_to(source)
        except OSError:
            return False
        self.files[name] = file_record(source)
        return True


def _copy(source: Path, name: str, write: Callable[[bytes], object]) -> None:
    """Copy a file in pieces."""
    try:
        with source.open("rb") as opened:
            while piece := opened.read(_BYTES_AT_ONCE):
                write(piece)
    except FileNotFoundError as error:
        raise IndexFileError(
            f"{source} does not exist any more, so {name} cannot be saved; build the index again"
        ) from error
