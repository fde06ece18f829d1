"""Uncommitted steps of the plain loop, and a cache of dropped ones."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, TypeVar

from ralmspec_plugins.protocols import Workload
from ralmspec_plugins.speculators.cascade import GuessedHits
from ralmspec_plugins.types import Hits, NoRetrieval, Query, Retrieved, Span, same_to_read

_ABSENT: Any = object()
_Key: TypeAlias = Callable[[], Hashable | None]
ValueT = TypeVar("ValueT")
_Table: TypeAlias = OrderedDict[Hashable, tuple[Hashable, ValueT]]  # with the key of the value
KEPT_DROPPED = 512  # maximum number of dropped queries and segments in a request's cache


@dataclass(frozen=True, slots=True)
class Failure:
    """An error of a step's work; it is raised only if the step is confirmed."""

    error: Exception
    isolated: bool  # it ran on confirmed inputs with no other work in parallel


@dataclass(slots=True, eq=False)
class Step:
    """One step from a state to the next: form a query, search, and extend.

    The stages, in order: `asked` (the query is known; `None` means that the answer
    is complete), `encoded` (the query can be searched), `used` set (the hits for the
    segment are chosen; a guess may precede the encoding), `written` (the next state is
    known). `truth` is set when the search has returned, at any stage; the step is
    `verified` when `used` equals `truth`. A step without retrieval is verified from the start.
    """

    before: Any
    asked: bool = False
    query: Query | NoRetrieval | None = None
    encoded: bool = False
    carried: Any = None  # the value from forming the query, for `extend`
    guessed: bool = False  # the speculators that can be called now were called
    guess: GuessedHits | None = None
    compared: tuple[GuessedHits, GuessedHits] | None = None  # by the text, and by the encoding
    truth: Hits | None = None
    used: Hits | None = None
    verified: bool = False
    written: bool = False
    after: Any = None
    partial: Any = None  # the state of an unfinished segment or query
    failure: Failure | None = None  # of forming the query or of generation
    encode_failure: Failure | None = None
    search_failure: Failure | None = None
    cost_s: float = 0.0  # of forming the query, encoding and guessing
    asked_s: float = 0.0  # of forming the query
    asked_span: Span | None = None  # of the same
    span: Span | None = None  # of the segment's generation
    remembered: bool = False  # its hits were known without a search
    reused: bool = False  # its segment is a reused one
    confirmed: bool = False  # a `Confirmed` event was emitted
    entry: Retrieved | None = None  # in the record
    shown: bool = False  # some of its unfinished text was settled
    interruption: Exception | None = None  # its error after some of its text was settled

    @property
    def ends(self) -> bool:
        """Whether the answer is complete at this step."""
        return self.asked and self.query is None

    @property
    def unencoded(self) -> Query | None:
        """The query, while it is not encoded."""
        query = self.query
        if self.encoded or self.truth is not None or self.encode_failure is not None:
            return None
        return query if isinstance(query, Query) else None

    def take(self, formed: "FormedQuery") -> None:
        """Set the query; a step without retrieval is then verified."""
        self.asked = True
        self.query, self.encoded, self.carried, self.asked_span = formed
        if isinstance(self.query, NoRetrieval):
            self.truth = self.used = ()
            self.verified = True

    @property
    def ahead(self) -> bool:
        """Whether its segment depends on a guess that is not verified yet."""
        return self.used is not None and not self.verified

    def rewrite(self, hits: Hits | None) -> None:
        """Discard the segment; generate it with these hits, or choose them again if `None`."""
        self.used = hits
        self.written = False
        self.reused = False
        self.after = self.partial = self.failure = self.span = None


class FormedQuery(NamedTuple):
    """The result of forming a query."""

    query: Query | NoRetrieval | None
    encoded: bool
    carried: Any
    span: Span | None = None


class RollbackCache:
    """Caches the queries and segments of dropped steps by all that they depended on.

    A regenerated segment often equals the dropped one. The steps that followed
    it are then still correct, and are reused one by one instead of
    being formed and generated again (reconvergence). The workload guarantees that
    equal keys mean equal results, to the last bit; hits in them are equal if every reader
    of them reads the same.
    """

    def __init__(self, workload: Workload[Any]) -> None:
        """Create an empty cache for one request."""
        self._workload = workload
        self._queries: _Table[FormedQuery] = OrderedDict()
        self._segments: _Table[tuple[Any, Span | None]] = OrderedDict()

    def put(self, step: Step) -> None:
        """Store the query and the segment of a step that is dropped."""
        if step.asked:
            formed = FormedQuery(step.query, step.encoded, step.carried, step.asked_span)
            self.put_query(step.before, formed)
        if step.written and step.used is not None:
            self.put_segment(step.before, step.used, step.after, step.span)

    def put_query(self, before: Any, formed: FormedQuery) -> None:
        """Store a query and its carried value."""
        self._put(self._queries, lambda: self._workload.query_key(before), formed)

    def put_segment(self, before: Any, hits: Hits, after: Any, span: Span | None) -> None:
        """Store a segment, and its span in the timeline."""
        self._put(self._segments, lambda: self._workload.extend_key(before, hits), (after, span))

    def query(self, before: Any) -> FormedQuery | None:
        """Return the query formed from this state, if it is known."""
        found = self._find(self._queries, lambda: self._workload.query_key(before))
        return None if found is _ABSENT else found

    def segment(self, before: Any, hits: Hits) -> tuple[Any, Span | None] | None:
        """Return the next state from this one with these hits, and its span, if it is known."""
        found = self._find(self._segments, lambda: self._workload.extend_key(before, hits))
        return None if found is _ABSENT else found

    def forget(self) -> None:
        """Remove all entries."""
        self._queries.clear()
        self._segments.clear()

    # The plain loop computes and compares no keys. A key that cannot be computed, hashed or
    # compared (an array in a passage's metadata) must therefore only be a cache miss.

    @staticmethod
    def _put(table: _Table[Any], make: _Key, value: Any) -> None:
        try:
            key = make()
            if key is not None:
                table[key] = key, value
        except Exception:  # noqa: BLE001 see above
            return
        if len(table) > KEPT_DROPPED:
            table.popitem(last=False)

    @staticmethod
    def _find(table: _Table[Any], make: _Key) -> Any:
        try:
            key = make() if table else None
            kept, value = table.get(key, (_ABSENT, _ABSENT))
            return value if same_to_read(kept, key) else _ABSENT
        except Exception:  # noqa: BLE001 see above
            return _ABSENT
