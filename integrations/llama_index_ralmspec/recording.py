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
from dataclasses import dataclass, field
from typing import Final, TypeAlias
from weakref import WeakSet

from llama_index.core.instrumentation.span import active_span_id
from llama_index.core.schema import NodeWithScore

from llama_index_ralmspec.renaming import renamed
from llama_index_ralmspec.wrapping import Call, kept_by

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
