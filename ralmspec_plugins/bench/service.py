"""A dense store in a process of its own, and the retriever that asks it.

The service opens a saved knowledge base, searches it, and answers: as soon as it can, or
when a given time has passed since it was asked, any number at once. What travels are
vectors, ids and scores; passages and their vectors lie memory-mapped on both sides.
"""

import argparse
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Hashable, Sequence
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Final, Self

import numpy as np

from ralmspec_plugins.errors import RalmSpecError
from ralmspec_plugins.records import Hits, Query
from ralmspec_plugins.retrieval import NumpyFlat, load
from ralmspec_plugins.retrieval.dense_table import DenseTable

_HEAD: Final = struct.Struct("<II")  # queries, width
_SECRET: Final = b"ralmspec-bench"  # on loopback, against taking another program for ours


class Service:
    """Runs the service for as long as a case lasts."""

    def __init__(
        self, folder: Path, *, wait_s: float, threads: int | None, core: int | None
    ) -> None:
        """Start it, and wait until it has opened the store.

        Args:
            folder: a saved knowledge base.
            wait_s: how long after a question its answer leaves; 0: as soon as it is found.
            threads: of the scan.
            core: the only core that it may use.

        Raises:
            RalmSpecError: it did not come up.
        """
        command = [sys.executable, "-m", __name__, str(folder), f"--wait-s={wait_s}"]
        command += [] if threads is None else [f"--threads={threads}"]
        command += [] if core is None else [f"--core={core}"]
        single = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **single}
        )
        assert self._process.stdout is not None
        said = self._process.stdout.readline().strip()
        if not said:
            self.close()
            raise RalmSpecError(f"the store of {folder} could not be served; see the error above")
        self.port = int(said)

    def close(self) -> None:
        """End the process; it also ends by itself when this one does."""
        self._process.terminate()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> Self:
        """Use as a context manager."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        self.close()


class ServedStore:
    """Asks the service; encodes, makes hits and ranks pools from the same files, here."""

    pure = True

    def __init__(self, port: int, here: NumpyFlat) -> None:
        """Ask the service on this port.

        Args:
            port: the service's.
            here: the store that it serves; it is not searched.
        """
        self.k = here.k
        self.inline_encode = here.inline_encode
        self.signature: Hashable = ("served", here.signature)
        self._port = port
        self._corpus = here.corpus
        self._rows = {passage.id: row for row, passage in enumerate(here.corpus.passages)}
        self._own = threading.local()

    def encode(self, text: str) -> Query:
        """Encode one query, here: vectors travel."""
        return self._corpus.encode(text)

    def search(self, queries: Sequence[Query]) -> list[Hits]:
        """Search in one round trip."""
        return self.search_wide(queries, self.k)

    def search_wide(self, queries: Sequence[Query], width: int) -> list[Hits]:
        """Search wider in one round trip."""
        vectors = np.array([query.encoding for query in queries], dtype=np.float32)
        connection = self._connection()
        connection.send_bytes(_HEAD.pack(len(vectors), width) + vectors.tobytes())
        return [self._hits(connection) for _ in queries]

    def table(self, capacity: int) -> DenseTable:
        """Make a pool's table."""
        return self._corpus.table(capacity)

    def _hits(self, connection: Connection) -> Hits:
        scores = np.frombuffer(connection.recv_bytes(), dtype=np.float64)
        ids = connection.recv_bytes().decode().split("\n")
        return self._corpus.hits(np.array([self._rows[one] for one in ids]), scores)

    def _connection(self) -> Connection:
        """Keep one connection a thread."""
        if not hasattr(self._own, "connection"):
            self._own.connection = Client(("127.0.0.1", self._port), authkey=_SECRET)
        connection: Connection = self._own.connection
        return connection


def serve(folder: Path, wait_s: float, threads: int | None) -> None:
    """Answer until whoever started this closes our stdin."""
    loaded = load(folder, verify="sizes")
    assert isinstance(loaded, NumpyFlat), "only exact dense stores are served"
    store = NumpyFlat(loaded.corpus, k=loaded.k, threads=threads)
    store.corpus.vectors.sum()  # from the disk, before anybody waits
    listener = Listener(("127.0.0.1", 0), backlog=256, authkey=_SECRET)
    print(listener.address[1], flush=True)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        connection = listener.accept()
        threading.Thread(target=_answer, args=(connection, store, wait_s), daemon=True).start()


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


def _answer(connection: Connection, store: NumpyFlat, wait_s: float) -> None:
    """Answer one connection, question by question."""
    while True:
        try:
            asked = connection.recv_bytes()
        except EOFError:
            return
        due_s = time.perf_counter() + wait_s
        count, width = _HEAD.unpack_from(asked)
        vectors = np.frombuffer(asked, dtype=np.float32, offset=_HEAD.size).reshape(count, -1)
        found = store.search_wide([Query("", vector) for vector in vectors], width)
        time.sleep(max(0.0, due_s - time.perf_counter()))
        for hits in found:
            connection.send_bytes(np.array([hit.score for hit in hits]).tobytes())
            connection.send_bytes("\n".join(hit.passage.id for hit in hits).encode())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--wait-s", type=float, default=0.0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--core", type=int)
    options = parser.parse_args()
    if options.core is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {options.core})
    serve(options.folder, options.wait_s, options.threads)
