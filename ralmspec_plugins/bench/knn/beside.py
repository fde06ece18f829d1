"""An exact search in a process of its own, and the search that asks it.

What travels are hidden states, ids and distances; the datastore lies on the disk, mapped by
both processes, and its values are looked up here.
"""

import argparse
import struct
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np

from ralmspec_plugins.bench.process import Line, answer, core_for_another, keep_to, running
from ralmspec_plugins.knn.datastore import Datastore
from ralmspec_plugins.knn.exact import ExactSearch, encode_no_text
from ralmspec_plugins.knn.neighbours import Neighbours
from ralmspec_plugins.knn.search_keys import hidden_states
from ralmspec_plugins.records import Query

_HEAD: Final = struct.Struct("<II")  # queries, width


class BesideSearch:
    """Asks the process beside; the first k of what it finds are those of any search for k."""

    exact = True
    pure = True
    inline_encode = True

    def __init__(self, address: str, datastore: Datastore, k: int) -> None:
        """Ask the process at this address.

        Args:
            address: the process's.
            datastore: the one that it searches.
            k: how many neighbours a query gets.
        """
        self.k = k
        self.datastore = datastore
        self.size = len(datastore)
        self.signature: Hashable = ("beside", k, datastore.signature)
        self._line = Line(address)

    def encode(self, text: str) -> Query:
        """Refuse a text.

        Raises:
            InputError: always.
        """
        return encode_no_text(text)

    def search(self, queries: Sequence[Query]) -> list[Neighbours]:
        """Find the k nearest entries of each query in one round trip."""
        return self.search_wide(queries, self.k)

    def search_wide(self, queries: Sequence[Query], width: int) -> list[Neighbours]:
        """Find the `width` nearest entries of each query in one round trip; none for no query."""
        if not queries:
            return []
        hidden = hidden_states(queries, self.datastore.about.dimension)
        found = self._line.ask(_HEAD.pack(len(hidden), width) + hidden.tobytes())
        half = len(found) // 2
        ids = np.frombuffer(found[:half], dtype=np.int64).reshape(len(hidden), -1)
        distances = np.frombuffer(found[half:], dtype=np.float64).reshape(len(hidden), -1)
        return [
            Neighbours(near, self.datastore.values[near], far)
            for near, far in zip(ids, distances, strict=True)
        ]


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Search a datastore's folder in another process, on a core of its own; give its address.

    Raises:
        RalmSpecError: it did not come up.
    """
    with core_for_another() as core:
        only = () if core is None else (f"--core={core}",)
        with running(__name__, str(folder), str(folder), *only) as address:
            yield address


def serve(address: str, folder: Path) -> None:
    """Answer until whoever started this closes our stdin."""
    search = ExactSearch(Datastore.open(folder), threads=1)

    def reply(asked: bytes) -> bytes:
        count, width = _HEAD.unpack_from(asked)
        hidden = np.frombuffer(asked, dtype=np.float32, offset=_HEAD.size).reshape(count, -1)
        found = search.search_wide([Query("", one) for one in hidden], width)
        ids = b"".join(near.ids.tobytes() for near in found)
        return ids + b"".join(near.distances.tobytes() for near in found)

    answer(address, reply)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("address")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--core", type=int)
    options = parser.parse_args()
    keep_to(options.core)
    serve(options.address, options.folder)
