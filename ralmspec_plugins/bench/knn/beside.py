"""An exact search in a process of its own, and the search that asks it.

What travels are hidden states, ids and distances; the datastore lies on the disk, mapped by
both processes, and its values are looked up here.
"""

import argparse
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Final

import numpy as np

from ralmspec_plugins.errors import RalmSpecError
from ralmspec_plugins.knn.datastore import Datastore
from ralmspec_plugins.knn.exact import ExactSearch, encode_no_text
from ralmspec_plugins.knn.neighbours import Neighbours
from ralmspec_plugins.knn.search_keys import hidden_states
from ralmspec_plugins.records import Query

_HEAD: Final = struct.Struct("<II")  # queries, width
_SECRET: Final = b"ralmspec-bench"  # on loopback, against taking another program for ours


class BesideSearch:
    """Asks the process beside; the first k of what it finds are those of any search for k."""

    exact = True
    pure = True
    inline_encode = True

    def __init__(self, port: int, datastore: Datastore, k: int) -> None:
        """Ask the process on this port.

        Args:
            port: the process's.
            datastore: the one that it searches.
            k: how many neighbours a query gets.
        """
        self.k = k
        self.datastore = datastore
        self.size = len(datastore)
        self.signature: Hashable = ("beside", k, datastore.signature)
        self._port = port
        self._own = threading.local()

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
        """Find the `width` nearest entries of each query in one round trip."""
        hidden = hidden_states(queries, self.datastore.about.dimension)
        connection = self._connection()
        connection.send_bytes(_HEAD.pack(len(hidden), width) + hidden.tobytes())
        return [self._received(connection) for _ in queries]

    def _received(self, connection: Connection) -> Neighbours:
        ids = np.frombuffer(connection.recv_bytes(), dtype=np.int64)
        distances = np.frombuffer(connection.recv_bytes(), dtype=np.float64)
        return Neighbours(ids, self.datastore.values[ids], distances)

    def _connection(self) -> Connection:
        """Keep one connection a thread."""
        if not hasattr(self._own, "connection"):
            self._own.connection = Client(("127.0.0.1", self._port), authkey=_SECRET)
        connection: Connection = self._own.connection
        return connection


@contextmanager
def served(folder: Path) -> Iterator[int]:
    """Search a datastore's folder in another process, on a core of its own; give its port.

    Raises:
        RalmSpecError: it did not come up.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    command = [sys.executable, "-m", __name__, str(folder)]
    if len(cores) > 1:
        command += [f"--core={cores[-1]}"]
        os.sched_setaffinity(0, set(cores[:-1]))
    single = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **single}
    )
    try:
        assert process.stdout is not None
        said = process.stdout.readline().strip()
        if not said:
            raise RalmSpecError(f"{folder} could not be served; see the error above")
        yield int(said)
    finally:
        process.terminate()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        if len(cores) > 1:
            os.sched_setaffinity(0, set(cores))


def serve(folder: Path) -> None:
    """Answer until whoever started this closes our stdin."""
    search = ExactSearch(Datastore.open(folder), threads=1)
    listener = Listener(("127.0.0.1", 0), backlog=16, authkey=_SECRET)
    print(listener.address[1], flush=True)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        connection = listener.accept()
        threading.Thread(target=_answer, args=(connection, search), daemon=True).start()


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


def _answer(connection: Connection, search: ExactSearch) -> None:
    """Answer one connection, question by question."""
    while True:
        try:
            asked = connection.recv_bytes()
        except EOFError:
            return
        count, width = _HEAD.unpack_from(asked)
        hidden = np.frombuffer(asked, dtype=np.float32, offset=_HEAD.size).reshape(count, -1)
        for near in search.search_wide([Query("", one) for one in hidden], width):
            connection.send_bytes(near.ids.tobytes())
            connection.send_bytes(near.distances.tobytes())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--core", type=int)
    options = parser.parse_args()
    if options.core is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {options.core})
    serve(options.folder)
