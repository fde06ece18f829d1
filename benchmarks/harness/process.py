"""Another process of ours that answers questions on a local socket, and the line to it.

A local socket, not TCP: over TCP an answer of more than one write waits for the 40 ms after
which the other side acknowledges the first.
"""

import argparse
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, NoReturn

import numpy as np

from ralmspec_plugins.errors import RalmSpecError
from ralmspec_plugins.retrieval import NumpyFlat, load
from ralmspec_plugins.retrieval.dense import DenseTable
from ralmspec_plugins.types import Hits, Query

_SECRET: Final = b"ralmspec-bench"  # against taking another program for ours
_READY: Final = b"ready\n"
_CALLERS: Final = 256  # that may wait to be let in
_THREADS: Final = Path("/proc/self/task")  # of this process, by their ids; on Linux
_ANSWERED: Final = b"a"  # before an answer
_FAILED: Final = b"f"  # before what went wrong


@contextmanager
def running(module: str, what: str, *arguments: str) -> Iterator[str]:
    """Run a module that calls `answer`, BLAS on one thread; give the address of its socket.

    Args:
        module: started with the address and the arguments behind it.
        what: it serves, for the error.
        arguments: further ones.

    Raises:
        RalmSpecError: it did not come up.
    """
    single = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    with TemporaryDirectory(prefix="ralmspec-") as folder:
        address = str(Path(folder) / "socket")
        with subprocess.Popen(
            [sys.executable, "-m", module, address, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **single},
        ) as process:
            try:
                assert process.stdout is not None
                if process.stdout.readline() != _READY:
                    raise RalmSpecError(f"{what} could not be served; see the error above")
                yield address
            finally:
                process.terminate()


@contextmanager
def core_for_another() -> Iterator[int | None]:
    """Keep this process off one core, for another process; None where that is not possible.

    All its threads are kept off it, those that run already and those that begin meanwhile.
    """
    cores = sorted(os.sched_getaffinity(0)) if _THREADS.is_dir() else []
    if len(cores) < 2:
        yield None
        return
    _keep_threads_to(cores[:-1])
    try:
        yield cores[-1]
    finally:
        _keep_threads_to(cores)


def keep_to(core: int | None) -> None:
    """Use this core alone, where that is possible."""
    if core is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})


def answer(address: str, reply: Callable[[bytes], bytes]) -> NoReturn:
    """Say that we are ready, and answer until whoever started us closes our stdin.

    Args:
        address: where the socket is made.
        reply: gives the answer to a question; called by several threads at once.
    """
    with Listener(address, "AF_UNIX", backlog=_CALLERS, authkey=_SECRET) as listener:
        sys.stdout.buffer.write(_READY)
        sys.stdout.flush()
        threading.Thread(target=_end_with_parent, daemon=True).start()
        while True:
            with suppress(AuthenticationError, EOFError, OSError):  # one that hung up or lied
                caller = listener.accept()
                threading.Thread(target=_converse, args=(caller, reply), daemon=True).start()


class Line:
    """Asks the process at an address, over one connection for each thread."""

    def __init__(self, address: str) -> None:
        """Call when there is something to ask."""
        self._address = address
        self._own = threading.local()

    def ask(self, question: bytes) -> bytes:
        """Ask, and wait for the answer.

        Raises:
            RalmSpecError: the other process could not answer; it goes on.
            OSError: it has ended.
            EOFError: it ended meanwhile.
        """
        if not hasattr(self._own, "connection"):
            self._own.connection = Client(self._address, "AF_UNIX", authkey=_SECRET)
        connection: Connection = self._own.connection
        try:
            connection.send_bytes(question)
            told = connection.recv_bytes()
        except BaseException:
            del self._own.connection  # an answer that comes late is not the next one's
            raise
        if told[:1] != _ANSWERED:
            raise RalmSpecError(f"the process beside could not answer: {told[1:].decode()}")
        return told[1:]


def _keep_threads_to(cores: Sequence[int]) -> None:
    for thread in _THREADS.iterdir():
        with suppress(ProcessLookupError):  # it has ended meanwhile
            os.sched_setaffinity(int(thread.name), cores)


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


def _converse(caller: Connection, reply: Callable[[bytes], bytes]) -> None:
    with caller, suppress(EOFError, OSError):  # it hung up
        while True:
            question = caller.recv_bytes()
            try:
                told = _ANSWERED + reply(question)
            except Exception as error:  # noqa: BLE001 it is the asker's
                told = _FAILED + f"{type(error).__name__}: {error}".encode()
            caller.send_bytes(told)


# A dense store in a process of its own, and the retriever that asks it.
#
# The service opens a saved knowledge base, searches it, and answers: as soon as it can, or
# when a given time has passed since it was asked, any number at once. What travels are
# vectors, ids and scores; passages and their vectors lie memory-mapped on both sides.


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
