"""Passages as a whole: ids checked and put in order, and one fingerprint of everything."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ralmspec_plugins.errors import ConfigError, InputError
from ralmspec_plugins.retrieval.passage_file import PassageFile
from ralmspec_plugins.types import Passage

Item = TypeVar("Item")
_ROWS_AT_ONCE = 16_384
_LINES_AT_ONCE = 4096


def places_of(passages: Sequence[Passage]) -> NDArray[np.int64]:
    """Give each row its place in the order of passage ids, by which ties are broken.

    Saved passages have theirs saved with them.

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
    """Hold passages so that the caller can change nothing: a copy of the list, or the file."""
    return passages if isinstance(passages, PassageFile) else list(passages)


def check_k(k: int) -> int:
    """Refuse a k that asks for nothing."""
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ConfigError(f"k must be a whole number of at least 1, got {k!r}")
    return k


def fingerprint(passages: Sequence[Passage], *arrays: NDArray[Any]) -> str:
    """Digest passages and arrays: equal digests mean equal answers."""
    digest = hashlib.sha256()
    for block in passage_blocks(passages):
        digest.update(block)
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        for start in range(0, len(array), _ROWS_AT_ONCE):
            digest.update(np.ascontiguousarray(array[start : start + _ROWS_AT_ONCE]).data)
    return digest.hexdigest()[:32]


def passage_blocks(passages: Sequence[Passage]) -> Iterator[bytes]:
    """Write passages as lines, many at a time."""
    if isinstance(passages, PassageFile):
        yield from passages.blocks()
        return
    for some in batched(passages, _LINES_AT_ONCE):
        yield "".join(map(passage_line, some)).encode()


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Cut a stream into lists of one size, of which the last may be shorter."""
    stream = iter(items)
    while some := list(islice(stream, size)):
        yield some


def passage_line(passage: Passage) -> str:
    """Write a passage as one line of JSON.

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
