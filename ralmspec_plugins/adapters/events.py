"""Drives the events of one request: reports them to the host's handlers, and emits pieces."""

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Iterator,
    Mapping,
)
from dataclasses import asdict, fields
from typing import Any, Final, Generic, Protocol, TypedDict, TypeVar

from ralmspec_plugins.adapters.text_state import MadeCall, Usage, draft_of
from ralmspec_plugins.effects import Commit, Event
from ralmspec_plugins.engine.streams import IterationEndError
from ralmspec_plugins.errors import InputError
from ralmspec_plugins.types import Answer, Outcome, Span, Stats

PieceT = TypeVar("PieceT")


class Events(Protocol):
    """The events of a request; closing the iterator cancels the request."""

    def __iter__(self) -> Iterator[Event]:
        """Iterate over the events."""
        ...

    def close(self) -> None:
        """Cancel the request."""
        ...


class AsyncEvents(Protocol):
    """The events of a request on an event loop."""

    def __aiter__(self) -> AsyncIterator[Event]:
        """Iterate over the events."""
        ...

    async def aclose(self) -> None:
        """Cancel the request."""
        ...


class EventSink(Protocol):
    """Reports one request to a host's handlers."""

    def tell(self, event: Event) -> None:
        """Report an event."""
        ...

    async def atell(self, event: Event) -> None:
        """Report an event on an event loop."""
        ...

    def failed(self, error: BaseException) -> None:
        """Report the call that caused the request's error, and end open runs."""
        ...

    async def afailed(self, error: BaseException) -> None:
        """Report a failure on an event loop."""
        ...


def drive_events(
    events: Events, telling: EventSink, show: Callable[[Event], Iterable[PieceT]]
) -> Generator[PieceT, None, None]:
    """Report each event, and yield its pieces.

    Closing this generator cancels the request.

    Raises:
        Exception: what the request, or a handler, raises.
    """
    try:
        for event in events:
            _count(event)
            telling.tell(event)
            yield from show(event)
    except BaseException as error:
        events.close()
        telling.failed(raised_by_part(error))
        raise


def raised_by_part(error: BaseException) -> BaseException:
    """Return what a part has raised, where an iterator of its request could not raise it."""
    return error.error if isinstance(error, IterationEndError) else error


class AsyncPieces(AsyncIterator[PieceT]):
    """Reports each event on an event loop, and iterates over its pieces; no report is interrupted.

    It is not an asynchronous generator: an event loop that ends closes all of these, and
    reports nested ones as errors.
    """

    def __init__(
        self, events: AsyncEvents, telling: EventSink, show: Callable[[Event], Iterable[PieceT]]
    ) -> None:
        """Create the iterator.

        Args:
            events: the events; closed with this iterator.
            telling: reports each event.
            show: returns the pieces of an event.
        """
        self._events = events
        self._waiting = aiter(events)
        self._telling = telling
        self._show = show
        self._pieces: Iterator[PieceT] = iter(())
        self._ended = False

    async def __anext__(self) -> PieceT:
        """Return the next piece.

        Raises:
            Exception: what the request, or a handler, raises.
        """
        while not self._ended:
            try:
                for piece in self._pieces:
                    return piece
                event = await anext(self._waiting, None)
                if event is None:
                    self._ended = True
                    break
                _count(event)
                await _to_its_end(self._telling.atell(event))
                self._pieces = iter(self._show(event))
            except BaseException as error:
                await self._give_up(error)
                raise
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Cancel the request."""
        if not self._ended:
            await self._give_up(GeneratorExit())

    async def _give_up(self, error: BaseException) -> None:
        self._ended = True
        await self._events.aclose()
        failed = self._telling.afailed(raised_by_part(error))
        # At the end of an event loop nothing may be awaited if there is no handler.
        await (failed if isinstance(error, GeneratorExit) else _to_its_end(failed))


def _count(event: Event) -> None:
    """Count the call of a committed segment as part of the answer."""
    if isinstance(event, Commit):
        call: MadeCall | None = getattr(draft_of(event.state), "call", None)
        if call is not None:
            call.committed = True


async def _to_its_end(telling: Coroutine[Any, Any, None]) -> None:
    """Finish a report, even if this task is cancelled, so that each reported run ends."""
    task = asyncio.ensure_future(telling)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


# Keeps the recordings of a request's failed calls, to report the one that is raised.


RecordingT = TypeVar("RecordingT")


class Failures(Generic[RecordingT]):
    """The errors of a host's calls for one request, with their recordings.

    >>> failures, error = Failures[str](), ValueError("no")
    >>> failures.note(error, "its events")
    >>> failures.recording_of(error), failures.recording_of(ValueError("no"))
    ('its events', None)
    >>> len(failures)
    1
    """

    def __init__(self) -> None:
        """Create an empty collection."""
        self._noted: list[tuple[BaseException, RecordingT]] = []

    def __len__(self) -> int:
        """Return the number of errors."""
        return len(self._noted)

    def note(self, error: BaseException, recording: RecordingT) -> None:
        """Store the error and the recording of a call."""
        self._noted.append((error, recording))

    def recording_of(self, error: BaseException) -> RecordingT | None:
        """Return the recording of the call that raised this error object."""
        return next((made for raised, made in self._noted if raised is error), None)


# Makes a host's streams closable, so that an unread stream is released immediately.


def closable(pieces: Iterable[PieceT]) -> Generator[PieceT, None, None]:
    """Yield the pieces of an iterable; closing this generator closes the iterable, if possible.

    >>> each = closable(iter("ab"))
    >>> next(each), each.close()
    ('a', None)
    """
    yield from pieces


async def aclosable(pieces: AsyncIterable[PieceT]) -> AsyncGenerator[PieceT, None]:
    """Yield the pieces of an asynchronous iterable; closing this closes it, if possible."""
    try:
        async for piece in pieces:
            yield piece
    finally:
        close: Any = getattr(pieces, "aclose", None)
        if close is not None:
            await close()


# The report of an answer as plain values, since replies are stored in checkpoints and as JSON.


REPORT: Final = "ralmspec"  # the key of the report in a host's reply


class DroppedCalls(TypedDict):
    """Calls of the host's model that may be billed, and are not part of the answer."""

    calls: int  # including failed and cancelled ones
    unreported: int  # those without a usage when the answer was complete
    usage: dict[str, int] | None  # of the others


class CallsReport(TypedDict):
    """What a report says of the calls of a host's model."""

    usage: dict[str, int] | None  # of the calls of the answer
    dropped: DroppedCalls | None  # of all other calls; `None` if no model of a host is called


class Report(CallsReport):
    """The report of an answer; `stats_in` converts it to `Stats`."""

    stats: dict[str, Any]  # the fields of `ralmspec_plugins.Stats`
    queries: list[str]  # the queries of the retriever, in order


def report_of(answer: Answer) -> Report:
    """Return the report of an answer whose events were driven here."""
    return Report(
        stats=_plain(answer.stats),
        queries=[step.query.text for step in answer.retrieved],
        **calls_report_of(answer),
    )


def calls_report_of(answer: Answer) -> CallsReport:
    """Return what the report of an answer says of the calls of a host's model."""
    calls: list[MadeCall] | None = getattr(draft_of(answer.state), "made", None)
    return CallsReport(
        usage=_usage([call for call in calls or () if call.committed]),
        dropped=None if calls is None else _dropped([one for one in calls if not one.committed]),
    )


def _dropped(calls: list[MadeCall]) -> DroppedCalls:
    unreported = sum(call.usage == Usage() for call in calls)
    return DroppedCalls(calls=len(calls), unreported=unreported, usage=_usage(calls))


def _usage(calls: list[MadeCall]) -> dict[str, int] | None:
    usage = sum((call.usage for call in calls), Usage())
    return None if usage == Usage() else asdict(usage)


def stats_in(reply: Mapping[str, Any] | None, what: str) -> Stats:
    """Return the statistics under `REPORT` as a `Stats`, for its properties and timelines.

    Args:
        reply: the mapping that contains the report.
        what: the expected kind of reply, for the error message.

    Raises:
        InputError: there is no report.
    """
    try:
        values = (reply or {})[REPORT]["stats"]
        spans = [Span(**{**one, "outcome": Outcome(one["outcome"])}) for one in values["timeline"]]
        sizes = tuple(values["batch_sizes"])
        return Stats(**{**values, "batch_sizes": sizes, "timeline": tuple(spans)})
    except (KeyError, TypeError) as error:
        raise InputError(
            f"expected {what} with its report under {REPORT!r}, got {reply!r:.500}"
        ) from error


def _plain(stats: Stats) -> dict[str, Any]:
    """Return the fields, all of which are plain; `asdict` would take a millisecond."""
    spans = [
        {name: getattr(span, name) for name in _SPAN} | {"outcome": span.outcome.value}
        for span in stats.timeline
    ]
    values = {name: getattr(stats, name) for name in _STATS}
    return values | {"batch_sizes": list(stats.batch_sizes), "timeline": spans}


_SPAN: Final = tuple(one.name for one in fields(Span))
_STATS: Final = tuple(one.name for one in fields(Stats))
