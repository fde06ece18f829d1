"""Tells what a recording holds: in the context of the request, as the host would have told it."""

from dataclasses import replace
from itertools import takewhile
from typing import Any
from uuid import uuid4

from llama_index.core.callbacks import EventPayload
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.events.exception import ExceptionEvent
from llama_index.core.instrumentation.span import active_span_id
from llama_index_instrumentation.dispatcher import active_instrument_tags
from llama_index_instrumentation.events.span import SpanDropEvent

from llama_index_ralmspec.recording import Call, Recording


class Replay:
    """Hands a recording on, once or bit by bit while more is recorded.

    What stood directly under the span around the recorded call comes under the span
    that is active when it is told: of a stream that is read when its query has ended, none.
    """

    def __init__(
        self, recording: Recording, *, again: bool = False, after: "Replay | None" = None
    ) -> None:
        """Begin with nothing told.

        Args:
            recording: what is told.
            again: the same call is told more than once, for requests that share its
                result: each time it is a run of its own.
            after: of the same call, made before, which broke off: this one goes on where
                that one was told to, and its runs are that one's.
        """
        self.recording = recording
        self._again = again
        self.told: int = 0 if after is None else after.told
        self._after = after
        self._ids: dict[str | None, str | None] = {}

    def hand_on(self, end: int | None = None, *, whole: bool = True) -> None:
        """Tell what was recorded since the last time, up to a place.

        What is not whole may break off and be made once more: its failure is not told yet.
        """
        self._ids[self.recording.base] = active_span_id.get()
        self.recording.told = True
        if self._after is not None:
            self._take_over(self._after)
        calls = self.recording.calls(self.told, end)
        if not whole:
            calls = list(takewhile(lambda call: not _fails(call), calls))
        self.told += len(calls)
        for call in calls:
            made = self._as_here(call)
            getattr(made.teller, made.name)(*made.args, **made.kwargs)

    def _take_over(self, before: "Replay") -> None:
        """Go on with the ids under which the call was told before."""
        told = before.recording.calls(0, before.told)
        for first, second in zip(told, self.recording.calls(0, self.told), strict=False):
            for old, new in zip(_ids_in(first), _ids_in(second), strict=False):
                if new != self.recording.base:
                    self._ids[new] = before.id_of(old)

    def _as_here(self, call: Call) -> Call:
        """Give a call with the ids of this telling."""
        if call.name == "event":
            return self._event(call)
        if call.name.startswith("span_"):
            return self._span(call)
        if call.name.startswith("on_event_") and (self._again or self._after):
            event_id = call.kwargs.get("event_id")
            return replace(call, kwargs={**call.kwargs, "event_id": self.id_of(event_id)})
        return call

    def _event(self, call: Call) -> Call:
        event = call.args[0] if call.args else call.kwargs.get("event")
        if not isinstance(event, BaseEvent):
            return call
        span = self.id_of(event.span_id)
        if self._again:
            # Its tags are those of whoever asked first; the dispatcher puts on those of now.
            made: dict[str, Any] = {"span_id": span, "id_": str(uuid4()), "tags": {}}
            event = event.model_copy(update=made)
        elif span != event.span_id:
            event.span_id = span
        return replace(call, args=(event, *call.args[1:]))

    def _span(self, call: Call) -> Call:
        kwargs: dict[str, Any] = dict(call.kwargs)
        if "id_" in kwargs:
            kwargs["id_"] = self.id_of(kwargs["id_"])
        if "parent_id" in kwargs:
            kwargs["parent_id"] = self.id_of(kwargs["parent_id"])
        if "tags" in kwargs and self._again:
            kwargs["tags"] = active_instrument_tags.get()
        return replace(call, kwargs=kwargs)

    def id_of(self, told: str | None) -> str | None:
        """Give the id that stands for one of the recording's."""
        if told in self._ids or not self._again:
            return self._ids.get(told, told)
        name = (told or "").rsplit("-", 5)[0]  # of a span: what was called, before its UUID
        made = f"{name}-{uuid4()}" if name != told else str(uuid4())
        self._ids[told] = made
        return made


def _ids_in(call: Call) -> list[str | None]:
    """List the ids of a call's runs."""
    if call.name == "event":
        event = call.args[0] if call.args else call.kwargs.get("event")
        return [getattr(event, "span_id", None)]
    return [call.kwargs.get("id_"), call.kwargs.get("event_id")]


def _fails(call: Call) -> bool:
    """Say whether a call tells of a failure."""
    if call.name == "on_event_end":
        payload = call.kwargs.get("payload") or next(iter(call.args[1:]), None) or {}
        return EventPayload.EXCEPTION in payload
    event = next(iter(call.args), call.kwargs.get("event")) if call.name == "event" else None
    return call.name == "span_drop" or isinstance(event, ExceptionEvent | SpanDropEvent)
