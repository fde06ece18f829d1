"""The application on uvicorn: a socket, signals, and an end that loses no answer."""

import asyncio
import gc
import ipaddress
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, ClassVar, Final

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.serving.limits import Admission, Limits

LOOPBACK_NAMES: Final = ("localhost", "127.0.0.1", "[::1]")
_CONNECTIONS: Final = 2048  # open at the same time, idle ones included
# Longer than clients and proxies keep an idle connection: they would send into one that closes.
_KEEP_ALIVE_S: Final = 75
_THRESHOLDS: Final = (10_000, 20, 50)  # of the garbage collector; Python's are 700, 10 and 10


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address.

    >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("localhost")
    (True, True, True)
    >>> is_loopback("0.0.0.0"), is_loopback("example.org")
    (False, False)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that accepts connections at once; port 0 is any free one.

    Raises:
        ConfigError: the port is none.
        OSError: the address is taken, or none of this machine.
    """
    if not 0 <= port < 1 << 16:
        raise ConfigError(f"port must be from 0 to 65535, got {port}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=_CONNECTIONS)


def address(listening: socket.socket) -> str:
    """Return the URL of the API."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"


def run(
    app: Any,
    listening: socket.socket,
    *,
    limits: Limits,
    drain_s: float = 30.0,
    show: Callable[[Admission], None] | None = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C; then accept nothing more, and finish what is under way.

    Args:
        app: what `create_app` returned.
        listening: the socket.
        limits: those of the application.
        drain_s: how long answers under way may take at the end; what is left is cancelled.
        show: called once a second with the counts of requests.

    Raises:
        KeyboardInterrupt: it was Ctrl-C, after all has ended.
    """

    async def notify() -> None:
        if show is not None:
            show(app.state.admission)

    class Connection(_Connection):
        header_timeout_s = limits.header_timeout_s

    config = uvicorn.Config(
        app,
        http=Connection,
        h11_max_incomplete_event_size=limits.max_header_bytes + (8 << 10),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=_CONNECTIONS,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(drain_s)),
        callback_notify=notify,
        timeout_notify=1,
    )
    # uvicorn raises the signal again when all has ended, which would end the process by it.
    before = signal.signal(signal.SIGTERM, _ended_by_server)
    try:
        with short_collections():
            asyncio.run(_Server(config, app.state.admission).serve(sockets=[listening]))
    finally:
        signal.signal(signal.SIGTERM, before)
        listening.close()


@contextmanager
def short_collections() -> Iterator[None]:
    """Keep what is there now out of Python's garbage collections, and make these rarer.

    One over all objects of a server blocks its event loop for a tenth of a second.
    """
    before, frozen = gc.get_threshold(), gc.get_freeze_count()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        if not frozen:  # by other code
            gc.unfreeze()


class _Connection(H11Protocol):  # of uvicorn's the one that has a limit of headers
    """A connection that is closed if a request's headers do not arrive in time."""

    header_timeout_s: ClassVar[float]
    _closing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watching()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Limit the time of headers that have begun; the time is not prolonged by more of them."""
        if self.conn.their_state is not h11.IDLE:
            self._stop_watching()
        elif self._closing is None:
            self._closing = self.loop.call_later(self.header_timeout_s, self.transport.close)

    def _stop_watching(self) -> None:
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None


class _Server(uvicorn.Server):
    """A server that says in the counts of requests that it stops."""

    def __init__(self, config: uvicorn.Config, admission: Admission) -> None:
        super().__init__(config)
        self._admission = admission

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._admission.stopping = True
        super().handle_exit(sig, frame)


def _ended_by_server(*_: object) -> None:
    """Do nothing: the server has ended by this signal."""
