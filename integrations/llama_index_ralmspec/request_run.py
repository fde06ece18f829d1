"""One query: what happens in the engine, told to the host's handlers and made a response."""

from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from contextlib import aclosing, closing
from dataclasses import replace

from llama_index.core.base.response.schema import (
    RESPONSE_TYPE,
    AsyncStreamingResponse,
    StreamingResponse,
)
from llama_index.core.schema import QueryBundle

from llama_index_ralmspec.assembly import Assembly
from llama_index_ralmspec.call_context import HostContext, asking, copied
from llama_index_ralmspec.responses import Responses
from llama_index_ralmspec.telling import Telling
from ralmspec_plugins.adapters.events import afollowed, followed
from ralmspec_plugins.effects import Event
from ralmspec_plugins.engine.streams import AsyncEventStream, EventStream


class RequestRun:
    """Answers one query."""

    def __init__(
        self, assembly: Assembly, bundle: QueryBundle, *, asynchronous: bool = False
    ) -> None:
        """Look at the query, and begin nothing yet.

        Args:
            assembly: the query engine's parts.
            bundle: the query.
            asynchronous: whether it is answered on an event loop.
        """
        # Read once: chat engines switch it on for one query, and off when they have its stream.
        streaming = bool(getattr(assembly.synthesizer, "_streaming", False))
        options = assembly.options
        given = copied(bundle)
        self._engines = assembly.engines(given)
        context = HostContext(
            given,
            asynchronous,
            streaming,
            own=bundle if options.one_shot else None,
            alone=not assembly.guesses,
            retriever=assembly.retriever,
            threads=self._engines.threads,
        )
        self._context = context
        self._streaming = streaming
        self._request = assembly.request(context)
        self._telling = Telling(context, assembly.retriever, assembly.direct_runs(self._request))
        self._responses = Responses(context, one_shot=options.one_shot, report=options.report)

    def response(self) -> RESPONSE_TYPE:
        """Answer it; what streams is given back when its first text is settled.

        Raises:
            Exception: what the host's own loop would have raised.
        """
        pieces = self._pieces(self._engines.sync.events(self._request, reports=self._streaming))
        next(pieces)  # from here on there is a response, and closing it ends the request
        made = self._responses.response
        self._telling.given_back()
        if isinstance(made, StreamingResponse):
            return replace(made, response_gen=pieces)
        for _ in pieces:
            pass
        return made

    def _pieces(self, events: EventStream) -> Generator[str, None, None]:
        asked = _Asked(events, self._context)
        with closing(followed(asked, self._telling, self._responses.shown)) as pieces:
            yield from pieces
        self._telling.ended()
        yield from self._responses.ended(events.answer)

    async def aresponse(self) -> RESPONSE_TYPE:
        """Answer it on an event loop.

        Raises:
            Exception: what the host's own loop would have raised.
        """
        engine = self._engines.asynchronous
        pieces = self._apieces(engine.events(self._request, reports=self._streaming))
        await anext(pieces)
        made = self._responses.response
        self._telling.given_back()
        if isinstance(made, AsyncStreamingResponse):
            return replace(made, response_gen=pieces)
        async for _ in pieces:
            pass
        return made

    async def _apieces(self, events: AsyncEventStream) -> AsyncGenerator[str, None]:
        asked = _AsyncAsked(events, self._context)
        async with aclosing(afollowed(asked, self._telling, self._responses.shown)) as pieces:
            async for piece in pieces:
                yield piece
        await self._telling.aended()
        for piece in self._responses.ended(events.answer):
            yield piece


class _Asked:
    """A request's events; its retriever knows whose it is while the next one is made."""

    def __init__(self, events: EventStream, context: HostContext) -> None:
        self._events = events
        self._context = context

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        token = asking.set(self._context)
        try:
            return next(self._events)
        finally:
            asking.reset(token)

    def close(self) -> None:
        self._events.close()


class _AsyncAsked:
    """The same on an event loop."""

    def __init__(self, events: AsyncEventStream, context: HostContext) -> None:
        self._events = events
        self._context = context

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        token = asking.set(self._context)
        try:
            return await anext(self._events)
        finally:
            asking.reset(token)

    async def aclose(self) -> None:
        await self._events.aclose()
