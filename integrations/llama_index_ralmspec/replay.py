"""Tells what a recording holds: in the context of the request, as the host would have told it."""

from dataclasses import replace
from typing import Any
from uuid import uuid4

from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.span import active_span_id

from llama_index_ralmspec.recording import Call, Recording


class Replay:
    """Hands a recording on, once or bit by bit while more is recorded.

    What stood directly under the span around the recorded call comes under the span
    that is active when it is told: of a stream that is read when its query has ended, none.
    """

    def __init__(self, recording: Recording, *, again: bool = False) -> None:
        """Begin with nothing told.

        Args:
            recording: what is told.
            again: the same call is told more than once, for requests that share its
                result: each time it is a run of its own.
        """
        self.recording = recording
        self._again = again
        self._told = 0
        self._ids: dict[str | None, str | None] = {}

    def hand_on(self, end: int | None = None) -> None:
        """Tell what was recorded since the last time, up to a place."""
        self._ids[self.recording.base] = active_span_id.get()
        self.recording.told = True
        calls = self.recording.calls(self._told, end)
        self._told += len(calls)
        for call in calls:
            made = self._as_here(call)
            getattr(made.teller, made.name)(*made.args, **made.kwargs)

    def _as_here(self, call: Call) -> Call:
        """Give a call with the ids of this telling."""
        if call.name == "event":
            return self._event(call)
        if call.name.startswith("span_"):
            return self._span(call)
        if call.name.startswith("on_event_") and self._again:
            event_id = call.kwargs.get("event_id")
            return replace(call, kwargs={**call.kwargs, "event_id": self._id(event_id)})
        return call

    def _event(self, call: Call) -> Call:
        event = call.args[0] if call.args else call.kwargs.get("event")
        if not isinstance(event, BaseEvent):
            return call
        span = self._id(event.span_id)
        if self._again:
            event = event.model_copy(update={"span_id": span, "id_": str(uuid4())})
        elif span != event.span_id:
            event.span_id = span
        return replace(call, args=(event, *call.args[1:]))

    def _span(self, call: Call) -> Call:
        kwargs: dict[str, Any] = dict(call.kwargs)
        if "id_" in kwargs:
            kwargs["id_"] = self._id(kwargs["id_"])
        if "parent_id" in kwargs:
            kwargs["parent_id"] = self._id(kwargs["parent_id"])
        return replace(call, kwargs=kwargs)

    def _id(self, told: str | None) -> str | None:
        """Give the id that stands for one of the recording's."""
        if told in self._ids or not self._again:
            return self._ids.get(told, told)
        name = (told or "").rsplit("-", 5)[0]  # of a span: what was called, before its UUID
        made = f"{name}-{uuid4()}" if name != told else str(uuid4())
        self._ids[told] = made
        return made
