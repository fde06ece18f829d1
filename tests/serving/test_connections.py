"""Connections: clients that leave, that are slow, and that are many."""

import asyncio
import gc
import json
import threading
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from ralmspec_plugins import AsyncEngine, Engine, Settings, Verifier
from ralmspec_plugins.serving import Limits, create_app
from ralmspec_plugins.serving.server import short_collections
from tests.serving.parts import (
    CHAT,
    AsyncPoem,
    Poem,
    app_of,
    body,
    poems,
    read_stream,
    retriever,
    right,
    served,
)


async def connect(
    url: str, asked: dict[str, Any], headers: dict[str, str] | None = None
) -> tuple[asyncio.StreamReader, Any]:
    """Send a request by hand, to leave or to be slow with it."""
    at = urlsplit(url)
    reader, writer = await asyncio.open_connection(at.hostname, at.port, limit=1 << 10)
    content = json.dumps(asked).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: {at.netloc}\r\nContent-Type: application/json\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    await writer.drain()
    return reader, writer


async def until(condition: Any) -> None:
    """Wait for a condition; a test that never meets it hangs, and is ended by its limit."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


async def leave(writer: Any) -> None:
    """Close a connection without a farewell."""
    writer.transport.abort()
    with suppress(OSError):
        await writer.wait_closed()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_stops_its_work(stream: bool) -> None:
    """On an event loop the call of the model is cancelled; the others are answered."""
    entered, going = threading.Event(), threading.Event()

    async def wait(passage: str) -> None:
        if passage == "old oak":
            entered.set()
            while not going.is_set():
                await asyncio.sleep(0.005)

    workload = AsyncPoem(wait)
    app = app_of(workload)
    with served(app) as url:
        _, writer = await connect(url, body("fox oak whale", stream=stream))
        await until(entered.is_set)
        await leave(writer)
        await until(lambda: workload.stopped and app.state.admission.running == 0)
        going.set()
        async with httpx.AsyncClient(timeout=60) as client:
            reply = await client.post(url.removesuffix("/v1") + CHAT, json=body("fox oak"))

    assert reply.json()["choices"][0]["message"]["content"] == right("fox oak").text
    assert "blue whale" not in workload.written


@pytest.mark.parametrize("kind", ["threads", "threads of an asynchronous engine"])
async def test_a_client_that_leaves_stops_threads(kind: str) -> None:
    """A model in a thread stops at its next token."""
    entered, going = threading.Event(), threading.Event()
    ended: list[str] = []

    def wait(passage: str) -> None:
        if passage == "old oak":
            entered.set()
            going.wait()
            ended.append(passage)

    workload = Poem(wait)
    plain = Settings(speculate=False)
    engine: Any = (
        Engine(workload, retriever(), plain)
        if kind == "threads"
        else AsyncEngine(workload, retriever(), plain)
    )
    app = create_app({"poems": engine})
    with served(app) as url:
        _, writer = await connect(url, body("fox oak whale", stream=True))
        await until(entered.is_set)
        await leave(writer)
        await asyncio.sleep(0.05)  # until the server knows
        going.set()
        await until(lambda: ended and app.state.admission.running == 0)
        async with httpx.AsyncClient(timeout=60) as client:
            reply = await client.post(url.removesuffix("/v1") + CHAT, json=body("fox swan"))

    assert reply.json()["choices"][0]["message"]["content"] == right("fox swan").text
    assert "blue whale" not in workload.written


async def test_a_client_that_waits_for_its_turn_and_leaves_is_forgotten() -> None:
    """The queue has its place again; nothing was generated for it."""
    entered, going = threading.Event(), threading.Event()

    async def wait(_: str) -> None:
        entered.set()
        while not going.is_set():
            await asyncio.sleep(0.005)

    workload = AsyncPoem(wait)
    app = app_of(workload, limits=Limits(running=1, waiting=1))
    with served(app) as url:
        reader, first = await connect(url, body("fox"))
        await until(entered.is_set)
        _, second = await connect(url, body("whale"))
        await until(lambda: app.state.admission.waiting == 1)
        await leave(second)
        await until(lambda: app.state.admission.waiting == 0)
        going.set()
        status = await reader.readline()
        await leave(first)

    assert status == b"HTTP/1.1 200 OK\r\n"
    assert workload.written == ["red fox"]


async def test_two_hundred_clients_at_once() -> None:
    """All are answered rightly, by merged searches, and the queue is empty afterwards."""
    store = retriever()
    verifier = Verifier(store)
    app = create_app({"poems": AsyncEngine(AsyncPoem(), verifier)})
    words = ("fox", "whale", "parrot", "oak", "stone", "swan")
    prompts = [f"{words[n % 6]} {words[n // 6 % 6]} {words[n // 36 % 6]}" for n in range(200)]
    with served(app) as url:
        async with httpx.AsyncClient(
            timeout=120, limits=httpx.Limits(max_connections=200), trust_env=False
        ) as client:
            replies = await asyncio.gather(
                *(
                    client.post(f"{url}/chat/completions", json=body(one, stream=n % 2 == 0))
                    for n, one in enumerate(prompts)
                )
            )
        admission = app.state.admission
        assert (admission.running, admission.waiting, admission.ended) == (0, 0, 200)

    for number, (prompt, reply) in enumerate(zip(prompts, replies, strict=True)):
        assert reply.status_code == 200
        text = reply.json()["choices"][0]["message"]["content"] if number % 2 else None
        assert right(prompt).text == (text or read_stream(reply.text).text)
    assert verifier.stats.searches < verifier.stats.calls  # some were merged


async def test_a_client_that_reads_slowly_holds_nobody() -> None:
    """Its answer is generated to the end while it reads nothing, and gives its slot free."""
    long = " ".join(["whale"] * 40)

    class Wide(AsyncPoem):
        def _after(self, state: Any, passage: str) -> Any:
            self.written.append(passage)
            return state.append(passage + "x" * 200_000 + "\n")  # more than sockets hold

    app = create_app({"wide": poems(Wide()), "poems": poems()}, limits=Limits(running=1, waiting=4))
    with served(app) as url:
        reader, writer = await connect(url, body(long, model="wide", stream=True))
        await until(lambda: app.state.admission.ended == 1)
        async with httpx.AsyncClient(timeout=60) as client:
            reply = await client.post(f"{url}/chat/completions", json=body("fox"))
        slow = await reader.readuntil(b"\r\n\r\n")
        await leave(writer)

    assert reply.json()["choices"][0]["message"]["content"] == right("fox").text
    assert slow.startswith(b"HTTP/1.1 200 OK")


async def test_a_client_that_reads_nothing_is_given_up() -> None:
    """After the limit of time its buffer is freed; the server goes on."""

    class Wide(AsyncPoem):
        def _after(self, state: Any, passage: str) -> Any:
            return state.append(passage + "x" * 2_000_000 + "\n")

    app = create_app({"wide": poems(Wide()), "poems": poems()}, limits=Limits(send_timeout_s=0.05))
    with served(app) as url:
        _, writer = await connect(url, body("whale " * 20, model="wide", stream=True))
        async with httpx.AsyncClient(timeout=60) as client:
            while True:
                text = (await client.get(url.removesuffix("/v1") + "/metrics")).text
                if 'ralmspec_requests_total{model="wide"' in text:
                    break
                await asyncio.sleep(0.01)
            reply = await client.post(f"{url}/chat/completions", json=body("fox"))
        await leave(writer)

    assert reply.json()["choices"][0]["message"]["content"] == right("fox").text


def test_a_server_leaves_the_garbage_collector_as_it_was() -> None:
    """While it serves, collections are rarer, and what was there before is in none of them."""
    before, frozen = gc.get_threshold(), gc.get_freeze_count()
    gc.unfreeze()
    try:
        with short_collections():
            assert gc.get_threshold() > before
            assert gc.get_freeze_count() > 1000
        assert (before, 0) == (gc.get_threshold(), gc.get_freeze_count())

        gc.freeze()
        with short_collections():
            pass
        assert gc.get_freeze_count() > 1000
    finally:
        if not frozen:
            gc.unfreeze()
