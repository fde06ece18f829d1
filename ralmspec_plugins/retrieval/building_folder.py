"""The folder beside the target where a knowledge base grows: its lock, its files, its end.

`passages.jsonl` and `vectors.npy` only ever grow, and are cut back to what the
journal says when a build is gone on with. They are the finished knowledge
base's own files: at the end they are linked into it, not copied.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ralmspec_plugins.errors import ConfigError, IndexFileError
from ralmspec_plugins.retrieval.building_journal import Entry, start_anew
from ralmspec_plugins.retrieval.growing_file import GrowingArray, GrowingFile, digest
from ralmspec_plugins.retrieval.passage_file import OFFSETS, PASSAGES, PLACES
from ralmspec_plugins.retrieval.ranking import Vectors
from ralmspec_plugins.retrieval.replacing import sync_folder

VECTORS = "vectors.npy"
LOCK = "lock"


def folder_of(target: Path) -> Path:
    """Say where the knowledge base of this name grows."""
    return target.parent / f".{target.name}.building"


@contextmanager
def locked(target: Path) -> Iterator[Path]:
    """Hold a target's building folder against all other builders; a crash lets go of it.

    Raises:
        IndexFileError: somebody else is building there.
    """
    folder = folder_of(target)
    lock = _lock(folder, target)
    try:
        for stale in folder.parent.glob(f".{target.name}.done-*"):
            shutil.rmtree(stale, ignore_errors=True)
        yield folder
    finally:
        os.close(lock)


def _lock(folder: Path, target: Path) -> int:
    try:
        import fcntl
    except ImportError as error:  # Windows
        raise ConfigError(
            "building on the disk needs a Unix system; build in memory with open_retriever, and "
            "save that"
        ) from error
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # its holder has just finished, and removed the folder
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock), (folder / LOCK).stat()):
                return lock
        except FileNotFoundError:  # removed between opening and locking
            pass
        except BlockingIOError as error:
            os.close(lock)
            raise IndexFileError(
                f"{target} is being built by another process already; wait until that one has "
                "finished, or choose another folder"
            ) from error
        except OSError:
            os.close(lock)
            raise
        os.close(lock)


def remove(folder: Path) -> None:
    """Remove a building folder that is held; a new one may then be begun at once."""
    prefix = folder.name.removesuffix("building") + "done-"
    gone = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    folder.rename(gone / "building")
    shutil.rmtree(gone, ignore_errors=True)


def clear(folder: Path) -> None:
    """Remove all but the lock."""
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != LOCK:
            entry.unlink()


class GrowingFiles:
    """Passages and vectors on the disk, batch after batch."""

    def __init__(self, folder: Path, entries: Sequence[Entry]) -> None:
        """Go on behind the last entry.

        Raises:
            IndexFileError: the files hold less than what was recorded.
        """
        self._folder = folder
        self._ends = [(0, 0), *((entry.passages, entry.lines_end) for entry in entries)]
        passages, lines_end = self._ends[-1]
        self._lines = GrowingFile(folder / PASSAGES, lines_end)
        self._vectors = self._array(entries[-1].dimension, passages) if entries else None

    def _array(self, dimension: int, rows: int) -> GrowingArray:
        return GrowingArray(self._folder / VECTORS, "<f4", (dimension,), rows)

    def append(self, lines: Sequence[bytes], vectors: Vectors) -> Entry:
        """Write a batch and see it to the disk; give what the journal must say."""
        dimension = vectors.shape[1]
        first = self._vectors is None
        array = self._vectors = self._vectors or self._array(dimension, 0)
        passages, lines_end = self._ends[-1]
        content = b"".join(lines)
        self._lines.add(content)
        numbers = array.add(vectors)
        if first:
            sync_folder(self._folder)  # their names, too
        self._ends.append((passages + len(lines), lines_end + len(content)))
        return Entry(*self._ends[-1], digest(content), numbers, dimension)

    def check(self, number: int, entry: Entry, lines: Sequence[bytes]) -> Vectors:
        """Compare a recorded batch with the input and with the disk, and give its vectors.

        Raises:
            IndexFileError: the passages are others, or the files are not what was written.
        """
        assert self._vectors is not None, "a batch is recorded, so there is a file"
        first, lines_start = self._ends[number]
        rows = f"passages {first} to {entry.passages - 1}"
        if digest(b"".join(lines)) != entry.lines:
            raise start_anew(
                f"{rows} are not those that were encoded before", "give the same to go on"
            )
        written = self._lines.read(lines_start, entry.lines_end)
        content = self._vectors.read(first, entry.passages)
        if (digest(written), digest(content)) != (entry.lines, entry.vectors):
            raise start_anew(f"what {self._folder} holds of {rows} is not what was written")
        return np.frombuffer(content, dtype="<f4").reshape(-1, entry.dimension)

    def ids(self, count: int) -> Iterator[str]:
        """Read the ids of the first passages again."""
        if not count:
            return
        with (self._folder / PASSAGES).open("rb") as lines:
            for line in islice(lines, count):
                yield json.loads(line)["id"]

    def finish(self, offsets: NDArray[np.int64], places: NDArray[np.int64]) -> None:
        """Complete the files: the number of vectors, and what finds and orders passages."""
        assert self._vectors is not None, "an empty knowledge base was not refused"
        self._vectors.finish(len(places))
        for name, array in ((OFFSETS, offsets), (PLACES, places)):
            (self._folder / name).unlink(missing_ok=True)
            with (self._folder / name).open("wb") as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
                os.fsync(file.fileno())
