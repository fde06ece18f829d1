"""An answer while it comes: its pieces of text, or all events of its request."""

import asyncio
import queue
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from typing import Any, TypeAlias

from ralmspec_plugins.effects import Aborted, Completion, Event, Settled
from ralmspec_plugins.errors import Cancelled
from ralmspec_plugins.types import Answer

CompletionQueue: TypeAlias = "queue.SimpleQueue[Completion | Aborted]"


class EventStream(Iterator[Event]):
    """What happens while a request is answered; `answer` is there after the last event."""

    def __init__(self, events: Generator[Event, None, Answer], completed: CompletionQueue) -> None:
        """Give out these events; `completed` is what they are waited for at."""
        self._events = events
        self._completed = completed
        self._answer: Answer | None = None
        self._error: Exception | None = None

    def __next__(self) -> Event:
        """Wait for the next event."""
        try:
            return next(self._events)
        except StopIteration as stop:
            if self._answer is None:
                self._answer = stop.value
            raise StopIteration from None
        except Exception as error:
            self._error = error
            raise

    def close(self) -> None:
        """Give the request up, from any thread; all its work is stopped.

        Whoever is waiting for an event in another thread gets `Cancelled`.
        """
        try:
            self._events.close()
        except ValueError:  # it is running, in another thread
            self._completed.put(Aborted(Cancelled("this stream was closed")))

    @property
    def answer(self) -> Answer:
        """The whole answer; reads the stream to its end first."""
        for _ in self:
            pass
        if self._error is not None:
            raise self._error
        if self._answer is None:
            raise RuntimeError("this stream was closed before its answer was complete")
        return self._answer


class AnswerStream(Iterator[str]):
    """The pieces of an answer as they become settled; `answer` is there after the last one."""

    def __init__(self, events: EventStream) -> None:
        """Give out the text of these events."""
        self._events = events
        self._shown = 0

    def __next__(self) -> str:
        """Wait for the next piece."""
        for event in self._events:
            if isinstance(event, Settled):
                piece = event.text[self._shown :]
                self._shown = len(event.text)
                return piece
        raise StopIteration

    def close(self) -> None:
        """Give the request up, from any thread; all its work is stopped.

        Whoever is waiting for a piece in another thread gets `Cancelled`.
        """
        self._events.close()

    @property
    def answer(self) -> Answer:
        """The whole answer; reads the stream to its end first."""
        return self._events.answer


def rest(shown: int, answer: Answer) -> Iterator[Any]:
    """Settle what is left of a complete answer's text."""
    if len(answer.text) > shown:
        yield Settled(answer.text, answer.state)


# An answer while it comes, on asyncio: its pieces of text, or all events of its request.


AsyncCompletionQueue: TypeAlias = "asyncio.Queue[Completion | Aborted]"


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
            self._completed.put_nowait(Aborted(Cancelled("this stream was closed")))

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
