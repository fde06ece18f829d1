"""Wraps the few methods by which LlamaIndex tells, so that what they tell can be kept back.

Dispatchers and callback managers are global, or held by the host's models and retrievers:
no argument of a call says who is to hear of it. So their methods are wrapped once for the
process. While a keeper is set in the context it decides what becomes of a telling; for
everybody else the methods do what they did.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from typing import Any, Final, Protocol
from uuid import uuid4

from llama_index.core.callbacks import CallbackManager
from llama_index.core.callbacks.base import global_stack_trace
from llama_index.core.callbacks.schema import LEAF_EVENTS
from llama_index_instrumentation.dispatcher import Dispatcher

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
