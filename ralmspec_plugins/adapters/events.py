"""Follows one request: what happens is told to the host's handlers, and shown in pieces."""

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
from dataclasses import asdict, replace
from typing import Any, Final, Generic, Protocol, TypedDict, TypeVar

from ralmspec_plugins.adapters.text_state import MadeCall, Usage, draft_of
from ralmspec_plugins.effects import Commit, Event
from ralmspec_plugins.engine.streams import IterationEndError
from ralmspec_plugins.errors import InputError
from ralmspec_plugins.types import Answer, Outcome, Span, Stats

PieceT = TypeVar("PieceT")


class Events(Protocol):
    """What happens while a request is answered; closing it gives the request up."""

    def __iter__(self) -> Iterator[Event]:
        """Wait for one event after the other."""
        ...

    def close(self) -> None:
        """Give the request up."""
        ...


class AsyncEvents(Protocol):
    """The same on an event loop."""

    def __aiter__(self) -> AsyncIterator[Event]:
        """Await one event after the other."""
        ...

    async def aclose(self) -> None:
        """Give the request up."""
        ...


class EventSink(Protocol):
    """What tells a host's handlers of one request."""

    def tell(self, event: Event) -> None:
        """Tell what an event means for the host."""
        ...

    async def atell(self, event: Event) -> None:
        """Do the same on an event loop."""
        ...

    def failed(self, error: BaseException) -> None:
        """Tell of the call that the request's error comes from, and end what is open."""
        ...

    async def afailed(self, error: BaseException) -> None:
        """Do the same on an event loop."""
        ...


def drive_events(
    events: Events, telling: EventSink, show: Callable[[Event], Iterable[PieceT]]
) -> Generator[PieceT, None, None]:
    """Tell each event, and give the pieces that it makes.

    The request ends with this generator: closing it gives the request up.

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
    """Do the same on an event loop; what is being told is told to its end.

    It is no asynchronous generator: an event loop that ends closes all of these at once, and
    reports those inside of each other as errors.
    """

    def __init__(
        self, events: AsyncEvents, telling: EventSink, show: Callable[[Event], Iterable[PieceT]]
    ) -> None:
        """Give the pieces of these events.

        Args:
            events: what happens; closed with this iterator.
            telling: what tells each event.
            show: makes pieces of an event.
        """
        self._events = events
        self._waiting = aiter(events)
        self._telling = telling
        self._show = show
        self._pieces: Iterator[PieceT] = iter(())
        self._ended = False

    async def __anext__(self) -> PieceT:
        """Wait for the next piece.

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
        """Give the request up."""
        if not self._ended:
            await self._give_up(GeneratorExit())

    async def _give_up(self, error: BaseException) -> None:
        self._ended = True
        await self._events.aclose()
        failed = self._telling.afailed(raised_by_part(error))
        # At the end of an event loop nothing may be waited for, if there is nobody to be told.
        await (failed if isinstance(error, GeneratorExit) else _to_its_end(failed))


def _count(event: Event) -> None:
    """Count the call that wrote a committed segment to those of the answer."""
    if isinstance(event, Commit):
        call: MadeCall | None = getattr(draft_of(event.state), "call", None)
        if call is not None:
            call.committed = True


async def _to_its_end(telling: Coroutine[Any, Any, None]) -> None:
    """Have something told completely, also when this task is cancelled: a run told has an end."""
    task = asyncio.ensure_future(telling)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


# Keeps what a request's failed calls have told: the one that counts is told of.


RecordingT = TypeVar("RecordingT")


class Failures(Generic[RecordingT]):
    """The errors that calls of a host have raised for one request, with their recordings.

    >>> failures, error = Failures[str](), ValueError("no")
    >>> failures.note(error, "what it told")
    >>> failures.recording_of(error), failures.recording_of(ValueError("no"))
    ('what it told', None)
    >>> len(failures)
    1
    """

    def __init__(self) -> None:
        """Begin with none."""
        self._noted: list[tuple[BaseException, RecordingT]] = []

    def __len__(self) -> int:
        """Count them."""
        return len(self._noted)

    def note(self, error: BaseException, recording: RecordingT) -> None:
        """Note what a call raised: if it counts, what it told does too."""
        self._noted.append((error, recording))

    def recording_of(self, error: BaseException) -> RecordingT | None:
        """Give the recording of the call that raised this very error."""
        return next((made for raised, made in self._noted if raised is error), None)


# Makes what a host streams closable: a stream that nobody reads on is let go at once.


def closable(pieces: Iterable[PieceT]) -> Generator[PieceT, None, None]:
    """Give the pieces of any iterable; closing this closes it, where it can be closed.

    >>> each = closable(iter("ab"))
    >>> next(each), each.close()
    ('a', None)
    """
    yield from pieces


async def aclosable(pieces: AsyncIterable[PieceT]) -> AsyncGenerator[PieceT, None]:
    """Do the same with what is awaited."""
    try:
        async for piece in pieces:
            yield piece
    finally:
        close: Any = getattr(pieces, "aclose", None)
        if close is not None:
            await close()


# What an answer took, as plain values: replies are kept in checkpoints and sent as JSON.


REPORT: Final = "ralmspec"  # the key of the report in a host's reply


class DroppedCalls(TypedDict):
    """Calls of the host's model that were made, and may be paid for, and are not in the answer."""

    calls: int  # those that failed or were stopped are among them
    unreported: int  # of them: without a usage, at least until the answer was complete
    usage: dict[str, int] | None  # of the others


class Report(TypedDict):
    """What an answer took; `stats_in` makes a `Stats` of it again."""

    stats: dict[str, Any]  # the fields of `ralmspec_plugins.Stats`
    queries: list[str]  # what was asked of the retriever, in order
    usage: dict[str, int] | None  # of the calls that made the answer
    dropped: DroppedCalls | None  # of all other calls; `None` where no host's model is called


def report_of(answer: Answer) -> Report:
    """Make the report of an answer whose events were driven here."""
    calls: list[MadeCall] | None = getattr(draft_of(answer.state), "made", None)
    of_answer = [call for call in calls or () if call.committed]
    return Report(
        stats=_plain(answer.stats),
        queries=[step.query.text for step in answer.retrieved],
        usage=_usage(of_answer),
        dropped=None if calls is None else _dropped([one for one in calls if not one.committed]),
    )


def _dropped(calls: list[MadeCall]) -> DroppedCalls:
    unreported = sum(call.usage == Usage() for call in calls)
    return DroppedCalls(calls=len(calls), unreported=unreported, usage=_usage(calls))


def _usage(calls: list[MadeCall]) -> dict[str, int] | None:
    usage = sum((call.usage for call in calls), Usage())
    return None if usage == Usage() else asdict(usage)


def stats_in(reply: Mapping[str, Any] | None, what: str) -> Stats:
    """Make the statistics under `REPORT` an object again, for its computed numbers and pictures.

    Args:
        reply: what the report stands in.
        what: what it was expected to be, for the error.

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
    spans = [{**asdict(span), "outcome": span.outcome.value} for span in stats.timeline]
    return {
        **asdict(replace(stats, timeline=())),
        "batch_sizes": list(stats.batch_sizes),
        "timeline": spans,
    }
