"""The records of the loop: a step, why it failed, what is kept of dropped ones, what is out."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from ralmspec_plugins.needs import Search, Work
from ralmspec_plugins.protocols import Workload
from ralmspec_plugins.records import Hits, Query
from ralmspec_plugins.stats import Span

_ABSENT: Any = object()
_Key: TypeAlias = Callable[[], Hashable | None]
KEPT_DROPPED = 512  # dropped questions and segments that are remembered for a request


@dataclass(frozen=True, slots=True)
class Failure:
    """A step's work raised; whether that counts is decided when the step is confirmed."""

    error: Exception
    alone: bool  # it ran on confirmed inputs with nothing beside it, as in the plain loop


@dataclass(slots=True, eq=False)
class Step:
    """One turn of ask, search and extend, from a state to the next.

    The stages, in order: `asked` (the query is known; none means that the answer
    is complete), `used` set (the hits to write with are chosen), `written` (the
    next state is known). `truth` is set when the search has answered, at any
    stage; the step is `verified` when `used` is what `truth` says.
    """

    before: Any
    asked: bool = False
    query: Query | None = None
    guessed: bool = False  # the speculators were asked
    guess: Hits | None = None
    truth: Hits | None = None
    used: Hits | None = None
    verified: bool = False
    written: bool = False
    after: Any = None
    partial: Any = None  # an unfinished segment
    failure: Failure | None = None  # of asking or writing
    search_failure: Failure | None = None
    cost_s: float = 0.0  # of asking and guessing
    span: Span | None = None  # of the work that wrote it
    remembered: bool = False  # its hits were known without a search
    taken_back: bool = False  # its segment was a dropped one
    confirmed: bool = False  # said so
    shown: bool = False  # some of its unfinished text was settled
    broke_off: Exception | None = None  # what it raised when some of its text was settled already

    @property
    def ends(self) -> bool:
        """Whether this step found that the answer is complete."""
        return self.asked and self.query is None

    @property
    def ahead(self) -> bool:
        """Whether it is written, or being written, on a guess that no search confirmed yet."""
        return self.used is not None and not self.verified

    def rewrite(self, hits: Hits | None) -> None:
        """Forget the segment; write it again with these hits, or choose anew if `None`."""
        self.used = hits
        self.written = False
        self.taken_back = False
        self.after = self.partial = self.failure = self.span = None


class Dropped:
    """Questions and segments of dropped steps, by all that they depended on.

    After a rewrite the text often comes out the same as the dropped one's. Then
    what followed is still right, and is taken back here piece by piece instead of
    being asked and written again (DESIGN 3, reconvergence). The keys are the
    workload's promise that equal keys mean equal results, to the last bit.
    """

    def __init__(self, workload: Workload[Any]) -> None:
        """Remember for one request."""
        self._workload = workload
        self._queries: OrderedDict[Hashable, Query | None] = OrderedDict()
        self._segments: OrderedDict[Hashable, tuple[Any, Span | None]] = OrderedDict()

    def keep(self, step: Step) -> None:
        """Remember what a step that is being dropped had found out."""
        if step.asked:
            before = step.before
            self._keep(self._queries, lambda: self._workload.query_key(before), step.query)
        if step.written and step.used is not None:
            self.keep_segment(step.before, step.used, step.after, step.span)

    def keep_segment(self, before: Any, hits: Hits, after: Any, span: Span | None) -> None:
        """Remember a segment, and the span in which it was written."""
        self._keep(self._segments, lambda: self._workload.extend_key(before, hits), (after, span))

    def query(self, before: Any) -> tuple[Query | None] | None:
        """Give the question from this state in a tuple, if it is known."""
        found = self._find(self._queries, lambda: self._workload.query_key(before))
        return None if found is _ABSENT else (found,)

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
    def _keep(table: OrderedDict[Hashable, Any], make: _Key, value: Any) -> None:
        try:
            key = make()
            if key is not None:
                table[key] = value
        except Exception:  # noqa: BLE001 see above
            return
        if len(table) > KEPT_DROPPED:
            table.popitem(last=False)

    @staticmethod
    def _find(table: OrderedDict[Hashable, Any], make: _Key) -> Any:
        try:
            return table.get(make(), _ABSENT) if table else _ABSENT
        except Exception:  # noqa: BLE001 see above
            return _ABSENT


class InFlight:
    """The work that has been started and not completed."""

    def __init__(self) -> None:
        """Start with nothing in flight."""
        self._open: dict[Work, int] = {}  # work -> completions still to come
        self._alone: Work | None = None
        self.searching: dict[Hashable, Search] = {}  # query key -> the search it is out with
        self.searches = 0

    def __bool__(self) -> bool:
        """Whether anything is in flight."""
        return bool(self._open)

    def __iter__(self) -> Iterator[Work]:
        """Go through what is in flight, oldest first."""
        return iter(tuple(self._open))

    def start(self, need: Work) -> None:
        """Note that this work starts."""
        self._alone = None if self._open else need
        if isinstance(need, Search):
            self.searching.update((query.key, need) for query in need.queries)
            self.searches += 1
        self._open[need] = len(need.queries) if isinstance(need, Search) else 1

    def complete(self, need: Work, index: int) -> bool:
        """Note a completion; say whether it was this work's last one."""
        if isinstance(need, Search):
            key = need.queries[index].key
            if self.searching.get(key) is need:
                del self.searching[key]
        self._open[need] -= 1
        if self._open[need]:
            return False
        del self._open[need]
        self.searches -= isinstance(need, Search)
        return True

    def alone(self, need: Work) -> bool:
        """Say whether nothing else was in flight since this work started."""
        return self._alone is need
