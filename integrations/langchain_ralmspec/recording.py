"""Keeps the host's events back until the work that caused them is part of the answer.

A model call made under the caller's own callbacks shows up in `astream_events`, in
LangGraph's streams and in every trace, also if it is rolled back a moment later. So
speculative calls run under a handler that only records. What is committed is handed
on to the real handlers, in the host's order; what is dropped is never seen.
"""

import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from langchain_core.callbacks import (
    BaseCallbackHandler,
)
from langchain_core.tracers._streaming import _V2StreamingCallbackHandler

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
