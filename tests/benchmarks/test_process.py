"""Another process that answers: errors come back, callers may hang up, a core is kept free."""

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.harness.process import Line, core_for_another, running
from ralmspec_plugins.errors import RalmSpecError

ECHOING = """
import sys
from benchmarks.harness.process import answer

def reply(question):
    if question == b"bad":
        raise ValueError("refused")
    return question

answer(sys.argv[1], reply)
"""


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where questions are answered with themselves."""
    (tmp_path / "echoing.py").write_text(ECHOING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with running("echoing", "an echo") as address:
        yield address


def test_an_error_comes_back_and_the_line_stays(address: str) -> None:
    """Nobody waits for an answer that never comes, and the next question is answered."""
    line = Line(address)

    with pytest.raises(RalmSpecError, match="could not answer: ValueError: refused"):
        line.ask(b"bad")
    assert line.ask(b"good") == b"good"


def test_who_hangs_up_ends_nothing(address: str) -> None:
    """Not before it is let in, and not after it has asked."""
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(address)

    assert Line(address).ask(b"good") == b"good"


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="cores are kept free on Linux")
def test_all_threads_are_kept_off_a_core_and_given_it_back() -> None:
    """Those that run before, and those that begin inside."""
    cores = os.sched_getaffinity(0)
    if len(cores) < 2:
        pytest.skip("there is one core only")
    ends = threading.Event()
    older = threading.Thread(target=ends.wait)
    newer = threading.Thread(target=ends.wait)
    older.start()

    with core_for_another() as core:
        newer.start()
        inside = [os.sched_getaffinity(thread.native_id or 0) for thread in (older, newer)]
    after = [os.sched_getaffinity(thread.native_id or 0) for thread in (older, newer)]
    ends.set()
    older.join()
    newer.join()

    assert inside == [cores - {core}] * 2
    assert after == [cores] * 2
