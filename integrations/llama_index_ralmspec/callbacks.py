"""Reports to LlamaIndex' handlers: a tag and a span for speculative calls, and own events.

Nothing of the host is replaced, delayed or imitated: each call of a model, postprocessor or
opaque retriever is the host's own, and its handlers are notified when it happens. A speculative
call runs under the instrument tag `SPECULATIVE`, in a span `SpeculativeCall.ahead`;
`CommitEvent` and `RollbackEvent` report later which of these spans were committed.
"""

from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Protocol, TypeAlias, TypeVar

from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.span import active_span_id
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.dispatcher import active_instrument_tags, instrument_tags

from ralmspec_plugins import effects
from ralmspec_plugins.adapters.agents import AgentEvent
from ralmspec_plugins.protocols import speculative
from ralmspec_plugins.types import Hits

SPECULATIVE: Final = "ralmspec.speculative"  # the tag of events and spans of speculative calls

ResultT = TypeVar("ResultT")

_dispatcher = get_dispatcher(__name__)


class GuessEvent(BaseEvent):
    """A step is written speculatively, with these nodes, before its search has returned.

    Attributes:
        query_str: the query of the step; in an agent, the tool and its arguments.
        node_ids: the expected nodes, best first; none in an agent.
    """

    query_str: str
    node_ids: list[str]

    @classmethod
    def class_name(cls) -> str:
        """Return the name of the event's class."""
        return "RalmSpecGuessEvent"


class VerificationEvent(BaseEvent):
    """The search for a query that was guessed has returned.

    Attributes:
        query_str: the query; in an agent, the tool and its arguments.
        right: whether the guess equals the result as far as the step reads it.
    """

    query_str: str
    right: bool

    @classmethod
    def class_name(cls) -> str:
        """Return the name of the event's class."""
        return "RalmSpecVerificationEvent"


class RetrievalEvent(BaseEvent):
    """The nodes of the next committed step are known.

    Searches that were batched with others do not call the host's own `retrieve`: they are
    reported only by this event. A call of an opaque retriever also has the host's own events.

    Attributes:
        query_str: the query.
        node_ids: the nodes found, best first.
        scores: their scores.
    """

    query_str: str
    node_ids: list[str]
    scores: list[float | None]

    @classmethod
    def class_name(cls) -> str:
        """Return the name of the event's class."""
        return "RalmSpecRetrievalEvent"


class CommitEvent(BaseEvent):
    """A step has become part of the answer.

    Attributes:
        query_str: its query; empty if it needed no retrieval, and in an agent.
        span_ids: the spans of the speculative calls that it depends on: of its query's
            embedding, of an opaque retriever, of the model. Calls without the tag always count.
    """

    query_str: str
    span_ids: list[str]

    @classmethod
    def class_name(cls) -> str:
        """Return the name of the event's class."""
        return "RalmSpecCommitEvent"


class RollbackEvent(BaseEvent):
    """Segments written after a wrong guess are discarded.

    Attributes:
        segments: the number of discarded segments, finished or not; 1 for a call of an agent's.
        span_ids: the spans of all speculative calls so far that no `CommitEvent` has named.
            One of them may still be named later, when its text is reused.
    """

    segments: int
    span_ids: list[str]

    @classmethod
    def class_name(cls) -> str:
        """Return the name of the event's class."""
        return "RalmSpecRollbackEvent"


OwnEvent: TypeAlias = GuessEvent | VerificationEvent | RetrievalEvent | CommitEvent | RollbackEvent


class _Record(Protocol):
    span_id: str | None  # of the span around the calls, if they are speculative


class SpeculativeCall:
    """The span around speculative calls of the host; other calls have none."""

    def __init__(self, record: _Record, spans: list[str] | None = None) -> None:
        """Create a span.

        Args:
            record: the record of these calls, in which the span's id is set.
            spans: the ids of all speculative calls of the request, to which it is added.
        """
        self._record = record
        self._spans = spans

    def run(self, call: Callable[[], ResultT]) -> ResultT:
        """Make a call, in a tagged span if it is speculative."""
        if not speculative.get():
            return call()
        with tagged():
            result: ResultT = self.ahead(call)
            return result

    async def arun(self, call: Callable[[], Coroutine[Any, Any, ResultT]]) -> ResultT:
        """Await a call, in a tagged span if it is speculative."""
        if not speculative.get():
            return await call()
        with tagged():
            result: ResultT = await self.aahead(call)
            return result

    @_dispatcher.span
    def ahead(self, call: Callable[[], Any]) -> Any:
        """Make a speculative call."""
        self._note()
        return call()

    @_dispatcher.span
    async def aahead(self, call: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Await a speculative call."""
        self._note()
        return await call()

    def _note(self) -> None:
        span_id = active_span_id.get()
        self._record.span_id = span_id
        if self._spans is not None and span_id is not None:
            self._spans.append(span_id)


@contextmanager
def tagged() -> Iterator[None]:
    """Add the tag of speculative calls to the caller's own tags."""
    with instrument_tags({**active_instrument_tags.get(), SPECULATIVE: True}):
        yield


class Telling:
    """Reports one request's own events, in order and in its context."""

    def __init__(
        self, spans: Sequence[str], records_of: Callable[[effects.Commit], Iterable[_Record]]
    ) -> None:
        """Create a reporter of a request.

        Args:
            spans: the ids of the spans of all speculative calls so far.
            records_of: returns the records of the calls that a committed step depends on.
        """
        self._spans = spans
        self._records_of = records_of
        self._committed: set[str] = set()

    def tell(self, event: effects.Event) -> None:
        """Report one event of the engine."""
        if _has_handlers() and (own := self._own(event)) is not None:
            _dispatcher.event(own)

    async def atell(self, event: effects.Event) -> None:
        """Report one event of the engine on an event loop."""
        if _has_handlers() and (own := self._own(event)) is not None:
            await _dispatcher.aevent(own)

    def failed(self, error: BaseException) -> None:
        """Do nothing: the call that failed has reported its error itself."""

    async def afailed(self, error: BaseException) -> None:
        """Do nothing, as `failed`."""

    def _own(self, event: effects.Event) -> OwnEvent | None:
        """Return the own event for an event of the engine, or `None`."""
        if isinstance(event, effects.Guessed):
            ids = [hit.passage.id for hit in event.hits]
            return GuessEvent(query_str=event.query.text, node_ids=ids)
        if isinstance(event, effects.Judged):
            return VerificationEvent(query_str=event.query.text, right=event.right)
        if isinstance(event, effects.Confirmed):
            return _retrieval(event.retrieved.query.text, event.retrieved.hits)
        if isinstance(event, effects.Commit):
            rests_on = {record.span_id for record in self._records_of(event)}
            named = [one for one in self._spans if one in rests_on]
            self._committed.update(named)
            query = "" if event.retrieved is None else event.retrieved.query.text
            return CommitEvent(query_str=query, span_ids=named)
        if isinstance(event, effects.RolledBack):
            open_spans = [one for one in self._spans if one not in self._committed]
            return RollbackEvent(segments=event.segments, span_ids=open_spans)
        return None


def tell_agent_event(event: AgentEvent) -> None:
    """Report what happens to speculative work of an agent."""
    if not _has_handlers():
        return
    if event.kind == "guess":
        _dispatcher.event(GuessEvent(query_str=event.subject.query.text, node_ids=[]))
    elif event.kind in ("right", "wrong"):
        right = event.kind == "right"
        _dispatcher.event(VerificationEvent(query_str=event.subject.query.text, right=right))
    else:
        spans = [] if event.subject.span_id is None else [event.subject.span_id]
        if event.kind == "commit":
            _dispatcher.event(CommitEvent(query_str="", span_ids=spans))
        else:
            _dispatcher.event(RollbackEvent(segments=1, span_ids=spans))


def tell_retrieval(query: str, hits: Hits) -> None:
    """Report one search of a batch."""
    if _has_handlers():
        _dispatcher.event(_retrieval(query, hits))


def _retrieval(query: str, hits: Hits) -> RetrievalEvent:
    return RetrievalEvent(
        query_str=query,
        node_ids=[hit.passage.id for hit in hits],
        scores=[hit.score for hit in hits],
    )


def _has_handlers() -> bool:
    """Return whether any handler would receive an event: creating one takes longer than a guess."""
    teller: Any = _dispatcher
    while teller is not None and not teller.event_handlers:
        teller = teller.parent if teller.propagate else None
    return teller is not None
