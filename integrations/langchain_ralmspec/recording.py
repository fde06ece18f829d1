"""Keeps the host's events back until the work that caused them is part of the answer.

A model call made under the caller's own callbacks shows up in `astream_events`, in
LangGraph's streams and in every trace, also if it is rolled back a moment later. So
speculative calls run under a handler that only records. What is committed is handed
on to the real handlers, in the host's order; what is dropped is never seen.
"""

import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias
from uuid import UUID

from langchain_core.callbacks import (
    BaseCallbackHandler,
)
from langchain_core.callbacks.manager import ahandle_event, handle_event
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.tracers._streaming import _V2StreamingCallbackHandler
from langchain_core.utils.utils import LC_ID_PREFIX

from ralmspec_plugins.errors import Cancelled

# Every event that a handler can get, and the flag with which it can refuse it.
IGNORED_BY: Mapping[str, str | None] = {
    "on_llm_start": "ignore_llm",
    "on_chat_model_start": "ignore_chat_model",
    "on_llm_new_token": "ignore_llm",
    "on_stream_event": "ignore_llm",
    "on_llm_end": "ignore_llm",
    "on_llm_error": "ignore_llm",
    "on_retriever_start": "ignore_retriever",
    "on_retriever_end": "ignore_retriever",
    "on_retriever_error": "ignore_retriever",
    "on_chain_start": "ignore_chain",
    "on_chain_end": "ignore_chain",
    "on_chain_error": "ignore_chain",
    "on_tool_start": "ignore_agent",
    "on_tool_end": "ignore_agent",
    "on_tool_error": "ignore_agent",
    "on_agent_action": "ignore_agent",
    "on_agent_finish": "ignore_agent",
    "on_text": None,
    "on_retry": "ignore_retry",
    "on_custom_event": "ignore_custom_event",
}


@dataclass(frozen=True, slots=True)
class Event:
    """One call of a handler's method."""

    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


Emit: TypeAlias = Callable[[Event], None]
AsyncEmit: TypeAlias = Callable[[Event], Awaitable[None]]


class Recording:
    """The events of one host call: kept back, then handed on, those that still come included.

    Either `release` is used or `arelease`, by whoever commits; the events themselves
    may come from any thread.
    """

    def __init__(self) -> None:
        """Start with nothing recorded."""
        self.events: list[Event] = []  # those that have not been handed on
        self._lock = threading.RLock()
        self._emit: Emit | None = None
        self._aemit: AsyncEmit | None = None

    @property
    def tells_more(self) -> bool:
        """Whether there is more to tell than one retriever's run: runs inside, or a chain's."""
        with self._lock:
            runs = {event.kwargs.get("run_id") for event in self.events}
            first = next((event.name for event in self.events), "on_retriever_start")
        return len(runs) > 1 or first != "on_retriever_start"

    def take(self, event: Event) -> None:
        """Keep an event back, or hand it on where that is allowed already."""
        with self._lock:
            if self._emit is None:
                self.events.append(event)
            else:
                self._emit(event)

    async def atake(self, event: Event) -> None:
        """Do the same on an event loop."""
        with self._lock:
            if self._aemit is None:
                self.events.append(event)
                return
        await self._aemit(event)

    def release(self, emit: Emit) -> None:
        """Hand everything on, from now on at once; a second time does nothing."""
        with self._lock:
            if self._emit is not None:
                return
            for event in self.events:
                emit(event)
            self.events.clear()
            self._emit = emit

    async def arelease(self, emit: AsyncEmit) -> None:
        """Do the same on an event loop."""
        while self._aemit is None:
            with self._lock:
                batch, self.events = self.events, []
                if not batch:
                    self._aemit = emit
            for event in batch:
                await emit(event)


class Recorder(BaseCallbackHandler):
    """A handler that puts every event into a recording."""

    run_inline = True
    raise_error = True  # a fault of ours must not be swallowed

    def __init__(self, recording: Recording) -> None:
        """Record there."""
        self.recording = recording


class AsyncRecorder(Recorder):
    """The same for calls on an event loop, where real handlers may have to be awaited."""


def _recorded(name: str) -> Callable[..., None]:
    def record(self: Recorder, *args: Any, **kwargs: Any) -> None:
        self.recording.take(Event(name, args, kwargs))

    return record


def _arecorded(name: str) -> Callable[..., Awaitable[None]]:
    async def record(self: Recorder, *args: Any, **kwargs: Any) -> None:
        await self.recording.atake(Event(name, args, kwargs))

    return record


for _name in IGNORED_BY:
    setattr(Recorder, _name, _recorded(_name))
    setattr(AsyncRecorder, _name, _arecorded(_name))


class _Taps:
    """What marks a handler that wants a model to stream, also when it is invoked."""

    def tap_output_aiter(self, run_id: Any, output: Any) -> Any:
        """Change nothing."""
        return output

    def tap_output_iter(self, run_id: Any, output: Any) -> Any:
        """Change nothing."""
        return output


class _TappingRecorder(_Taps, Recorder):
    pass


class _AsyncTappingRecorder(_Taps, AsyncRecorder):
    pass


class _EventRecorder(Recorder, _V2StreamingCallbackHandler):
    pass


class _AsyncEventRecorder(AsyncRecorder, _V2StreamingCallbackHandler):
    pass


def recorder_like(
    handlers: Sequence[BaseCallbackHandler], recording: Recording, *, asynchronous: bool
) -> Recorder:
    """Make a recorder that has a model do what it does for these handlers: stream, or not."""
    if any(isinstance(handler, _V2StreamingCallbackHandler) for handler in handlers):
        return (_AsyncEventRecorder if asynchronous else _EventRecorder)(recording)
    if any(hasattr(handler, "tap_output_aiter") for handler in handlers):
        return (_AsyncTappingRecorder if asynchronous else _TappingRecorder)(recording)
    return (AsyncRecorder if asynchronous else Recorder)(recording)


# The events of one committed call on their way to the handlers, while it still runs.


_ENDS: Final = {"llm": "on_llm_error", "chat_model": "on_llm_error"}  # by what has been started
_TOKENS: Final = ("on_llm_new_token", "on_stream_event")


class Live:
    """Tells handlers what a call says, in its order, and knows which runs are open.

    An error is kept back until it is known what it means: a call that failed while
    others were running is made once more, alone. What that one says continues the
    run that was told: handlers see one run, and no token twice.
    """

    def __init__(
        self, handlers: Sequence[BaseCallbackHandler], former: "Live | None" = None
    ) -> None:
        """Tell these handlers; `former` is the call before, which may have broken off."""
        self._handlers = list(handlers)
        self._open: dict[UUID, Event] = {}  # the start events of runs that have not ended
        self._held: Event | None = None  # an error that may yet come to nothing
        self._tokens = 0  # that were told
        self._resumed: Event | None = None  # the start of a run that goes on here
        self._skip = 0  # tokens of it that were told before
        self._same: dict[UUID, UUID] = {}  # runs here, by the runs that they go on with
        self._shut = False
        self._raised: Exception | None = None  # by a handler
        self._lock = threading.RLock()
        broken_off = None if former is None else former.hand_on()
        if broken_off is not None:
            self._resumed, self._skip, self._handlers = broken_off
            self._open[self._resumed.kwargs["run_id"]] = self._resumed
            self._tokens = self._skip

    def hand_on(self) -> tuple[Event, int, list[BaseCallbackHandler]] | None:
        """Give up a run that broke off: its start, how many tokens were told, and to whom."""
        with self._lock:
            if self._held is None or len(self._open) != 1 or self._shut:
                return None
            self._shut = True
            [start] = self._open.values()
            return start, self._tokens, self._handlers

    def emit(self, event: Event) -> None:
        """Tell an event; nothing more after the end."""
        with self._lock:
            for one in self._due(event):
                self._tell(one)

    async def aemit(self, event: Event) -> None:
        """Do the same on an event loop."""
        with self._lock:
            due = self._due(event)
        for one in due:
            await self._atell(one)

    def committed(self) -> None:
        """Tell an error that came to nothing else: the call went on and has succeeded."""
        with self._lock:
            for one in self._let_go():
                self._tell(one)

    async def acommitted(self) -> None:
        """Do the same on an event loop."""
        with self._lock:
            due = self._let_go()
        for one in due:
            await self._atell(one)

    def shut(self, error: BaseException) -> None:
        """End the runs that are open, and tell nothing more."""
        for one in self._endings(error):
            self._tell(one)

    async def ashut(self, error: BaseException) -> None:
        """Do the same on an event loop."""
        for one in self._endings(error):
            await self._atell(one)

    def check(self) -> None:
        """Raise what a handler has raised, if it was asked to (`raise_error`).

        It has broken off the model's call too, as it does at the host. But it is no failure
        of the model, which could come out otherwise if it were called once more.
        """
        if self._raised is not None:
            raise self._raised

    def _tell(self, event: Event) -> None:
        try:
            tell(self._handlers, event)
        except Exception as error:
            self._raised = self._raised or error
            raise

    async def _atell(self, event: Event) -> None:
        try:
            await atell(self._handlers, event)
        except Exception as error:
            self._raised = self._raised or error
            raise

    def _endings(self, error: BaseException) -> list[Event]:
        with self._lock:
            if self._shut:
                return []
            self._shut = True
            held = [] if self._held is None else [self._held]
            ended = {event.kwargs["run_id"] for event in held}
            starts = reversed(self._open.items())
            return held + [_ending(one, error) for run_id, one in starts if run_id not in ended]

    def _let_go(self) -> list[Event]:
        held, self._held = self._held, None
        if held is None or self._shut:
            return []
        self._open.pop(held.kwargs["run_id"], None)
        return [held]

    def _due(self, event: Event) -> list[Event]:
        """List what is to be told when this comes."""
        due = self._let_go()  # the call itself went on
        here = self._renamed(event)
        if here is None or self._shut:
            return due
        run_id = here.kwargs.get("run_id")
        if run_id is not None and here.name.endswith("_error"):
            self._held = here
            return due
        if run_id is not None and here.name.endswith("_start"):
            self._open[run_id] = here
        elif run_id is not None and here.name.endswith("_end"):
            self._open.pop(run_id, None)
        self._tokens += here.name in _TOKENS
        return [*due, here]

    def _renamed(self, event: Event) -> Event | None:
        """Give an event as one of the run that it goes on with; `None` if it was told before."""
        run_id = event.kwargs.get("run_id")
        resumed = self._resumed
        if resumed is not None and event.name == resumed.name and run_id is not None:
            self._same[run_id], self._resumed = resumed.kwargs["run_id"], None
            return None
        if run_id not in self._same:
            return event
        if event.name in _TOKENS and self._skip:
            self._skip -= 1
            return None
        former = self._same[run_id]
        kwargs = {key: _readdressed(one, run_id, former) for key, one in event.kwargs.items()}
        args = tuple(_readdressed(one, run_id, former) for one in event.args)
        return replace(event, args=args, kwargs={**kwargs, "run_id": former})


def tell(handlers: list[BaseCallbackHandler], event: Event) -> None:
    """Call the handlers, as the host does."""
    handle_event(handlers, event.name, IGNORED_BY[event.name], *event.args, **event.kwargs)


async def atell(handlers: list[BaseCallbackHandler], event: Event) -> None:
    """Call and await the handlers, as the host does."""
    await ahandle_event(handlers, event.name, IGNORED_BY[event.name], *event.args, **event.kwargs)


def _ending(start: Event, error: BaseException) -> Event:
    kind = start.name.removeprefix("on_").removesuffix("_start")
    about = {key: start.kwargs.get(key) for key in ("run_id", "parent_run_id", "tags")}
    ended = error if isinstance(error, Exception) else Cancelled("the request was given up")
    return Event(_ENDS.get(kind, f"on_{kind}_error"), (ended,), about)


def _readdressed(value: Any, run_id: UUID, former: UUID) -> Any:
    """Give messages the id that they have by their run: streams put chunks together by it."""
    if isinstance(value, LLMResult):
        made = [[_readdressed(one, run_id, former) for one in some] for some in value.generations]
        return value.model_copy(update={"generations": made})
    if isinstance(value, ChatGeneration):
        message = _readdressed(value.message, run_id, former)
        return value.model_copy(update={"message": message})
    if isinstance(value, BaseMessage) and value.id == f"{LC_ID_PREFIX}-{run_id}":
        return value.model_copy(update={"id": f"{LC_ID_PREFIX}-{former}"})
    return value
