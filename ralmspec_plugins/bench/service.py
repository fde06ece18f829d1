"""A dense store in a process of its own, and the retriever that asks it.

The service opens a saved knowledge base, searches it, and answers: as soon as it can, or
when a given time has passed since it was asked, any number at once. What travels are
vectors, ids and scores; passages and their vectors lie memory-mapped on both sides.
"""

import argparse
import struct
import time
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np

from ralmspec_plugins.bench.process import Line, answer, keep_to, running
from ralmspec_plugins.records import Hits, Query
from ralmspec_plugins.retrieval import NumpyFlat, load
from ralmspec_plugins.retrieval.dense_table import DenseTable

_HEAD: Final = struct.Struct("<II")  # queries, width


@contextmanager
def service(folder: Path, *, wait_s: float, threads: int | None, core: int | None) -> Iterator[str]:
    """Run the service for as long as a case lasts; give its address.

    Args:
        folder: a saved knowledge base.
        wait_s: how long after a question its answer leaves; 0: as soon as it is found.
        threads: of the scan.
        core: the only core that it may use.

    Raises:
        RalmSpecError: it did not come up.
    """
    options = [f"--wait-s={wait_s}"]
    options += [] if threads is None else [f"--threads={threads}"]
    options += [] if core is None else [f"--core={core}"]
    with running(__name__, f"the store of {folder}", str(folder), *options) as address:
        yield address


class ServedStore:
    """Asks the service; encodes, makes hits and ranks pools from the same files, here."""

    pure = True

    def __init__(self, address: str, here: NumpyFlat) -> None:
        """Ask the service at this address.

        Args:
            address: the service's.
            here: the store that it serves; it is not searched.
        """
        self.k = here.k
        self.inline_encode = here.inline_encode
        self.signature: Hashable = ("served", here.signature)
        self._corpus = here.corpus
        self._rows = {passage.id: row for row, passage in enumerate(here.corpus.passages)}
        self._line = Line(address)

    def encode(self, text: str) -> Query:
        """Encode one query, here: vectors travel."""
        return self._corpus.encode(text)

    def search(self, queries: Sequence[Query]) -> list[Hits]:
        """Search in one round trip."""
        return self.search_wide(queries, self.k)

    def search_wide(self, queries: Sequence[Query], width: int) -> list[Hits]:
        """Search wider in one round trip; there is none for no query."""
        if not queries:
            return []
        vectors = np.array([query.encoding for query in queries], dtype=np.float32)
        found = self._line.ask(_HEAD.pack(len(vectors), width) + vectors.tobytes())
        count, wide = _HEAD.unpack_from(found)
        scores = np.frombuffer(found, dtype=np.float64, count=count * wide, offset=_HEAD.size)
        rows = [self._rows[one] for one in found[_HEAD.size + scores.nbytes :].decode().split("\n")]
        shape = count, wide
        pairs = zip(np.reshape(rows, shape), scores.reshape(shape), strict=True)
        return [self._corpus.hits(*pair) for pair in pairs]

    def table(self, capacity: int) -> DenseTable:
        """Make a pool's table."""
        return self._corpus.table(capacity)


def serve(address: str, folder: Path, wait_s: float, threads: int | None) -> None:
    """Answer until whoever started this closes our stdin."""
    loaded = load(folder, verify="sizes")
    assert isinstance(loaded, NumpyFlat), "only exact dense stores are served"
    store = NumpyFlat(loaded.corpus, k=loaded.k, threads=threads)
    store.corpus.vectors.sum()  # from the disk, before anybody waits

    def reply(asked: bytes) -> bytes:
        due_s = time.perf_counter() + wait_s
        count, width = _HEAD.unpack_from(asked)
        vectors = np.frombuffer(asked, dtype=np.float32, offset=_HEAD.size).reshape(count, -1)
        found = store.search_wide([Query("", vector) for vector in vectors], width)
        scores = np.array([[hit.score for hit in hits] for hits in found])
        ids = "\n".join(hit.passage.id for hits in found for hit in hits)
        time.sleep(max(0.0, due_s - time.perf_counter()))
        return _HEAD.pack(*scores.shape) + scores.tobytes() + ids.encode()

    answer(address, reply)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("address")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--wait-s", type=float, default=0.0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--core", type=int)
    options = parser.parse_args()
    keep_to(options.core)
    serve(options.address, options.folder, options.wait_s, options.threads)
