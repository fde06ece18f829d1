"""Gives what was recorded the ids of spans, events and callbacks under which it is told."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

from llama_index.core.instrumentation.events import BaseEvent

from llama_index_ralmspec.wrapping import Call

IdOf: TypeAlias = Callable[[str | None], str | None]
_NAMED = ("id_", "parent_id", "event_id")


def renamed(call: Call, id_of: IdOf, **changed: Any) -> Call:
    """Give a call with other ids.

    Args:
        call: what was recorded.
        id_of: gives the id that stands for one of the recording's.
        changed: fields of an event that are others, too; it is copied then.
    """
    event = event_of(call)
    if event is None:
        kwargs = dict(call.kwargs)
        for name in _NAMED:
            if name in kwargs:
                kwargs[name] = id_of(kwargs[name])
        return replace(call, kwargs=kwargs)
    span = id_of(event.span_id)
    if changed:
        event = event.model_copy(update={"span_id": span, **changed})
    elif span != event.span_id:
        event.span_id = span
    others = {name: value for name, value in call.kwargs.items() if name != "event"}
    return replace(call, args=(event, *call.args[1:]), kwargs=others)


def event_of(call: Call) -> BaseEvent | None:
    """Give the event that a dispatcher was to tell, in a call that tells one."""
    if call.name not in ("event", "aevent"):
        return None
    found = call.args[0] if call.args else call.kwargs.get("event")
    return found if isinstance(found, BaseEvent) else None


def ids_in(call: Call) -> list[str | None]:
    """List the ids of a call's runs."""
    event = event_of(call)
    if event is not None:
        return [event.span_id]
    return [call.kwargs.get("id_"), call.kwargs.get("event_id")]
