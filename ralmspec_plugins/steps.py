"""A step of the plain loop on its way to being committed, and what is kept of dropped ones."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, TypeVar

from ralmspec_plugins.protocols import Workload
from ralmspec_plugins.types import Hits, NoRetrieval, Query, Retrieved, Span, same_to_read

_ABSENT: Any = object()
_Key: TypeAlias = Callable[[], Hashable | None]
ValueT = TypeVar("ValueT")
_Table: TypeAlias = OrderedDict[Hashable, tuple[Hashable, ValueT]]  # the key beside the value
KEPT_DROPPED = 512  # dropped queries and segments that are kept for a request


@dataclass(frozen=True, slots=True)
class Failure:
    """A step's work raised; whether that counts is decided when the step is confirmed."""

    error: Exception
    alone: bool  # it ran on confirmed inputs with nothing beside it, as in the plain loop


@dataclass(slots=True, eq=False)
class Step:
    """One turn of ask, search and extend, from a state to the next.

    The stages, in order: `asked` (the query is known; `None` means that the answer
    is complete), `encoded` (the query can be searched), `used` set (the hits to write
    with are chosen; a guess may come before the encoding), `written` (the next state is
    known). `truth` is set when the search has answered, at any stage; the step is
    `verified` when `used` is what `truth` says. One without retrieval is born verified.
    """

    before: Any
    asked: bool = False
    query: Query | NoRetrieval | None = None
    encoded: bool = False
    carried: Any = None  # what forming the query computed
    guessed: bool = False  # the speculators that can be asked now were asked
    guess: Hits | None = None
    truth: Hits | None = None
    used: Hits | None = None
    verified: bool = False
    written: bool = False
    after: Any = None
    partial: Any = None  # with an unfinished segment or query
    failure: Failure | None = None  # of asking or writing
    encode_failure: Failure | None = None
    search_failure: Failure | None = None
    cost_s: float = 0.0  # of asking, encoding and guessing
    span: Span | None = None  # of the work that wrote it
    remembered: bool = False  # its hits were known without a search
    reused: bool = False  # its segment was a dropped one
    confirmed: bool = False  # said so
    entry: Retrieved | None = None  # in the record
    shown: bool = False  # some of its unfinished text was settled
    broke_off: Exception | None = None  # what it raised when some of its text was settled already

    @property
    def ends(self) -> bool:
        """Whether this step found that the answer is complete."""
        return self.asked and self.query is None

    @property
    def unencoded(self) -> Query | None:
        """Its query, while it waits for its encoding."""
        query = self.query
        if self.encoded or self.truth is not None or self.encode_failure is not None:
            return None
        return query if isinstance(query, Query) else None

    def take(self, asked: "Asked") -> None:
        """Take in a query; a step without retrieval is verified with it."""
        self.asked = True
        self.query, self.encoded, self.carried = asked
        if isinstance(self.query, NoRetrieval):
            self.truth = self.used = ()
            self.verified = True

    @property
    def ahead(self) -> bool:
        """Whether it is written, or being written, on a guess that no search confirmed yet."""
        return self.used is not None and not self.verified

    def rewrite(self, hits: Hits | None) -> None:
        """Forget the segment; write it again with these hits, or choose anew if `None`."""
        self.used = hits
        self.written = False
        self.reused = False
        self.after = self.partial = self.failure = self.span = None


class Asked(NamedTuple):
    """What forming a query came to."""

    query: Query | NoRetrieval | None
    encoded: bool
    carried: Any


class RollbackCache:
    """Questions and segments of dropped steps, by all that they depended on.

    After a rewrite the text often comes out the same as the dropped one's. Then
    what followed is still right, and is taken back here piece by piece instead of
    being asked and written again (reconvergence). The keys are the
    workload's promise that equal keys mean equal results, to the last bit;
    hits in them are equal where whatever reads them reads the same.
    """

    def __init__(self, workload: Workload[Any]) -> None:
        """Remember for one request."""
        self._workload = workload
        self._queries: _Table[Asked] = OrderedDict()
        self._segments: _Table[tuple[Any, Span | None]] = OrderedDict()

    def put(self, step: Step) -> None:
        """Remember what a step that is being dropped had found out."""
        if step.asked:
            self.put_query(step.before, Asked(step.query, step.encoded, step.carried))
        if step.written and step.used is not None:
            self.put_segment(step.before, step.used, step.after, step.span)

    def put_query(self, before: Any, asked: Asked) -> None:
        """Remember a question, and what forming it computed."""
        self._put(self._queries, lambda: self._workload.query_key(before), asked)

    def put_segment(self, before: Any, hits: Hits, after: Any, span: Span | None) -> None:
        """Remember a segment, and the span in which it was written."""
        self._put(self._segments, lambda: self._workload.extend_key(before, hits), (after, span))

    def query(self, before: Any) -> Asked | None:
        """Give the question from this state, if it is known."""
        found = self._find(self._queries, lambda: self._workload.query_key(before))
        return None if found is _ABSENT else found

    def segment(self, before: Any, hits: Hits) -> tuple[Any, Span | None] | None:
        """Give the next state from this one with these hits, and its span, if it is known."""
        found = self._find(self._segments, lambda: self._workload.extend_key(before, hits))
        return None if found is _ABSENT else found

    def forget(self) -> None:
        """Let go of everything."""
        self._queries.clear()
        self._segments.clear()

    # The plain loop makes no keys and compares none. So one that cannot be made, hashed
    # or compared (an array in a passage's metadata) must only mean writing again.

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
