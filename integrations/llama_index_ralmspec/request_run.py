"""One query: what happens in the engine, told to the host's handlers and made a response."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Generator
from contextlib import aclosing, closing
from dataclasses import replace
from typing import Any

from llama_index.core.base.response.schema import (
    RESPONSE_TYPE,
    AsyncStreamingResponse,
    StreamingResponse,
)
from llama_index.core.schema import QueryBundle

from llama_index_ralmspec.assembly import Assembly
from llama_index_ralmspec.call_context import HostContext, copied
from llama_index_ralmspec.responses import Responses
from llama_index_ralmspec.telling import Telling
from ralmspec_plugins.async_streams import AsyncEventStream
from ralmspec_plugins.streams import EventStream


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
        context = HostContext(copied(bundle), asynchronous, streaming)
        self._streaming = streaming
        self._request = assembly.request(context)
        self._engines = assembly.engines(context.bundle)
        self._telling = Telling(context, assembly.retriever, assembly.direct_runs(self._request))
        options = assembly.options
        self._responses = Responses(context, one_shot=options.one_shot, report=options.report)

    def response(self) -> RESPONSE_TYPE:
        """Answer it; what streams is given back when its first text is settled.

        Raises:
            Exception: what the host's own loop would have raised.
        """
        pieces = self._pieces(self._engines.sync.events(self._request, reports=self._streaming))
        next(pieces)  # from here on there is a response, and closing it ends the request
        made = self._responses.response
        if isinstance(made, StreamingResponse):
            return replace(made, response_gen=pieces)
        for _ in pieces:
            pass
        return made

    def _pieces(self, events: EventStream) -> Generator[str, None, None]:
        with closing(events):
            try:
                for event in events:
                    self._telling.tell(event)
                    yield from self._responses.shown(event)
                self._telling.ended()
                yield from self._responses.ended(events.answer)
            except GeneratorExit:
                raise
            except BaseException as error:
                events.close()
                self._telling.failed(error)
                raise

    async def aresponse(self) -> RESPONSE_TYPE:
        """Answer it on an event loop.

        Raises:
            Exception: what the host's own loop would have raised.
        """
        engine = self._engines.asynchronous
        pieces = self._apieces(engine.events(self._request, reports=self._streaming))
        await anext(pieces)
        made = self._responses.response
        if isinstance(made, AsyncStreamingResponse):
            return replace(made, response_gen=pieces)
        async for _ in pieces:
            pass
        return made

    async def _apieces(self, events: AsyncEventStream) -> AsyncGenerator[str, None]:
        async with aclosing(events):
            try:
                async for event in events:
                    await _to_its_end(self._telling.atell(event))
                    for piece in self._responses.shown(event):
                        yield piece
                self._telling.ended()
                for piece in self._responses.ended(events.answer):
                    yield piece
            except GeneratorExit:
                raise
            except BaseException as error:
                await events.aclose()
                await _to_its_end(self._telling.afailed(error))
                raise


async def _to_its_end(telling: Coroutine[Any, Any, None]) -> None:
    """Have something told completely, also when this task is cancelled: a run told has an end."""
    task = asyncio.ensure_future(telling)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
