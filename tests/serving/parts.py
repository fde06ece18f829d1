"""Pipelines that can be held up, made to fail and watched, and a server in a thread."""

import asyncio
import hashlib
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import uvicorn

from ralmspec_plugins import AsyncEngine, Engine, Settings, SharedPassageCache, Verifier
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.serving import ApiKeys, create_app
from ralmspec_plugins.serving.keys import Caller
from ralmspec_plugins.serving.server import address, listen
from ralmspec_plugins.testing import WordRetriever
from ralmspec_plugins.types import Answer, Hits
from ralmspec_plugins.workloads import TextState, TextWorkload

TEXTS = ("red fox", "blue whale", "green parrot", "old oak", "grey stone", "white swan")
CHAT = "/v1/chat/completions"
USER_KEY, ADMIN_KEY = "user-key-0123456789", "admin-key-0123456789"


def digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


class Poem(TextWorkload[TextState]):
    """Writes a line for each word of the prompt: its best passage and a digest of all before it.

    So a line that was written with a wrong passage is found nowhere in the right answer. The word
    "poison" makes a line fail; `hook` sees each line before it is written, in a thread.
    """

    append_only = True

    def __init__(self, hook: Callable[[str], None] | None = None) -> None:
        self.hook = hook
        self.written: list[str] = []

    def query(self, state: TextState) -> str | None:
        words, lines = state.request.prompt.split(), state.text.count("\n")
        return words[lines] if lines < len(words) else None

    def extend(self, state: TextState, hits: Hits, progress: Progress) -> TextState:
        passage = hits[0].passage.text
        if self.hook is not None:
            self.hook(passage)
        progress.check()
        return self._after(state, passage)

    def _after(self, state: TextState, passage: str) -> TextState:
        words, lines = state.request.prompt.split(), state.text.count("\n")
        if words[lines] == "poison":
            raise RuntimeError("secret-of-the-server")
        self.written.append(passage)
        return state.append(f"{passage} {digest(state.text + passage)}\n")


class AsyncPoem(Poem):
    """The same on an event loop; `ahook` is awaited before each line."""

    def __init__(self, ahook: Callable[[str], Any] | None = None) -> None:
        super().__init__()
        self.ahook = ahook
        self.stopped = 0

    async def aextend(self, state: TextState, hits: Hits, progress: Progress) -> TextState:
        passage = hits[0].passage.text
        try:
            await asyncio.sleep(0)
            if self.ahook is not None:
                await self.ahook(passage)
        except asyncio.CancelledError:
            self.stopped += 1
            raise
        return self._after(state, passage)


def retriever(k: int = 1) -> WordRetriever:
    return WordRetriever(TEXTS, k)


def poems(workload: Poem | None = None, store: Any = None) -> AsyncEngine:
    """Make an engine whose requests share searches and passages, as a server's should."""
    verifier = Verifier(store or retriever())
    return AsyncEngine(workload or AsyncPoem(), verifier, Settings(pool=SharedPassageCache()))


def right(prompt: str) -> Answer:
    """Answer a prompt without a server and without speculation."""
    with Engine(Poem(), retriever(), Settings(speculate=False)) as engine:
        return engine.run(prompt)


def body(prompt: str = "whale fox", model: str = "poems", **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": prompt}], **fields}


def keys(*tenants: str) -> ApiKeys:
    """Make a user's key, for these tenants, and an administrator's."""
    sha = hashlib.sha256
    return ApiKeys(
        [
            (sha(USER_KEY.encode()).hexdigest(), Caller("user", tenants)),
            (sha(ADMIN_KEY.encode()).hexdigest(), Caller("admin", None, admin=True)),
        ]
    )


def bearer(key: str, **headers: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}", **headers}


@asynccontextmanager
async def client_of(app: Any, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Give a client of an application, without a socket."""
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost", **settings) as client,
    ):
        yield client


def app_of(workload: Poem | None = None, **settings: Any) -> Any:
    return create_app({"poems": poems(workload)}, **settings)


@dataclass
class Stream:
    """What came of a stream: its chunks, and whether it ended as it should."""

    chunks: list[dict[str, Any]] = field(default_factory=list)
    done: bool = False

    @property
    def text(self) -> str:
        return "".join(
            choice["delta"].get("content", "") for one in self.chunks for choice in one["choices"]
        )


def read_stream(text: str) -> Stream:
    """Read server-sent events strictly: nothing but data, nothing after the end."""
    stream = Stream()
    *events, rest = text.split("\n\n")
    assert rest == "", "the last event is cut"
    for event in events:
        assert not stream.done, "an event came after [DONE]"
        assert event.startswith("data: ")
        if event == "data: [DONE]":
            stream.done = True
        else:
            stream.chunks.append(json.loads(event.removeprefix("data: ")))
    return stream


@contextmanager
def served(app: Any) -> Iterator[str]:
    """Serve an application on loopback until the block ends; give the URL of the API."""
    listening = listen("127.0.0.1", 0)
    config = uvicorn.Config(app, log_config=None, http="h11", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])))
    thread.start()
    try:
        yield address(listening)
    finally:
        deadline_s = time.monotonic() + 10
        while server.server_state.connections and time.monotonic() < deadline_s:
            time.sleep(0.005)  # of clients that have left just now
        server.should_exit = True
        thread.join()
        listening.close()
