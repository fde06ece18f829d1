"""Collections of passages: checks and order of ids, and a fingerprint."""

import hashlib
import heapq
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ralmspec_plugins.errors import ConfigError, InputError
from ralmspec_plugins.retrieval.storage.files import PassageFile
from ralmspec_plugins.types import Passage

Item = TypeVar("Item")
_ROWS_AT_ONCE = 16_384
_LINES_AT_ONCE = 4096


def places_of(passages: Sequence[Passage]) -> NDArray[np.int64]:
    """Return each row's position in the order of passage ids, by which ties are broken.

    Those of saved passages are saved, too.

    >>> places_of([Passage("b", ""), Passage("a", "")]).tolist()
    [1, 0]

    Raises:
        InputError: there are no passages, or two with the same id.
    """
    if not passages:
        raise InputError("the knowledge base is empty; give at least one passage")
    if isinstance(passages, PassageFile):
        return passages.places
    ids = [passage.id for passage in passages]
    order = sorted(range(len(ids)), key=ids.__getitem__)
    for before, after in pairwise(order):
        if ids[before] == ids[after]:
            raise InputError(
                f"two passages have the id {ids[before]!r} (rows {before} and {after}); "
                "ids must be unique"
            )
    places = np.empty(len(ids), dtype=np.int64)
    places[order] = np.arange(len(ids))
    return places


def kept(passages: Sequence[Passage]) -> Sequence[Passage]:
    """Return immutable passages: a copy of the list, or the file."""
    return passages if isinstance(passages, PassageFile) else list(passages)


def check_k(k: int) -> int:
    """Check that k is at least 1, and return it."""
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ConfigError(f"k must be a whole number of at least 1, got {k!r}")
    return k


def fingerprint(passages: Sequence[Passage], *arrays: NDArray[Any]) -> str:
    """Return a digest of passages and arrays: equal digests mean equal answers."""
    digest = hashlib.sha256()
    for block in passage_blocks(passages):
        digest.update(block)
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        for start in range(0, len(array), _ROWS_AT_ONCE):
            digest.update(np.ascontiguousarray(array[start : start + _ROWS_AT_ONCE]).data)
    return digest.hexdigest()[:32]


def passage_blocks(passages: Sequence[Passage]) -> Iterator[bytes]:
    """Yield passages as lines, many at a time."""
    if isinstance(passages, PassageFile):
        yield from passages.blocks()
        return
    for some in batched(passages, _LINES_AT_ONCE):
        yield "".join(map(passage_line, some)).encode()


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield lists of one size from a stream; the last may be shorter."""
    stream = iter(items)
    while some := list(islice(stream, size)):
        yield some


def passage_line(passage: Passage) -> str:
    """Return a passage as one line of JSON.

    Raises:
        InputError: its metadata cannot be written as JSON.
    """
    record: dict[str, Any] = {"id": passage.id, "text": passage.text}
    if passage.title:
        record["title"] = passage.title
    if passage.metadata:
        record["metadata"] = dict(passage.metadata)
    try:
        return json.dumps(record) + "\n"
    except (TypeError, ValueError) as error:
        raise InputError(
            f"the metadata of passage {passage.id!r} cannot be written as JSON: {error}"
        ) from error


# Duplicate ids, and the order of all ids, with a few bytes of memory for each.


_RUN = 1 << 18  # ids sorted in memory at a time
_PART = "sorted-ids-"


class SeenIds:
    """Records ids by 64 bits of their hash: eight bytes for each, of any length.

    Two ids may have equal hashes (a probability of one in a hundred thousand with twenty
    million ids), so the result has suspects, which the caller must check.
    """

    def __init__(self) -> None:
        """Create an empty record."""
        self._runs: list[NDArray[np.int64]] = []  # each sorted, each over twice as long as the next

    def add(self, ids: Sequence[str]) -> set[str]:
        """Add ids, and return those that may have been added before, or occur twice here."""
        hashes = np.fromiter(map(hash, ids), dtype=np.int64, count=len(ids))
        fresh = np.sort(hashes)
        suspects = set(fresh[1:][fresh[1:] == fresh[:-1]].tolist())
        for run in self._runs:
            at = np.minimum(np.searchsorted(run, fresh), len(run) - 1)
            suspects.update(fresh[run[at] == fresh].tolist())
        self._keep(fresh)
        if not suspects:
            return set()
        return {name for name, code in zip(ids, hashes.tolist(), strict=True) if code in suspects}

    def _keep(self, fresh: NDArray[np.int64]) -> None:
        """Merge runs of about the same length, to limit their number."""
        if len(fresh):
            self._runs.append(fresh)
        while len(self._runs) > 1 and len(self._runs[-2]) <= 2 * len(self._runs[-1]):
            both = np.concatenate([self._runs.pop(), self._runs.pop()])
            both.sort()
            self._runs.append(both)


def places_by_merging(ids: Iterable[str], folder: Path) -> NDArray[np.int64]:
    """Return each id's position in their order, as `places_of` does, sorted on the disk.

    Args:
        ids: in the order of rows.
        folder: for sorted parts, which only exist from 262,144 ids on; they are removed
            at the end, including those of a killed process.

    Raises:
        InputError: an id occurs twice.
    """
    for stale in folder.glob(f"{_PART}*"):
        stale.unlink()
    files: list[Path] = []
    count = 0
    run: list[tuple[str, int]] = []
    for some in batched(ids, _RUN):
        if run:
            files.append(_written(run, folder / f"{_PART}{len(files):05d}"))
        run = sorted(zip(some, range(count, count + len(some)), strict=True))
        count += len(some)
    places = np.empty(count, dtype=np.int64)
    before: tuple[str, int] | None = None
    for place, (name, row) in enumerate(heapq.merge(*map(_read, files), run)):
        if before is not None and before[0] == name:
            raise InputError(
                f"two passages have the id {name!r} (rows {before[1]} and {row}); "
                "ids must be unique"
            )
        places[row] = place
        before = name, row
    for file in files:
        file.unlink()
    return places


def _written(run: list[tuple[str, int]], file: Path) -> Path:
    with file.open("w", encoding="ascii") as lines:
        lines.writelines(json.dumps(pair) + "\n" for pair in run)
    return file


def _read(file: Path) -> Iterator[tuple[str, int]]:
    with file.open(encoding="ascii") as lines:
        for line in lines:
            name, row = json.loads(line)
            yield name, row
