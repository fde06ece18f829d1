"""An answer while it comes, on asyncio: its pieces of text, or all events of its request."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import TypeAlias

from ralmspec_plugins.errors import Cancelled
from ralmspec_plugins.events import Event, Settled
from ralmspec_plugins.needs import Broken, Completion
from ralmspec_plugins.records import Answer

AsyncCompletionQueue: TypeAlias = "asyncio.Queue[Completion | Broken]"


class AsyncEventStream(AsyncIterator[Event]):
    """What happens while a request is answered; `answer` is there after the last event."""

    def __init__(
        self,
        drive: Callable[[Callable[[Answer], None]], AsyncGenerator[Event, None]],
        completed: AsyncCompletionQueue,
    ) -> None:
        """Give out what `drive` yields, and keep the answer that it finishes with."""
        self._events = drive(self._finish)
        self._completed = completed
        self._answer: Answer | None = None

    def _finish(self, answer: Answer) -> None:
        self._answer = answer

    async def __anext__(self) -> Event:
        """Wait for the next event."""
        return await anext(self._events)

    async def aclose(self) -> None:
        """Give the request up, from any task of its loop; all its work is stopped.

        Whoever is waiting for an event in another task gets `Cancelled`.
        """
        try:
            await self._events.aclose()
        except RuntimeError:  # it is running, in another task
            self._completed.put_nowait(Broken(Cancelled("this stream was closed")))

    @property
    def answer(self) -> Answer:
        """The whole answer, once the stream was read to its end."""
        if self._answer is None:
            raise RuntimeError("read this stream to its end before asking for its answer")
        return self._answer


class AsyncAnswerStream(AsyncIterator[str]):
    """The pieces of an answer as they become settled; `answer` is there after the last one."""

    def __init__(self, events: AsyncEventStream) -> None:
        """Give out the text of these events."""
        self._events = events
        self._shown = 0

    async def __anext__(self) -> str:
        """Wait for the next piece."""
        async for event in self._events:
            if isinstance(event, Settled):
                piece = event.text[self._shown :]
                self._shown = len(event.text)
                return piece
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Give the request up, from any task of its loop; all its work is stopped.

        Whoever is waiting for a piece in another task gets `Cancelled`.
        """
        await self._events.aclose()

    @property
    def answer(self) -> Answer:
        """The whole answer, once the stream was read to its end."""
        return self._events.answer
