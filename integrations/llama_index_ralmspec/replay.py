"""Tells what a recording holds: in the context of the request, as the host would have told it."""

from collections.abc import Callable, Coroutine
from itertools import takewhile
from types import MethodType
from typing import Any, TypeAlias, TypeVar
from uuid import uuid4

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import EventPayload
from llama_index.core.instrumentation.events.exception import ExceptionEvent
from llama_index.core.instrumentation.span import active_span_id
from llama_index.core.schema import NodeWithScore, QueryBundle
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.dispatcher import (
    DISPATCHER_SPAN_DECORATED_ATTR,
    active_instrument_tags,
)
from llama_index_instrumentation.events.span import SpanDropEvent

from llama_index_ralmspec.recording import Call, Recording, event_of, ids_in, renamed

_BEGINS = {"span_enter": "id_", "on_event_start": "event_id"}


class Replay:
    """Hands a recording on, once or bit by bit while more is recorded.

    What stood directly under the span around the recorded call comes under the span
    that is active when it is told: of a stream that is read when its query has ended, none.
    """

    def __init__(
        self,
        recording: Recording,
        *,
        asynchronous: bool = False,
        again: bool = False,
        after: "Replay | None" = None,
    ) -> None:
        """Begin with nothing told.

        Args:
            recording: what is told.
            asynchronous: it is told on an event loop: what was told by `aevent` is so again.
            again: the same call is told more than once, for requests that share its
                result: each time it is a run of its own.
            after: of the same call, made before, which broke off: this one goes on where
                that one was told to, and its runs are that one's.
        """
        self.recording = recording
        self._asynchronous = asynchronous
        self._again = again
        self.told: int = 0 if after is None else after.told
        self._after = after
        self._ids: dict[str | None, str | None] = _anew(recording) if again else {}

    async def hand_on(self, end: int | None = None, *, whole: bool = True) -> None:
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
            await self._tell(self._as_here(call))

    async def end(self) -> None:
        """Tell the rest of a call that is over; what goes on in its background tells at once."""
        await self.hand_on()
        while not self.recording.end(self._as_here, self.told):
            await self.hand_on()

    async def _tell(self, call: Call) -> None:
        if call.name != "aevent":
            getattr(call.teller, call.name)(*call.args, **call.kwargs)
        elif self._asynchronous:
            await call.teller.aevent(*call.args, **call.kwargs)
        else:  # there is no loop on which a handler could hear it
            call.teller.event(*call.args, **call.kwargs)

    def _take_over(self, before: "Replay") -> None:
        """Go on with the ids under which the call was told before."""
        told = before.recording.calls(0, before.told)
        for first, second in zip(told, self.recording.calls(0, self.told), strict=False):
            for old, new in zip(ids_in(first), ids_in(second), strict=False):
                if new != self.recording.base:
                    self._ids[new] = before.id_of(old)

    def _as_here(self, call: Call) -> Call:
        """Give a call with the ids of this telling; one for many requests with its tags, too."""
        if not self._again:
            return renamed(call, self.id_of)
        if event_of(call) is not None:
            # Its tags are those of whoever asked first; the dispatcher puts on those of now.
            return renamed(call, self.id_of, id_=str(uuid4()), tags={})
        made = renamed(call, self.id_of)
        if "tags" in made.kwargs:
            made.kwargs["tags"] = active_instrument_tags.get()
        return made

    def id_of(self, told: str | None) -> str | None:
        """Give the id that stands for one of the recording's."""
        return self._ids.get(told, told)


def _anew(recording: Recording) -> dict[str | None, str | None]:
    """Make new ids for all that begins in a recording."""
    begun = (call.kwargs.get(_BEGINS.get(call.name, "")) for call in recording.calls())
    return {told: _another(told) for told in begun if told}


def _another(told: str) -> str:
    name = told.rsplit("-", 5)[0]  # of a span: what was called, before its UUID
    return f"{name}-{uuid4()}" if name != told else str(uuid4())


def _fails(call: Call) -> bool:
    """Say whether a call tells of a failure."""
    if call.name == "on_event_end":
        payload: Any = call.kwargs.get("payload") or next(iter(call.args[1:]), None) or {}
        return EventPayload.EXCEPTION in payload
    return call.name == "span_drop" or isinstance(event_of(call), ExceptionEvent | SpanDropEvent)


# Runs a coroutine that waits for nothing to its end, without an event loop.


ResultT = TypeVar("ResultT")


def unawaited(call: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Run a coroutine here and now: of what is written once, for requests with a loop or without.

    Raises:
        Exception: what it raises.
    """
    try:
        call.send(None)
    except StopIteration as end:
        result: ResultT = end.value
        return result
    call.close()
    raise AssertionError("without an event loop there is nothing to wait for")


# A retriever that tells what another one tells, and finds what it is given.


Find: TypeAlias = Callable[[bool], Coroutine[Any, Any, list[NodeWithScore]]]


def twin(retriever: BaseRetriever, find: Find) -> Any:
    """Make a retriever that tells what this one tells, and finds what it is given.

    Args:
        retriever: the host's.
        find: gives the nodes, and tells what is told of inside; is given whether it may wait.
    """
    made = object.__new__(type(retriever))
    made.__dict__.update(retriever.__dict__)

    # With the host's own names and arguments, which stand in its spans.
    def _retrieve(self: Any, query_bundle: QueryBundle) -> list[NodeWithScore]:  # noqa: ARG001
        return unawaited(find(False))

    async def _aretrieve(  # what is found is there already
        self: Any,  # noqa: ARG001
        query_bundle: QueryBundle,  # noqa: ARG001
    ) -> list[NodeWithScore]:
        return await find(True)

    made.__dict__["_retrieve"] = _as_told(retriever, MethodType(_retrieve, made))
    if type(retriever)._aretrieve is not BaseRetriever._aretrieve:  # noqa: SLF001
        made.__dict__["_aretrieve"] = _as_told(retriever, MethodType(_aretrieve, made))
    # It has been looked into and freed of duplicates.
    made.__dict__["_handle_recursive_retrieval"] = _as_they_are
    made.__dict__["_ahandle_recursive_retrieval"] = _aas_they_are
    return made


def _as_told(retriever: BaseRetriever, method: MethodType) -> Any:
    """Put a span around a method if the host's own of this name has one.

    Of a user's class `_retrieve` has, and `_aretrieve` only where its author gave it one.
    """
    own = getattr(type(retriever), method.__name__)
    if not hasattr(own, DISPATCHER_SPAN_DECORATED_ATTR):
        return method
    return get_dispatcher(type(retriever).__module__).span(method)


def _as_they_are(
    query_bundle: QueryBundle,  # noqa: ARG001
    nodes: list[NodeWithScore],
) -> list[NodeWithScore]:
    return nodes


async def _aas_they_are(
    query_bundle: QueryBundle,  # noqa: ARG001
    nodes: list[NodeWithScore],
) -> list[NodeWithScore]:
    return nodes
