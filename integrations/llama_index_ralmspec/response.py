"""Makes a host's response of what happens in the engine, streamed or whole."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Any, Final
from weakref import ref

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
_UNMADE: Final = object()  # a synthesizer may return anything, `None` too
BEGUN = ""  # the first piece, when there is a response to return


class LoopBoundStream(AsyncGenerator[str, None]):
    """The pieces of an asynchronous stream, for as long as its event loop reads them.

    The host's responses may be read in another event loop: `str(response)` on a running one does
    so, in a thread. The request cannot move there, as its work belongs to its own loop:
    what is `anew` is read instead, from where the caller has come to.
    """

    def __init__(
        self, pieces: AsyncGenerator[str, None], anew: Callable[[], AsyncIterator[str]]
    ) -> None:
        """Give these pieces in the running loop; `anew` gives all of them in another one."""
        self._pieces: AsyncIterator[str] = pieces
        self._anew = anew
        self._loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        self._given = 0
        self._skip = 0  # what was given before, of a text that is read anew

    async def asend(self, value: None = None) -> str:
        """Wait for the next piece."""
        if self._loop not in (None, asyncio.get_running_loop()):
            self._move(self._loop)
        while True:
            piece = await anext(self._pieces)
            skipped, self._skip = piece[self._skip :], max(0, self._skip - len(piece))
            if skipped or not piece:
                self._given += len(skipped)
                return skipped

    def _move(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """Give the request up, and read what is anew."""
        if self._given and loop is not None and loop.is_closed():
            raise StopAsyncIteration  # a generator that was begun ends with its loop
        self._loop, self._skip = None, self._given
        self._pieces = self._anew()

    async def athrow(self, *error: Any) -> str:
        """Give the request up, and raise an error."""
        await self.aclose()
        raise error[0]

    async def aclose(self) -> None:
        """Give the request up."""
        close: Any = getattr(self._pieces, "aclose", None)
        if close is not None and self._loop in (None, asyncio.get_running_loop()):
            await close()


class Responses:
    """Makes the response of one request.

    Of one retrieval and one call it is the response of the host's own synthesizer. Of
    many it has the text, and the nodes of all steps in order of use, each once.
    """

    def __init__(self, context: HostContext, *, one_shot: bool, report: bool) -> None:
        """Begin with no text.

        Args:
            context: the request's.
            one_shot: whether the host's synthesizer writes it.
            report: whether the response's metadata get the `Report`, too.
        """
        self._context = context
        self._one_shot = one_shot
        self._report = report
        self._response: Any = _UNMADE
        self._nodes: list[NodeWithScore] = []
        self._metadata: dict[str, Any] = {}
        self._hits: Hits = ()  # of the latest confirmed step
        self._right = False  # whether that was guessed
        self._shown = 0
        self._returned: ref[Any] | None = None
        self._record: CallRecord | None = None  # of the call whose stream is read here
        self.unread: Any = None  # the host's response, if its stream is left to the caller

    @property
    def response(self) -> RESPONSE_TYPE:
        """The response, from the first piece on; what streams has no text in it."""
        assert self._response is not _UNMADE, "nothing has been given yet"
        made: RESPONSE_TYPE = self._response
        return made

    def shown(self, event: Event) -> Iterator[str]:
        """Take in an event; give the new text if the response streams."""
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
        """Complete the response with the whole answer."""
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
        """Return the response with the text that it streams; the report comes with its end."""
        made: Any = replace(self._response, response_gen=pieces)
        self._returned = ref(made)  # the caller's alone: a stream that is let go ends at once
        returned: RESPONSE_TYPE = made
        return returned

    async def anew(self, synthesizer: BaseSynthesizer) -> AsyncGenerator[str, None]:
        """Have the host's synthesizer write with the nodes of this response once more.

        Raises:
            InputError: there are more steps than one call of it.
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
        """Make the response that streams as soon as its nodes are known; say whether it is made."""
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
        # The text is read here, and the caller reads it from us.
        self._record = record
        self._response = replace(record.response, response_txt=None)
        return True

    def _used(self, event: Commit) -> None:
        if not self._one_shot:
            self._used_by(event.state)

    def _used_by(self, state: Any) -> None:
        """Add the nodes that a step has used, and their metadata as the host gives it.

        A model driven directly without postprocessors records nothing: it is given what the
        step's search found. So is one that reads the nodes in the text, in no prompt.
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

    It stands in an attribute which is no field: a response with it equals one without. Where
    the metadata get it too, the response is a copy: a synthesizer may keep the one it returned.
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
    """Times one query that the host's own parts answer, one after the other."""

    def __init__(self, query: str, *, in_metadata: bool) -> None:
        """Begin."""
        self._query = query
        self._in_metadata = in_metadata
        self._began_s = self._found_s = time.perf_counter()

    def retrieved(self, nodes: list[NodeWithScore]) -> list[NodeWithScore]:
        """Note the time at which the nodes were known."""
        self._found_s = time.perf_counter()
        return nodes

    def reported(self, response: RESPONSE_TYPE) -> RESPONSE_TYPE:
        """Attach the report of a query with one search and one segment."""
        made: RESPONSE_TYPE = put_report(response, self.report(), in_metadata=self._in_metadata)
        return made

    def report(self) -> Report:
        """Report what it took until now."""
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


def stats_of(response: RESPONSE_TYPE) -> Stats:
    """Return the statistics of a response.

    Raises:
        InputError: the response has none; one that streams has them when it was read.
    """
    report = vars(response).get(_REPORT) or (response.metadata or {}).get(REPORT)
    if report is None:
        raise InputError(
            f"expected a response of SpeculativeQueryEngine, got a {type(response).__name__} "
            "without statistics; one that streams has them when it was read to its end"
        )
    return stats_in({REPORT: report}, "a response of SpeculativeQueryEngine")
