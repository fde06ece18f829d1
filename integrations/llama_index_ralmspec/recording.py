"""Keeps the host's events and spans back until the work that caused them is part of the answer.

LlamaIndex tells of everything through dispatchers and callback managers that are global,
or held by its models and retrievers. A call that may be rolled back must not be told of.
So their few methods that tell are wrapped once: while a recording is set in the context,
what they would tell is put there. What is committed is told from the recording later, in
the host's order; what is dropped is never seen.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, Final
from uuid import uuid4

from llama_index.core.callbacks import CallbackManager
from llama_index.core.instrumentation.span import active_span_id
from llama_index.core.schema import NodeWithScore
from llama_index_instrumentation.dispatcher import Dispatcher

_DISPATCHES: Final = ("event", "span_enter", "span_exit", "span_drop")
_CALLS_BACK: Final = ("on_event_start", "on_event_end", "start_trace", "end_trace")
# What `retrieve` tells by itself: its span and that of `_retrieve`, a start and an end.
_OF_A_RETRIEVAL: Final = {"span_enter": 2, "event": 2, "on_event_start": 1}
_OURS: Final = "_ralmspec_original"
_BROKEN: Final = "_ralmspec_broken"

_current: ContextVar["Recording | None"] = ContextVar("ralmspec_recording", default=None)
_install_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a method that tells: of a dispatcher, or of a callback manager."""

    name: str
    teller: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


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
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __len__(self) -> int:
        """Count what was recorded so far."""
        return len(self._calls)

    def take(self, call: Call) -> None:
        """Keep a call back."""
        with self._lock:
            self._calls.append(call)

    def calls(self, start: int = 0, end: int | None = None) -> list[Call]:
        """Give what was recorded, from a place on."""
        with self._lock:
            return self._calls[start:end]

    def forget(self) -> None:
        """Let go of what was recorded of a call that was given up, if none of it was told.

        The host tells of a stream that is closed with the error that closed it, which
        holds the stream itself: it would stay open for as long as it could be told.
        """
        with self._lock:
            if self.told:
                return
            forgotten, self._calls = self._calls, []
        with recorded(Recording()):  # a stream that is let go tells of its end
            forgotten.clear()

    @property
    def tells_more(self) -> bool:
        """Whether there is more to tell than a retriever's own run: anything inside of it."""
        calls = self.calls()
        told = Counter(call.name for call in calls)
        if any(told[name] > most for name, most in _OF_A_RETRIEVAL.items()):
            return True
        spans = {_called(call) for call in calls if call.name == "span_enter"}
        return {"aretrieve", "_retrieve"} <= spans  # the one waits for the other


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
    """Record a search, or the embedding of a query; if it fails, the error has the recording."""
    try:
        with recorded(recording):
            yield
    except Exception as error:
        vars(error)[_BROKEN] = Broken(recording, embedded)
        raise


def broken_of(error: BaseException) -> Broken | None:
    """Give what was told by the search that an error comes from, if it is a search's."""
    found = vars(error).get(_BROKEN)
    return found if isinstance(found, Broken) else None


@contextmanager
def recorded(recording: Recording) -> Iterator[None]:
    """Have all that is told in here, or in tasks and threads begun here, put into a recording."""
    _install()
    token = _current.set(recording)
    try:
        yield
    finally:
        _current.reset(token)


def _install() -> None:
    """Wrap the methods that tell; once for the process, and again where somebody undid it."""
    if _is_wrapped(Dispatcher, _DISPATCHES) and _is_wrapped(CallbackManager, _CALLS_BACK):
        return
    with _install_lock:
        for kind, names in ((Dispatcher, _DISPATCHES), (CallbackManager, _CALLS_BACK)):
            for name in names:
                if not hasattr(getattr(kind, name), _OURS):
                    setattr(kind, name, _kept_back(name, getattr(kind, name)))


def _is_wrapped(kind: type, names: tuple[str, ...]) -> bool:
    return all(hasattr(getattr(kind, name), _OURS) for name in names)


def _kept_back(name: str, host: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a method that tells."""

    @wraps(host)
    def tell(self: Any, *args: Any, **kwargs: Any) -> Any:
        recording = _current.get()
        if recording is None:
            return host(self, *args, **kwargs)
        if name != "on_event_start":
            recording.take(Call(name, self, args, kwargs))
            return None
        return _start(recording, self, *args, **kwargs)

    setattr(tell, _OURS, host)
    return tell


def _start(
    recording: Recording,
    manager: Any,
    event_type: Any,
    payload: Any = None,
    event_id: str | None = None,
    parent_id: str | None = None,
    **kwargs: Any,
) -> str:
    """Record the start of a callback event, whose id the host's code goes on with."""
    event_id = event_id or str(uuid4())
    told = {"payload": payload, "event_id": event_id, "parent_id": parent_id, **kwargs}
    recording.take(Call("on_event_start", manager, (event_type,), told))
    return event_id


def _called(span: Call) -> str:
    """Name the method that a span is of, without its class."""
    return str(span.kwargs.get("id_", "")).rsplit("-", 5)[0].rpartition(".")[2]
