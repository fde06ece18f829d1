"""What a server answers with: a pipeline, and the pipelines of engines and of tenants.

Nothing here needs more than the standard library; hosts have pipelines of their own.
"""

import asyncio
import contextvars
import threading
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol, TypeAlias

from ralmspec_plugins.adapters.events import calls_report_of
from ralmspec_plugins.adapters.text_state import draft_of
from ralmspec_plugins.batching.verifier import Verifier
from ralmspec_plugins.effects import Settled
from ralmspec_plugins.engine.aio import AsyncEngine
from ralmspec_plugins.engine.streams import EventStream
from ralmspec_plugins.engine.threads import Engine
from ralmspec_plugins.errors import ConfigError, InputError, RalmSpecError
from ralmspec_plugins.types import Answer, Hit, Request, Stats

FinishReason: TypeAlias = Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question of a client. What a client left out is `None`: the pipeline's own applies."""

    text: str
    tenant: str = ""
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    streamed: bool = False  # whether the client reads the text while it is generated


@dataclass(frozen=True, slots=True)
class Source:
    """A passage that the answer was written with."""

    id: str
    text: str
    title: str = ""
    score: float | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """The tokens of an answer: those that are part of it, and those of dropped work."""

    prompt_tokens: int
    completion_tokens: int
    dropped_tokens: int | None = None  # `None` if dropped work is not counted


@dataclass(frozen=True, slots=True)
class Text:
    """The next piece of the settled text."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The end of an answer, after all of its text."""

    sources: tuple[Source, ...]
    finish_reason: FinishReason = "stop"
    usage: TokenUsage | None = None  # `None` if the pipeline does not count tokens
    stats: Stats | None = None


Part: TypeAlias = Text | Done


class Pipeline(Protocol):
    """Answers questions on an event loop.

    Optional: `verifier`, the `Verifier` whose merged searches `/metrics` shows.
    """

    def ask(self, question: Question) -> AsyncGenerator[Part, None]:
        """Yield the settled text in pieces, and then a `Done`.

        Closing the generator, or cancelling the task that reads it, stops all work of the request.
        """
        ...

    def invalidate(self) -> None:
        """Discard cached results, after a change of the index."""
        ...

    async def close(self) -> None:
        """Release threads and connections."""
        ...


def pipeline_of(served: Any) -> Pipeline:
    """Return the pipeline of an engine, a host's object with `as_pipeline()`, or a pipeline itself.

    Raises:
        ConfigError: it is none of these.
    """
    if isinstance(served, AsyncEngine | Engine):
        return EnginePipeline(served)
    if not isinstance(served, type):
        if callable(make := getattr(served, "as_pipeline", None)):
            made: Pipeline = make()
            return made
        if callable(getattr(served, "ask", None)) and callable(getattr(served, "invalidate", None)):
            found: Pipeline = served
            return found
    raise ConfigError(
        "a server answers with an Engine, an AsyncEngine, a SpeculativeRAG, a "
        "SpeculativeQueryEngine, or an object with ask(), invalidate() and close(); "
        f"got {served!r:.200}"
    )


_THREADS: Final = 256  # upper bound; each reads the events of one request


class EnginePipeline:
    """The pipeline of an `Engine` or an `AsyncEngine`.

    The engine stays the caller's: it is not closed with the pipeline.
    """

    def __init__(
        self,
        engine: Engine | AsyncEngine,
        *,
        max_tokens: int = 128,
        verifier: Verifier | None = None,
    ) -> None:
        """Create a pipeline.

        Args:
            engine: answers the questions.
            max_tokens: of an answer whose client sets no limit.
            verifier: the engine's, for its statistics.

        Raises:
            ConfigError: `max_tokens` is below 1.
        """
        if max_tokens < 1:
            raise ConfigError(f"max_tokens must be at least 1, got {max_tokens}")
        self._engine = engine
        self._max_tokens = max_tokens
        self.verifier = verifier
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="ralmspec-serving")

    async def ask(self, question: Question) -> AsyncGenerator[Part, None]:
        """Yield the settled text in pieces, and then the end."""
        request = Request(
            prompt=question.text,
            max_tokens=question.max_tokens or self._max_tokens,
            seed=question.seed or 0,
            stop=question.stop,
        )
        engine = self._engine
        if isinstance(engine, Engine):
            events = engine.events(request, reports=question.streamed)
            parts = _of_threads(events, self._threads)
        else:
            parts = _of_loop(engine, request, streamed=question.streamed)
        async with aclosing(parts):
            async for part in parts:
                yield part

    def invalidate(self) -> None:
        """Discard cached results, after a change of the index."""
        self._engine.invalidate()

    async def close(self) -> None:
        """Release the threads of this pipeline."""
        await asyncio.to_thread(self._threads.shutdown, wait=True)


async def _of_loop(
    engine: AsyncEngine, request: Request, *, streamed: bool
) -> AsyncGenerator[Part, None]:
    events, shown = engine.events(request, reports=streamed), _Shown()
    async with aclosing(events):
        async for event in events:
            for piece in shown.piece(event):
                yield piece
        yield done(events.answer)


async def _of_threads(
    events: EventStream, threads: ThreadPoolExecutor
) -> AsyncGenerator[Part, None]:
    """Yield the parts of events that a thread reads."""
    loop = asyncio.get_running_loop()
    parts: asyncio.Queue[Part | BaseException] = asyncio.Queue()

    def hand_in(part: Part | BaseException) -> None:
        with suppress(RuntimeError):  # the event loop has ended
            loop.call_soon_threadsafe(parts.put_nowait, part)

    def read() -> None:
        shown = _Shown()
        try:
            for event in events:
                for piece in shown.piece(event):
                    hand_in(piece)
            hand_in(done(events.answer))
        except BaseException as error:  # noqa: BLE001 raised to the reader
            hand_in(error)

    read_by = threads.submit(contextvars.copy_context().run, read)
    try:
        while True:
            part = await parts.get()
            if isinstance(part, BaseException):
                raise part
            yield part
            if isinstance(part, Done):
                return
    finally:
        if not read_by.cancel() and not read_by.done():
            # It may wait until the model is free, so it has a thread of its own.
            threading.Thread(target=events.close, name="ralmspec-cancel", daemon=True).start()


class _Shown:
    """Cuts the settled text, which events have from its beginning, into pieces."""

    def __init__(self) -> None:
        self._length = 0

    def piece(self, event: object) -> Iterator[Text]:
        if isinstance(event, Settled) and len(event.text) > self._length:
            piece = event.text[self._length :]
            self._length = len(event.text)
            yield Text(piece)


def done(answer: Answer) -> Done:
    """Return the end of an engine's answer."""
    draft = draft_of(answer.state)
    return Done(
        sources=tuple(source_of(hit) for hit in answer.sources),
        finish_reason=_finish_reason(draft),
        usage=_usage(answer, draft),
        stats=answer.stats,
    )


def source_of(hit: Hit) -> Source:
    """Return a hit as a source."""
    passage = hit.passage
    return Source(passage.id, passage.text, passage.title, hit.score, passage.metadata)


def _finish_reason(draft: Any) -> FinishReason:
    """Return "length" for a draft that has used up its limit, as far as drafts say so."""
    if hasattr(draft, "ending"):
        return "length" if draft.ending == "length" else "stop"
    limit = getattr(getattr(draft, "origin", None), "max_tokens", None)
    stopped: str | None = getattr(draft, "stopped_by", "")
    if limit is None or stopped:
        return "stop"
    return "length" if getattr(draft, "spent", 0) >= limit else "stop"


def _usage(answer: Answer, draft: Any) -> TokenUsage | None:
    """Return the counted tokens of a local model's draft, or of the calls of a host's model."""
    tokens: Any = getattr(draft, "tokens", None)
    origin: Any = getattr(draft, "origin", None)
    if isinstance(tokens, tuple) and hasattr(origin, "prompt_tokens"):
        counted = answer.stats.model_passes > 0
        dropped = max(0, answer.stats.tokens_written - len(tokens)) if counted else None
        read = len(getattr(origin, "head_tokens", ())) + len(origin.prompt_tokens)
        return TokenUsage(read, len(tokens), dropped)
    return usage_in(calls_report_of(answer))


def usage_in(report: Mapping[str, Any]) -> TokenUsage | None:
    """Return the tokens in a host's report, `None` if its model counts none."""
    usage, dropped = report["usage"], report["dropped"]
    if usage is None:
        return None
    unused = (dropped or {}).get("usage") or {}
    return TokenUsage(usage["input_tokens"], usage["output_tokens"], unused.get("output_tokens", 0))


class PerTenant:
    """One pipeline for each of the named tenants, made when the tenant's first question comes.

    So nothing is shared between tenants but what the pipelines share themselves: give each its
    own retriever, with its own signature, and put it `beside` the others' in one `Verifier`.
    """

    def __init__(self, make: Callable[[str], Any], tenants: Iterable[str]) -> None:
        """Create a pipeline of pipelines.

        Args:
            make: returns what answers a tenant's questions; called once for each, in a thread.
            tenants: the names of all tenants. Others are refused.

        Raises:
            ConfigError: there is no tenant, or one has no name.
        """
        self.tenants: Final = frozenset([tenants] if isinstance(tenants, str) else tenants)
        if not self.tenants or not all(isinstance(one, str) and one for one in self.tenants):
            raise ConfigError(f"tenants must be names, at least one, got {sorted(self.tenants)!r}")
        self._make = make
        self._made: dict[str, asyncio.Task[Pipeline]] = {}

    async def ask(self, question: Question) -> AsyncGenerator[Part, None]:
        """Yield the answer of the tenant's own pipeline.

        Raises:
            InputError: the tenant is unknown.
        """
        pipeline = await self.of(question.tenant)
        parts = pipeline.ask(question)
        async with aclosing(parts):
            async for part in parts:
                yield part

    async def of(self, tenant: str) -> Pipeline:
        """Return a tenant's pipeline, made on first use.

        Raises:
            InputError: the tenant is unknown.
        """
        if tenant not in self.tenants:
            raise InputError(f"{tenant!r} is not a tenant of this model")
        making = self._made.get(tenant)
        if making is None or (making.done() and _failed(making)):
            making = self._made[tenant] = asyncio.create_task(self._new(tenant))
        return await asyncio.shield(making)  # others may wait for it, too

    async def _new(self, tenant: str) -> Pipeline:
        try:
            return pipeline_of(await asyncio.to_thread(self._make, tenant))
        except RalmSpecError as error:  # not of the client, who would read its message
            raise RuntimeError(f"the pipeline of {tenant!r} was not made: {error}") from error

    def _pipelines(self) -> list[Pipeline]:
        made = tuple(self._made.values())
        return [one.result() for one in made if one.done() and not _failed(one)]

    def invalidate(self) -> None:
        """Discard what the pipelines of all tenants have cached."""
        for pipeline in self._pipelines():
            pipeline.invalidate()

    async def close(self) -> None:
        """Close the pipelines of all tenants."""
        for pipeline in self._pipelines():
            await pipeline.close()


def _failed(task: "asyncio.Task[Pipeline]") -> bool:
    return task.cancelled() or task.exception() is not None
