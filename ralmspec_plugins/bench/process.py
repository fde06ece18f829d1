"""Another process of ours that answers questions on a local socket, and the line to it.

A local socket, not TCP: over TCP an answer of more than one write waits for the 40 ms after
which the other side acknowledges the first.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, NoReturn

from ralmspec_plugins.errors import RalmSpecError

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
