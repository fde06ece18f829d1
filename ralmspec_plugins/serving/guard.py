"""What a request must pass before the application sees it: its host, size and key."""

import asyncio
import uuid
from collections.abc import Iterable, Sequence
from typing import Any, Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ralmspec_plugins.serving.answering import ApiErrorResponse
from ralmspec_plugins.serving.json_body import check_json
from ralmspec_plugins.serving.keys import ANYONE, ApiKeys, Caller
from ralmspec_plugins.serving.limits import Limits
from ralmspec_plugins.serving.openai_api import ApiError

OPEN_PATHS: Final = ("/healthz", "/openapi.json")  # no key is needed
CALLER: Final = "ralmspec.caller"  # in the scope
REQUEST_ID: Final = "ralmspec.request_id"
_MOST_DIGITS: Final = 20  # of a length; Python reads no number of thousands of digits


class Guard:
    """Refuses requests, cheapest check first; a body is only read once its sender is known."""

    def __init__(
        self, app: ASGIApp, *, limits: Limits, keys: ApiKeys | None, hosts: Iterable[str] | None
    ) -> None:
        """Guard an application.

        Args:
            app: the application.
            limits: those of header and body are applied here.
            keys: the keys of the server; `None`: anyone may ask.
            hosts: the names that clients may call this server by; `None`: any.
        """
        self._app = app
        self._limits = limits
        self._keys = keys
        self._hosts = None if hosts is None else frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope[REQUEST_ID] = request_id = f"req-{uuid.uuid4().hex}"
        named = _Named(send, request_id)
        try:
            self._check_headers(scope)
            scope[CALLER] = self._caller(scope)
            body = await self._body(scope, receive)
            check_json(body or b"")
        except ApiError as error:
            await ApiErrorResponse(error)(scope, receive, named)
            return
        if body is not None:
            await self._app(scope, _Replay(body, receive), named)

    def _check_headers(self, scope: Scope) -> None:
        raw: Sequence[tuple[bytes, bytes]] = scope["headers"]
        size = sum(len(name) + len(value) for name, value in raw) + len(scope["query_string"])
        if size + len(scope["path"]) > self._limits.max_header_bytes:
            most = self._limits.max_header_bytes
            raise ApiError(431, f"path and headers may have at most {most} bytes together")
        host = Headers(scope=scope).get("host", "")
        if self._hosts is not None and _without_port(host) not in self._hosts:
            raise ApiError(421, "this server is not called by this name", code="wrong_host")

    def _caller(self, scope: Scope) -> Caller:
        if self._keys is None or scope["path"] in OPEN_PATHS:
            return ANYONE
        given = Headers(scope=scope).getlist("authorization")
        scheme, _, key = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        caller = self._keys.caller(key.strip())
        if scheme.lower() != "bearer" or caller is None:
            message = "a valid API key is needed, as the header Authorization: Bearer KEY"
            headers = {"WWW-Authenticate": "Bearer"}
            raise ApiError(401, message, code="invalid_api_key", headers=headers)
        return caller

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """Return the whole body; `None` if the client left."""
        most = self._limits.max_body_bytes
        too_large = ApiError(413, f"a body may have at most {most} bytes")
        declared = Headers(scope=scope).get("content-length", "0")
        if not (declared.isascii() and declared.isdecimal()):
            raise ApiError(400, "the header Content-Length is not a number")
        if len(declared) > _MOST_DIGITS or int(declared) > most:
            raise too_large
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._limits.body_timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    chunks.append(message.get("body", b""))
                    size += len(chunks[-1])
                    if size > most:
                        raise too_large
                    if not message.get("more_body", False):
                        return b"".join(chunks)
        except TimeoutError:
            raise ApiError(408, "the body did not arrive in time") from None


def _without_port(host: str) -> str:
    """Return the name in a Host header.

    >>> _without_port("LocalHost:8000"), _without_port("[::1]:8000"), _without_port("[::1]")
    ('localhost', '[::1]', '[::1]')
    """
    name, colon, port = host.lower().rpartition(":")
    return name if colon and port.isdecimal() and not name.endswith(":") else host.lower()


class _Replay:
    """Receives the body again, and then what comes from the server."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> Message:
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}


class _Named:
    """Adds the request's id, and what browsers must not do, to a response's headers."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._headers = [
            (b"x-request-id", request_id.encode()),
            (b"x-content-type-options", b"nosniff"),
        ]

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers: list[Any] = list(message.get("headers", ()))
            message = {**message, "headers": [*headers, *self._headers]}
        await self._send(message)
