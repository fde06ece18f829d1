"""One request told and shown: in order, to its end, and given up with its pieces."""

import asyncio
from collections.abc import Iterator
from contextlib import aclosing, closing

import pytest

from ralmspec_plugins import AsyncEngine, Engine, Request, Settings
from ralmspec_plugins.adapters.events import AsyncPieces, drive_events
from ralmspec_plugins.effects import Confirmed, Event, Settled
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.testing import EchoWorkload, Lines, WordRetriever
from ralmspec_plugins.types import Hits

RETRIEVER = WordRetriever(["the fox is red", "the sea is wide", "the day is long"])


class Broken(EchoWorkload):
    """Fails at the word "stop"."""

    def extend(self, state: Lines, hits: Hits, progress: Progress) -> Lines:
        if state[0][0] == "stop":
            raise ArithmeticError("no further")
        return super().extend(state, hits, progress)


class Heard:
    """Keeps what is told, in the order in which it was told to the end."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.errors: list[type[BaseException]] = []
        self.begun, self.gate = asyncio.Event(), asyncio.Event()
        self.gate.set()

    def tell(self, event: Event) -> None:
        self.told.append(type(event).__name__)

    async def atell(self, event: Event) -> None:
        self.begun.set()
        await self.gate.wait()
        self.tell(event)

    def failed(self, error: BaseException) -> None:
        self.errors.append(type(error))

    async def afailed(self, error: BaseException) -> None:
        self.failed(error)


def shown(event: Event) -> Iterator[str]:
    if isinstance(event, Confirmed):
        yield f"? {event.retrieved.query.text}"
    elif isinstance(event, Settled):
        yield event.text


async def test_pieces_come_behind_what_is_told() -> None:
    """Both ways give the same pieces, and all that happens is told."""
    request = Request(prompt="fox sea")
    heard, aheard = Heard(), Heard()
    with Engine(EchoWorkload(), RETRIEVER, Settings(speculate=False)) as engine:
        pieces = list(drive_events(engine.events(request), heard, shown))
    async with AsyncEngine(EchoWorkload(), RETRIEVER, Settings(speculate=False)) as other:
        awaited = [piece async for piece in AsyncPieces(other.events(request), aheard, shown)]

    expected = ["? fox", "the fox is red", "? sea", "the fox is red\nthe sea is wide"]
    assert expected == [one for at, one in enumerate(pieces) if one not in pieces[:at]]
    assert expected == [one for at, one in enumerate(awaited) if one not in awaited[:at]]
    assert 2 == heard.told.count("Confirmed") == aheard.told.count("Confirmed")
    assert not heard.errors + aheard.errors


async def test_a_failure_is_told_and_raised() -> None:
    """Behind everything that came before it."""
    request = Request(prompt="fox stop")
    heard, aheard = Heard(), Heard()
    with Engine(Broken(), RETRIEVER) as engine, pytest.raises(ArithmeticError):
        list(drive_events(engine.events(request), heard, shown))
    async with AsyncEngine(Broken(), RETRIEVER) as other:
        with pytest.raises(ArithmeticError):
            [piece async for piece in AsyncPieces(other.events(request), aheard, shown)]

    assert [ArithmeticError] == heard.errors == aheard.errors
    assert 2 == heard.told.count("Confirmed") == aheard.told.count("Confirmed")


async def test_closing_gives_the_request_up() -> None:
    """The rest is neither computed nor told; who tells hears that it was given up."""
    request = Request(prompt="fox sea day")
    heard, aheard = Heard(), Heard()
    with Engine(EchoWorkload(), RETRIEVER) as engine:
        events = engine.events(request)
        with closing(drive_events(events, heard, shown)) as pieces:
            assert "? fox" == next(pieces)
        assert list(events) == []
    async with (
        AsyncEngine(EchoWorkload(), RETRIEVER) as other,
        aclosing(AsyncPieces(other.events(request), aheard, shown)) as apieces,
    ):
        assert "? fox" == await anext(apieces)

    assert [GeneratorExit] == heard.errors == aheard.errors
    assert heard.told.count("Confirmed") == aheard.told.count("Confirmed") == 1


async def test_what_is_being_told_is_told_to_its_end() -> None:
    """A task that is cancelled meanwhile leaves no event half told."""
    heard = Heard()
    heard.gate.clear()
    async with AsyncEngine(EchoWorkload(), RETRIEVER) as engine:
        events = engine.events(Request(prompt="fox sea day"))

        async def read() -> list[str]:
            return [piece async for piece in AsyncPieces(events, heard, shown)]

        task = asyncio.create_task(read())
        await heard.begun.wait()
        task.cancel()
        asyncio.get_running_loop().call_soon(heard.gate.set)
        with pytest.raises(asyncio.CancelledError):
            await task

    assert 1 == len(heard.told)
    assert [asyncio.CancelledError] == heard.errors
