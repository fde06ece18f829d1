"""The application on uvicorn: a socket, signals, and an end that loses no answer."""

import asyncio
import ipaddress
import signal
import socket
from collections.abc import Callable
from typing import Any, Final

import uvicorn

from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.serving.limits import Admission, Limits

LOOPBACK_NAMES: Final = ("localhost", "127.0.0.1", "[::1]")
_CONNECTIONS: Final = 2048  # open at the same time, idle ones included
# Longer than clients and proxies keep an idle connection: they would send into one that closes.
_KEEP_ALIVE_S: Final = 75


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

    config = uvicorn.Config(
        app,
        http="h11",  # it has a limit of headers
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
        asyncio.run(uvicorn.Server(config).serve(sockets=[listening]))
    finally:
        signal.signal(signal.SIGTERM, before)
        listening.close()


def _ended_by_server(*_: object) -> None:
    """Do nothing: the server has ended by this signal."""
