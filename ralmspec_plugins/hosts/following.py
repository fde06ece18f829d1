"""Follows one request: what happens is told to the host's handlers, and shown in pieces."""

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Iterator,
)
from typing import Any, Protocol, TypeVar

from ralmspec_plugins.effects import Event

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


class Telling(Protocol):
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


def followed(
    events: Events, telling: Telling, show: Callable[[Event], Iterable[PieceT]]
) -> Generator[PieceT, None, None]:
    """Tell each event, and give the pieces that it makes.

    The request ends with this generator: closing it gives the request up.

    Raises:
        Exception: what the request, or a handler, raises.
    """
    try:
        for event in events:
            telling.tell(event)
            yield from show(event)
    except BaseException as error:
        events.close()
        telling.failed(error)
        raise


async def afollowed(
    events: AsyncEvents, telling: Telling, show: Callable[[Event], Iterable[PieceT]]
) -> AsyncGenerator[PieceT, None]:
    """Do the same on an event loop; what is being told is told to its end.

    Raises:
        Exception: what the request, or a handler, raises.
    """
    try:
        async for event in events:
            await _to_its_end(telling.atell(event))
            for piece in show(event):
                yield piece
    except BaseException as error:
        await events.aclose()
        await _to_its_end(telling.afailed(error))
        raise


async def _to_its_end(telling: Coroutine[Any, Any, None]) -> None:
    """Have something told completely, also when this task is cancelled: a run told has an end."""
    task = asyncio.ensure_future(telling)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
