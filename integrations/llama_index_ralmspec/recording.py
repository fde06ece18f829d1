"""Keeps the host's events and spans back until the work that caused them is part of the answer.

A call that may be rolled back must not be told of. What is committed is told from its
recording later, in the host's order; what is dropped is never seen. A task or thread that
the host's code has begun goes on recording when the call has returned: until it is decided
what becomes of the call, and then its tellings go the way of the others.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Any, Final, Protocol, TypeAlias
from uuid import uuid4
from weakref import WeakSet

from llama_index.core.callbacks import CallbackManager
from llama_index.core.callbacks.base import global_stack_trace
from llama_index.core.callbacks.schema import LEAF_EVENTS
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.span import active_span_id
from llama_index.core.schema import NodeWithScore
from llama_index_instrumentation.dispatcher import Dispatcher

# Wraps the few methods by which LlamaIndex tells, so that what they tell can be kept back.
#
# Dispatchers and callback managers are global, or held by the host's models and retrievers:
# no argument of a call says who is to hear of it. So their methods are wrapped once for the
# process. While a keeper is set in the context it decides what becomes of a telling; for
# everybody else the methods do what they did.


_TELLING: Final[dict[type, tuple[str, ...]]] = {
    Dispatcher: ("event", "aevent", "span_enter", "span_exit", "span_drop"),
    CallbackManager: ("on_event_start", "on_event_end", "start_trace", "end_trace"),
}
_OURS: Final = "_ralmspec_wrapper"  # the wrapper itself: a copy of its attributes is another's


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a method that tells: of a dispatcher, or of a callback manager."""

    name: str
    teller: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Keeper(Protocol):
    """Decides what becomes of what is told."""

    def take(self, call: Call) -> Call | None:
        """Keep a call back; or give what is to be told at once in its place."""
        ...


_keeper: ContextVar[Keeper | None] = ContextVar("ralmspec_keeper", default=None)
_install_lock = threading.Lock()


@contextmanager
def kept_by(keeper: Keeper) -> Iterator[None]:
    """Have all that is told in here, or in tasks and threads begun here, go to a keeper."""
    _install()
    token = _keeper.set(keeper)
    try:
        yield
    finally:
        _keeper.reset(token)


def _install() -> None:
    """Wrap the methods that tell: of new classes too, and again where somebody undid it.

    A class that overrides one of them is wrapped outside of its own code, which runs when
    the call is told, and not when it is kept back.
    """
    if not any(_unwrapped()):
        return
    with _install_lock:
        for kind, name in list(_unwrapped()):
            setattr(kind, name, _kept_back(name, vars(kind)[name]))


def _unwrapped() -> Iterator[tuple[type, str]]:
    """Find the methods that tell and are not wrapped, in all classes that there are."""
    for base, names in _TELLING.items():
        for kind in _kinds(base):
            own = vars(kind)
            for name in names:
                if name in own and getattr(own[name], _OURS, None) is not own[name]:
                    yield kind, name


def _kinds(base: type) -> Iterator[type]:
    yield base
    kinds: list[type] = base.__subclasses__()
    for kind in kinds:
        yield from _kinds(kind)


def _kept_back(name: str, host: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a method that tells."""
    if name == "aevent":
        return _akept_back(host)

    @wraps(host)
    def tell(self: Any, *args: Any, **kwargs: Any) -> Any:
        keeper = _keeper.get()
        if keeper is None:
            return host(self, *args, **kwargs)
        call = _call(name, self, args, kwargs)
        due = keeper.take(call)
        if due is None:
            return call.kwargs["event_id"] if name == "on_event_start" else None
        _make_ready(due)
        return host(self, *due.args, **due.kwargs)

    setattr(tell, _OURS, tell)
    return tell


def _akept_back(host: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the asynchronous one."""

    @wraps(host)
    async def tell(self: Any, *args: Any, **kwargs: Any) -> Any:
        keeper = _keeper.get()
        if keeper is None:
            return await host(self, *args, **kwargs)
        due = keeper.take(Call("aevent", self, args, kwargs))
        if due is None:
            return None
        return await host(self, *due.args, **due.kwargs)

    setattr(tell, _OURS, tell)
    return tell


def _call(name: str, teller: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """Name a call; the start of a callback event gets the id that the host goes on with."""
    if name != "on_event_start":
        return Call(name, teller, args, kwargs)
    told = dict(zip(("event_type", "payload", "event_id", "parent_id"), args, strict=False))
    told |= kwargs
    event_id = told.get("event_id") or str(uuid4())
    given = {"payload": told.get("payload"), "parent_id": told.get("parent_id")}
    return Call(name, teller, (told.pop("event_type"),), {**given, **told, "event_id": event_id})


def _make_ready(due: Call) -> None:
    """Have a callback event on the stack of those that are open when its end is told.

    Its start may have been kept back: then it was not put there, and the host would
    take off another one.
    """
    if due.name != "on_event_end":
        return
    told = dict(zip(("event_type", "payload", "event_id"), due.args, strict=False)) | due.kwargs
    stack, event_id = global_stack_trace.get(), told.get("event_id")
    if told.get("event_type") not in LEAF_EVENTS and stack[-1:] != [event_id]:
        global_stack_trace.set([*stack, str(event_id)])


# Gives what was recorded the ids of spans, events and callbacks under which it is told.


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


# What `retrieve` tells by itself: its span and that of `_retrieve`, a start and an end.
_OF_A_RETRIEVAL: Final = {"span_enter": 2, "event": 2, "on_event_start": 1}
_BROKEN: Final = "_ralmspec_broken"

Fate: TypeAlias = Callable[[Call], Call | None]


@dataclass(eq=False)
class Recording:
    """What one call of the host would have told, and the nodes that it was about.

    Events come from any thread; they are told by one, in the context of the request.

    Attributes:
        nodes: what was handed to the host's code, in the order of the hits.
        used: what its postprocessors left of them.
        begun: how much was recorded when a call returned that goes on streaming.
        told: whether something of it has been told.
    """

    nodes: list[NodeWithScore] = field(default_factory=list)
    used: list[NodeWithScore] = field(default_factory=list)
    begun: int | None = None
    told: bool = False
    base: str | None = field(default_factory=active_span_id.get)  # the span around the call
    _calls: list[Call] = field(default_factory=list)
    _fate: Fate | None = None  # of what is told from now on; None: kept
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __len__(self) -> int:
        """Count what was recorded so far."""
        return len(self._calls)

    def take(self, call: Call) -> Call | None:
        """Keep a call back, or give what is to be told at once."""
        with self._lock:
            if self._fate is None:
                self._calls.append(call)
                return None
        return self._fate(call)

    def calls(self, start: int = 0, end: int | None = None) -> list[Call]:
        """Give what was recorded, from a place on."""
        with self._lock:
            return self._calls[start:end]

    def end(self, fate: Fate, told: int | None = None) -> bool:
        """Keep nothing more: what is told from now on goes this way.

        Args:
            fate: gives what is to be told in a call's place.
            told: how much of the recording has been told; if there is more, it goes on.
        """
        with self._lock:
            if told is not None and told < len(self._calls):
                return False
            self._fate = fate
            return True

    def drop(self, *, told: bool = False) -> None:
        """Let go of what was recorded of a call that came to nothing, if none of it was told.

        The host tells of a stream that is closed with the error that closed it, which
        holds the stream itself: it would stay open for as long as it could be told.

        Args:
            told: also if some of it was: of a call that broke off, and was made once more.
        """
        with self._lock:
            if self._fate is not None or (self.told and not told):
                return
            self._fate = _unheard
            dropped, self._calls = self._calls, []
        with recorded(self):  # a stream that is let go tells of its end
            dropped.clear()

    @property
    def tells_more(self) -> bool:
        """Whether there is more to tell than a retriever's own run: anything inside of it."""
        calls = self.calls()
        told = Counter(call.name for call in calls)
        if any(told[name] > most for name, most in _OF_A_RETRIEVAL.items()):
            return True
        spans = {_called(call) for call in calls if call.name == "span_enter"}
        return {"aretrieve", "_retrieve"} <= spans  # the one waits for the other


class Recordings:
    """The recordings of one request's calls, for as long as anybody records into them."""

    def __init__(self) -> None:
        """Begin with none."""
        self._made: WeakSet[Recording] = WeakSet()
        self._ended = False
        self._lock = threading.Lock()

    def begun(self) -> Recording:
        """Begin one; nothing is kept in it if the request is over."""
        made = Recording()
        with self._lock:
            self._made.add(made)
            ended = self._ended
        if ended:
            made.drop()
        return made

    def end(self) -> None:
        """Drop all that were not told to their end: nothing more will be."""
        with self._lock:
            self._ended = True
            left = list(self._made)
        for recording in left:
            recording.drop(told=True)


@dataclass(frozen=True, slots=True)
class Broken:
    """What a search told that came to an error: of its embedding alone, if that failed."""

    recording: Recording
    embedded: str | None = None  # the query that was to be embedded

    def __reduce__(self) -> tuple[type, tuple[Recording]]:
        """Leave what was told behind when the error that this goes with is pickled."""
        return Broken, (Recording(),)


@contextmanager
def searched(recording: Recording, embedded: str | None = None) -> Iterator[None]:
    """Record a search, or the embedding of a query; if it fails, the error has the recording.

    Many requests may come to share what it finds, and each tells it as a run of its own.
    What goes on in its background belongs to none of them, and is told when it happens.
    """
    try:
        with recorded(recording):
            yield
    except Exception as error:
        vars(error)[_BROKEN] = Broken(recording, embedded)
        raise
    finally:
        recording.end(_outside(recording))


def broken_of(error: BaseException) -> Broken | None:
    """Give what was told by the search that an error comes from, if it is a search's."""
    found = vars(error).get(_BROKEN)
    return found if isinstance(found, Broken) else None


@contextmanager
def recorded(recording: Recording) -> Iterator[None]:
    """Have all that is told in here, or in tasks and threads begun here, put into a recording."""
    with kept_by(recording):
        yield


def _unheard(call: Call) -> None:  # noqa: ARG001
    return None


def _outside(recording: Recording) -> Fate:
    """Put what stood in a span of a call under the span around it: nobody knows of the others."""
    inside = {call.kwargs.get("id_") for call in recording.calls() if call.name == "span_enter"}

    def outside(call: Call) -> Call:
        return renamed(call, lambda id_: recording.base if id_ in inside else id_)

    return outside


def _called(span: Call) -> str:
    """Name the method that a span is of, without its class."""
    return str(span.kwargs.get("id_", "")).rsplit("-", 5)[0].rpartition(".")[2]
