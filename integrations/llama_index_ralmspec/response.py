"""Converts the engine's events to a response of the host, streamed or whole."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final
from weakref import ref

from llama_index.core.base.llms.types import ChatResponse, CompletionResponse
from llama_index.core.base.response.schema import (
    RESPONSE_TYPE,
    AsyncStreamingResponse,
    PydanticResponse,
    Response,
    StreamingResponse,
)
from llama_index.core.response_synthesizers import BaseSynthesizer
from llama_index.core.schema import NodeWithScore

from llama_index_ralmspec.documents import nodes_of
from llama_index_ralmspec.host_calls import CallRecord, HostContext
from ralmspec_plugins.adapters.events import REPORT, Report, report_of, stats_in
from ralmspec_plugins.adapters.text_state import draft_of
from ralmspec_plugins.effects import Commit, Confirmed, Event, Judged, Settled
from ralmspec_plugins.errors import InputError
from ralmspec_plugins.types import Answer, Hits, Query, Retrieved, Span, Stats

_STREAMS: Final = (StreamingResponse, AsyncStreamingResponse)
_REPORT: Final = "_ralmspec_report"
_UNMADE: Final = object()  # a synthesizer may return any value, including `None`
BEGUN = ""  # the first piece, yielded as soon as there is a response


class LoopBoundStream(AsyncGenerator[str, None]):
    """The pieces of an asynchronous stream that belongs to one event loop.

    The host's responses may be read in another event loop: `str(response)` in a running one does
    so, in a thread. The request cannot move there, since its work belongs to its own loop.
    Instead the text is generated again by `anew`, and read from the caller's position.
    """

    def __init__(
        self, pieces: AsyncGenerator[str, None], anew: Callable[[], AsyncIterator[str]]
    ) -> None:
        """Create a stream of pieces in the running loop; `anew` yields all in another one."""
        self._pieces: AsyncIterator[str] = pieces
        self._anew = anew
        self._loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        self._given = 0
        self._skip = 0  # characters of a text read again that were yielded before

    async def asend(self, value: None = None) -> str:
        """Return the next piece."""
        if self._loop not in (None, asyncio.get_running_loop()):
            self._move(self._loop)
        while True:
            piece = await anext(self._pieces)
            skipped, self._skip = piece[self._skip :], max(0, self._skip - len(piece))
            if skipped or not piece:
                self._given += len(skipped)
                return skipped

    def _move(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """Abandon the request, and read the text generated again."""
        if self._given and loop is not None and loop.is_closed():
            raise StopAsyncIteration  # a started generator ends with its loop
        self._loop, self._skip = None, self._given
        self._pieces = self._anew()

    async def athrow(self, *error: Any) -> str:
        """Cancel the request, and raise an error."""
        await self.aclose()
        raise error[0]

    async def aclose(self) -> None:
        """Cancel the request."""
        close: Any = getattr(self._pieces, "aclose", None)
        if close is not None and self._loop in (None, asyncio.get_running_loop()):
            await close()


class Responses:
    """Creates the response of one request.

    For one retrieval and one call this is the response of the host's own synthesizer. For
    several steps it has the text, and the nodes of all steps in order of use, each once.
    """

    def __init__(self, context: HostContext, *, one_shot: bool, report: bool) -> None:
        """Create an empty response.

        Args:
            context: the request's context.
            one_shot: whether the host's synthesizer writes the response.
            report: whether the response's metadata include the `Report`.
        """
        self._context = context
        self._one_shot = one_shot
        self._report = report
        self._response: Any = _UNMADE
        self._nodes: list[NodeWithScore] = []
        self._metadata: dict[str, Any] = {}
        self._hits: Hits = ()  # of the latest confirmed step
        self._right = False  # whether these were guessed
        self._shown = 0
        self._returned: ref[Any] | None = None
        self._record: CallRecord | None = None  # of the call whose stream is read by this object
        self.unread: Any = None  # the host's response, if the caller reads its stream

    @property
    def response(self) -> RESPONSE_TYPE:
        """The response, once there is a first piece; if it streams, without text."""
        assert self._response is not _UNMADE, "there is no piece yet"
        made: RESPONSE_TYPE = self._response
        return made

    def shown(self, event: Event) -> Iterator[str]:
        """Process an event; yield the new text if the response streams."""
        if isinstance(event, Judged):
            self._right = event.right
        if isinstance(event, Confirmed | Commit):
            self._hits = event.hits
        if isinstance(event, Settled | Commit) and (record := record_of(event.state)) is not None:
            record.score(self._hits)
        if isinstance(event, Commit):
            self._used(event)
        if not self._context.streaming or (self._response is _UNMADE and not self._begins(event)):
            return
        if not self._context.begun:
            self._context.begun = True
            yield BEGUN
        if isinstance(event, Settled) and len(event.text) > self._shown:
            piece = event.text[self._shown :]
            self._shown = len(event.text)
            yield piece

    def ended(self, answer: Answer) -> Iterator[str]:
        """Complete the response with the whole answer; yield a first piece if there was none."""
        message = draft_of(answer.state).message if self._one_shot else None
        record = record_of(answer.state)
        self.unread = message if record is not None and record.unread else None
        if self._response is _UNMADE:
            if self._one_shot:
                self._response = message
            else:
                self._response = Response(answer.text, self._nodes, self._metadata)
        if self._context.begun:
            returned = None if self._returned is None else self._returned()
            if returned is not None:
                _attach(returned, report_of(answer), in_metadata=self._report)
            return
        made = put_report(self._response, report_of(answer), in_metadata=self._report)
        self.unread = None if self.unread is None else made
        self._response = made
        yield BEGUN

    def streaming(self, pieces: Any) -> RESPONSE_TYPE:
        """Return the response with its stream of text; the report is attached at its end."""
        made: Any = replace(self._response, response_gen=pieces)
        self._returned = ref(made)  # weak: a stream that the caller releases ends at once
        returned: RESPONSE_TYPE = made
        return returned

    async def anew(self, synthesizer: BaseSynthesizer) -> AsyncGenerator[str, None]:
        """Yield the text of the host's synthesizer, called again with this response's nodes.

        Raises:
            InputError: the response has more steps than one call.
        """
        if not self._one_shot or self._record is None:
            raise InputError(
                "this stream is read in another event loop than the one of its aquery(), and its "
                "steps belong to that one: read it there, with `async for`"
            )
        query = self._context.bundle
        began = PlainRun(query.query_str, in_metadata=self._report)
        nodes = began.retrieved(list(self._record.used))
        response: Any = await synthesizer.asynthesize(query=query, nodes=nodes)
        async for piece in response.response_gen:
            yield piece
        returned = None if self._returned is None else self._returned()
        if returned is not None:
            _attach(returned, began.report(), in_metadata=self._report)

    def _begins(self, event: Event) -> bool:
        """Create a streaming response as soon as its nodes are known; return whether it exists."""
        if not self._one_shot:
            if not isinstance(event, Settled | Commit):
                return False
            kind: Any = AsyncStreamingResponse if self._context.asynchronous else StreamingResponse
            self._used_by(event.state)
            self._response = kind(None, self._nodes, self._metadata)
            return True
        if isinstance(event, Confirmed) and self._right and self._context.records:
            record = self._context.records[-1]  # the call that was made on the right guess
            record.score(self._hits)
        elif isinstance(event, Settled | Commit) and (found := record_of(event.state)) is not None:
            record = found
        else:
            return False
        if not isinstance(record.response, _STREAMS) or record.unread:
            return False
        # The text is read by this object, from which the caller reads it.
        self._record = record
        self._response = replace(record.response, response_txt=None)
        return True

    def _used(self, event: Commit) -> None:
        if not self._one_shot:
            self._used_by(event.state)

    def _used_by(self, state: Any) -> None:
        """Add the nodes that a step has used, and their metadata, as the host does.

        A model driven directly without postprocessors records nothing: it uses the nodes of the
        step's search. So does one that reads the nodes in the text instead of the prompt.
        """
        record = record_of(state)
        read = nodes_of(self._hits) if record is None or not record.nodes else record.used
        for node in read:
            if node.node.node_id not in self._metadata:
                self._nodes.append(node)
                self._metadata[node.node.node_id] = node.node.metadata


def record_of(state: Any) -> CallRecord | None:
    """Return the record of the call that wrote a state, if the host's parts wrote it."""
    found = getattr(draft_of(state), "recording", None)
    return found if isinstance(found, CallRecord) else None


def put_report(response: Any, report: Report, *, in_metadata: bool) -> Any:
    """Return a response with its report attached, for `stats_of`.

    It is an attribute but not a field, so that a response with it equals one without. If the
    metadata include it, the response is a copy, since a synthesizer may keep the original.
    """
    if not isinstance(response, (Response, PydanticResponse, *_STREAMS)):
        return response
    if in_metadata:
        # The host's `PydanticResponse` cannot be copied by copy().
        made = object.__new__(type(response))
        vars(made).update(vars(response))
        response = made
    _attach(response, report, in_metadata=in_metadata)
    return response


def _attach(response: Any, report: Report, *, in_metadata: bool) -> None:
    if in_metadata:
        response.metadata = {**(response.metadata or {}), REPORT: report}
    vars(response)[_REPORT] = report


class PlainRun:
    """Measures one query that the host's own parts answer sequentially."""

    def __init__(self, query: str, *, in_metadata: bool) -> None:
        """Start the measurement."""
        self._query = query
        self._in_metadata = in_metadata
        self._began_s = self._found_s = time.perf_counter()

    def retrieved(self, nodes: list[NodeWithScore]) -> list[NodeWithScore]:
        """Record the time at which the nodes were found; return them."""
        self._found_s = time.perf_counter()
        return nodes

    def reported(self, response: RESPONSE_TYPE) -> RESPONSE_TYPE:
        """Return a response with the report of a query with one search and one segment."""
        made: RESPONSE_TYPE = put_report(response, self.report(), in_metadata=self._in_metadata)
        return made

    def report(self) -> Report:
        """Return the report up to now."""
        found_s, wall_s = self._found_s - self._began_s, time.perf_counter() - self._began_s
        stats = Stats(
            wall_s=wall_s,
            searches=1,
            queries=1,
            batch_sizes=(1,),
            segments=1,
            timeline=(Span("search", 0.0, found_s, 1), Span("extend", found_s, wall_s, 0)),
        )
        return report_of(Answer("", (Retrieved(Query(self._query), ()),), None, stats))


def stats_of(response: RESPONSE_TYPE | CompletionResponse | ChatResponse) -> Stats:
    """Return the statistics of a response of `SpeculativeQueryEngine`, `SpeculativeLLM`, `KNNLLM`.

    Raises:
        InputError: the response has none; one that streams has them once it was read.
    """
    kept = response.raw if isinstance(response, CompletionResponse | ChatResponse) else None
    kept = kept or getattr(response, "metadata", None)
    report = getattr(response, _REPORT, None) or (
        kept.get(REPORT) if isinstance(kept, Mapping) else None
    )
    if report is None:
        raise InputError(
            f"expected a response of SpeculativeQueryEngine, got a {type(response).__name__} "
            "without statistics; one that streams has them once it was read to its end"
        )
    return stats_in({REPORT: report}, "a response of SpeculativeQueryEngine")
