"""Streams of an answer: its pieces of text, or all events of its request."""

import asyncio
import queue
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Final, Protocol, TypeAlias

from ralmspec_plugins import telemetry
from ralmspec_plugins.effects import Aborted, Completion, Event, Settled
from ralmspec_plugins.errors import Cancelled
from ralmspec_plugins.types import Answer

Outcome: TypeAlias = Answer | Exception
CompletionQueue: TypeAlias = "queue.SimpleQueue[Completion | Aborted]"
AsyncCompletionQueue: TypeAlias = "asyncio.Queue[Completion | Aborted]"
_CLOSED: Final = "this stream was closed"


class IterationEndError(RuntimeError):
    """A part's `StopIteration`, where an iterator would be taken to have ended by it.

    As Python does it in generators. `error` is what the part raised.
    """

    def __init__(self, error: Exception) -> None:
        """Return a key of what the part raised."""
        super().__init__(f"a part of the request raised {error!r}")
        self.error = error


class _Result:
    """The result of a stream: an answer, an error, or none yet."""

    def __init__(self) -> None:
        self._outcome: Outcome | None = None
        self._began_ns = time.time_ns()

    def _finish(self, outcome: Outcome) -> None:
        if self._outcome is None:  # a stream may be read again after its end
            self._outcome = outcome
            telemetry.record(outcome, self._began_ns)

    def _raise(self) -> None:
        """Raise the error of the request.

        A `StopIteration` of a part would end the iterator: it is raised as a `RuntimeError`,
        as generators do; `answer` raises it unchanged.
        """
        error = self._outcome
        if isinstance(error, StopIteration | StopAsyncIteration):
            raise IterationEndError(error) from error
        if isinstance(error, Exception):
            raise error

    def _answer(self, unfinished: str) -> Answer:
        if self._outcome is None:
            raise RuntimeError(unfinished)
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome


class EventStream(_Result, Iterator[Event]):
    """The events of a request; `answer` is available after the last event."""

    def __init__(
        self,
        events: Generator[Event, None, Outcome],
        completed: CompletionQueue,
        stop: Callable[[], None],
    ) -> None:
        """Iterate over these events, which wait on the queue `completed`.

        Args:
            events: of the request.
            completed: receives what ends the waiting.
            stop: stops generation in the thread that iterates; called from any thread.
        """
        super().__init__()
        self._events = events
        self._completed = completed
        self._stop = stop

    def __next__(self) -> Event:
        """Wait for the next event, and return it."""
        event = self._next()
        if event is None:
            raise StopIteration
        return event

    def _next(self, *, raises: bool = True) -> Event | None:
        try:
            return next(self._events)
        except StopIteration as stop:
            if self._outcome is None and stop.value is not None:
                self._finish(stop.value)
                if raises:
                    self._raise()
            return None

    def close(self) -> None:
        """Cancel the request, from any thread; all its work is stopped.

        A thread that waits for an event receives `Cancelled`: at once, or after the work that it
        carries out itself, which is the case without speculation, and where guesses do not pay off.
        """
        try:
            self._events.close()
        except ValueError as error:
            if not _raised_by_interpreter(error):  # but by what is cleaned up
                raise
            self._completed.put(Aborted(Cancelled(_CLOSED)))  # it is running, in another thread
            self._stop()

    @property
    def answer(self) -> Answer:
        """The answer; the rest of the stream is read first."""
        while self._next(raises=False) is not None:
            pass
        return self._answer("this stream was closed before its answer was complete")


def _raised_by_interpreter(error: BaseException) -> bool:
    """Return whether an error that was caught where it is asked has passed no other frame."""
    traceback = error.__traceback__
    return traceback is not None and traceback.tb_next is None


class AsyncRun(Protocol):
    """One request on an event loop."""

    @property
    def finished(self) -> bool:
        """Whether the request has ended."""
        ...

    async def advance(self) -> list[Event]:
        """Wait for a completion; return the resulting events."""
        ...

    async def end(self) -> tuple[Outcome, list[Event]]:
        """Stop the work in flight; return the outcome of the request, and its last events."""
        ...

    async def stop(self) -> None:
        """Stop all work."""
        ...


class AsyncEventStream(_Result, AsyncIterator[Event]):
    """The events of a request; `answer` is available after the last event."""

    def __init__(self, run: AsyncRun, completed: AsyncCompletionQueue) -> None:
        """Iterate over the events of this run, which waits on the queue `completed`."""
        super().__init__()
        self._run = run
        self._completed = completed
        self._events: deque[Event] = deque()
        self._last: Outcome | None = None  # the outcome, while events before it are unread
        self._busy = self._closed = False
        self._given_up = False  # closed while another task was waiting for an event

    async def __anext__(self) -> Event:
        """Wait for the next event, and return it."""
        before = self._outcome
        event = await self._next()
        if event is None:
            if before is None:
                self._raise()
            raise StopAsyncIteration
        return event

    async def _next(self) -> Event | None:
        """Return the next event, or `None` after the last one."""
        if self._busy:
            raise RuntimeError("this stream is read by another task")
        while not self._events:
            if self._last is not None:
                self._finish(self._last)
            if self._closed or self._outcome is not None:
                return None
            self._busy = True
            try:
                await self._advance()
            except Exception as error:  # noqa: BLE001 raised by the stream
                self._last = error
                await self._stop_run()
            except GeneratorExit:  # collected, where nothing can be awaited: so is the run
                self._closed = True
                raise
            except BaseException:
                self._closed = True
                await self._run.stop()
                raise
            finally:
                self._busy = False
        return self._events.popleft()

    async def _stop_run(self) -> None:
        """Stop the work of a failed request; what that raises is the request's error."""
        try:
            await self._run.stop()
        except Exception as error:  # noqa: BLE001 raised by the stream
            self._last = error

    async def _advance(self) -> None:
        if self._run.finished:
            self._last, rest = await self._run.end()
            self._events.extend(rest)
            return
        events = await self._run.advance()
        if self._given_up:
            raise Cancelled(_CLOSED)
        self._events.extend(events)

    async def outcome(self) -> Outcome:
        """Read the stream to its end, and return its answer or error."""
        while await self._next() is not None:
            pass
        assert self._outcome is not None
        return self._outcome

    async def aclose(self) -> None:
        """Cancel the request, from any task of its loop; all its work is stopped.

        A task that waits for an event stops the work, and receives `Cancelled`.
        """
        if self._busy:  # in another task
            self._given_up = True
            self._completed.put_nowait(Aborted(Cancelled(_CLOSED)))
            return
        self._closed = True
        self._events.clear()
        await self._run.stop()

    @property
    def answer(self) -> Answer:
        """The answer, after the stream was read to its end."""
        return self._answer("read this stream to its end before asking for its answer")


class _Shown:
    """The length of the text that was emitted."""

    def __init__(self) -> None:
        self._shown = 0

    def _piece(self, event: Settled) -> str:
        piece = event.text[self._shown :]
        self._shown = len(event.text)
        return piece


class AnswerStream(_Shown, Iterator[str]):
    """The pieces of an answer as they become settled; `answer` is available after the last one."""

    def __init__(self, events: EventStream) -> None:
        """Iterate over the text of these events."""
        super().__init__()
        self._events = events

    def __next__(self) -> str:
        """Wait for the next piece, and return it."""
        for event in self._events:
            if isinstance(event, Settled):
                return self._piece(event)
        raise StopIteration

    def close(self) -> None:
        """Cancel the request, from any thread; all its work is stopped.

        A thread that waits for a piece receives `Cancelled`.
        """
        self._events.close()

    @property
    def answer(self) -> Answer:
        """The answer; the rest of the stream is read first."""
        return self._events.answer


class AsyncAnswerStream(_Shown, AsyncIterator[str]):
    """The pieces of an answer as they become settled; `answer` is available after the last one."""

    def __init__(self, events: AsyncEventStream) -> None:
        """Iterate over the text of these events."""
        super().__init__()
        self._events = events

    async def __anext__(self) -> str:
        """Wait for the next piece, and return it."""
        async for event in self._events:
            if isinstance(event, Settled):
                return self._piece(event)
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Cancel the request, from any task of its loop; all its work is stopped.

        A task that waits for a piece receives `Cancelled`.
        """
        await self._events.aclose()

    @property
    def answer(self) -> Answer:
        """The answer, after the stream was read to its end."""
        return self._events.answer
