"""The folder where a datastore grows: its arrays, portion after portion, and its end."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ralmspec_plugins.knn.building_windows import Window, digest_of
from ralmspec_plugins.knn.datastore_files import (
    ABOUT,
    DOCUMENT_ENDS,
    FILES,
    KEYS,
    VALUES,
    about_bytes,
)
from ralmspec_plugins.knn.datastore_info import DatastoreInfo
from ralmspec_plugins.retrieval.building_journal import start_anew
from ralmspec_plugins.retrieval.growing_file import GrowingArray, digest
from ralmspec_plugins.retrieval.replacing import sync_folder


@dataclass(frozen=True, slots=True)
class Portion:
    """A portion that is on the disk."""

    entries: int  # from the beginning
    windows: str  # SHA-256 of what the model read
    keys: str  # and of its keys
    values: str  # and of its values


class GrowingStore:
    """Keys and values on the disk; keys are never held for more than a portion."""

    def __init__(self, folder: Path, portions: Sequence[Portion], dimension: int) -> None:
        """Go on behind the last portion.

        Raises:
            IndexFileError: the files hold less than what was recorded.
        """
        self._folder = folder
        self._ends = [0, *(portion.entries for portion in portions)]
        self._keys = GrowingArray(folder / KEYS, "<f2", (dimension,), self._ends[-1])
        self._values = GrowingArray(folder / VALUES, "<i4", (), self._ends[-1])
        sync_folder(folder)  # their names, too

    def append(self, windows: Sequence[Window], keys: NDArray[np.float16]) -> Portion:
        """Write a portion and see it to the disk; give what the journal must say."""
        entries = self._ends[-1] + len(keys)
        portion = Portion(
            entries, digest_of(windows), self._keys.add(keys), self._values.add(_values(windows))
        )
        self._ends.append(entries)
        return portion

    def check(self, number: int, portion: Portion, windows: Sequence[Window]) -> None:
        """Compare a recorded portion with the texts and with the disk.

        Raises:
            IndexFileError: the texts are others, or the files are not what was written.
        """
        first = self._ends[number]
        entries = f"entries {first} to {portion.entries - 1}"
        if digest_of(windows) != portion.windows:
            raise start_anew(
                f"the texts of {entries} are not those that were read before",
                "give the same to go on",
            )
        keys = self._keys.read(first, portion.entries)
        values = self._values.read(first, portion.entries)
        if (digest(keys), digest(values)) != (portion.keys, portion.values):
            raise start_anew(f"what {self._folder} holds of {entries} is not what was written")

    def finish(self, document_ends: Any, about: DatastoreInfo, fresh: Path) -> None:
        """Complete the files, and give a new folder the whole datastore.

        The arrays are linked into it, not copied, where the file system can.
        """
        for array in (self._keys, self._values):
            array.finish(about.entries)
        (self._folder / DOCUMENT_ENDS).unlink(missing_ok=True)
        _written(self._folder / DOCUMENT_ENDS, np.asarray(document_ends, dtype="<i8"))
        for name in FILES:
            _link(self._folder / name, fresh / name)
        with (fresh / ABOUT).open("wb") as file:
            file.write(about_bytes(about, fresh))
            file.flush()
            os.fsync(file.fileno())


def _values(windows: Sequence[Window]) -> NDArray[np.int32]:
    return np.concatenate([window.following for window in windows])


def _written(file: Path, array: NDArray[Any]) -> None:
    with file.open("wb") as opened:
        np.lib.format.write_array(opened, array, allow_pickle=False)
        opened.flush()
        os.fsync(opened.fileno())


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)
        with target.open("rb") as copied:
            os.fsync(copied.fileno())
