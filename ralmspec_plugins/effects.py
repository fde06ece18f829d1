"""Effects of the loop: the work it requests, the completions it is sent, and what is in flight.

`Start`, `FormQuery`, `Encode`, `Guess`, `Search` and `Extend` are work: each is completed by one
`Completed` (a `Search` by one for each of its queries), in any order. The others are
notices and need no completion.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.types import Answer, Hits, Query, Request, Retrieved

# The events of `Engine.events` and `AsyncEngine.events`.
#
# Each step of the answer emits, in this order: `Confirmed`, any number of `Settled`, and
# `Commit`; after it more text may settle. The steps follow each other as in
# the plain loop. A step without retrieval has no `Confirmed`. Text that a model wrote while
# it formed a query settles before the query's `Confirmed`. `Guessed`, `Judged` and
# `RolledBack` report speculation, and may occur anywhere. A request that fails ends with
# `Failed`.


@dataclass(frozen=True, slots=True, eq=False)
class Guessed:
    """A segment is generated with these hits before its search has returned.

    Attributes:
        query: whose hits are guessed.
        hits: the guess.
    """

    query: Query
    hits: Hits


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """The search for a guessed query has returned: the guess is accepted or rejected.

    Attributes:
        query: the guessed query.
        right: whether the search found what was guessed.
    """

    query: Query
    right: bool


@dataclass(frozen=True, slots=True, eq=False)
class RolledBack:
    """A guess was wrong, or replaced; this many segments that follow from it are discarded.

    Attributes:
        segments: how many are discarded.
    """

    segments: int


@dataclass(frozen=True, slots=True, eq=False)
class Confirmed:
    """The next step of the answer has its real hits; its text follows.

    Attributes:
        retrieved: the query and its hits.
    """

    retrieved: Retrieved

    @property
    def hits(self) -> Hits:
        """The hits that the step is written with."""
        return self.retrieved.hits


@dataclass(frozen=True, slots=True, eq=False)
class Commit:
    """This step is part of the answer.

    Attributes:
        retrieved: the query and its hits; `None` if the step needed no retrieval.
        state: the state after the step.
    """

    retrieved: Retrieved | None
    state: Any

    @property
    def hits(self) -> Hits:
        """The hits that the step was written with."""
        return () if self.retrieved is None else self.retrieved.hits


@dataclass(frozen=True, slots=True, eq=False)
class Settled:
    """The text from the beginning that no later step can change.

    `state` is the state with this text: a committed one, or that of an unfinished segment.

    Attributes:
        text: all of it, from the beginning.
        state: the state with this text.
    """

    text: str
    state: Any


@dataclass(frozen=True, slots=True, eq=False)
class Failed:
    """The request fails with this error, as the plain loop does.

    Attributes:
        error: what the request raises.
        query: the query whose search failed; `None` for any other failure.
    """

    error: Exception
    query: Query | None = None


Event: TypeAlias = Guessed | Judged | RolledBack | Confirmed | Commit | Settled | Failed


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """Turn the request into the first state."""

    request: Request


@dataclass(frozen=True, slots=True, eq=False)
class FormQuery:
    """Form the next query of a state, or find that the answer is complete."""

    state: Any
    progress: Progress = field(default_factory=Progress)
    speculative: bool = False  # a step before it may be rolled back


@dataclass(frozen=True, slots=True, eq=False)
class Encode:
    """Encode the query of a text."""

    query: Query
    speculative: bool = False  # a step before it may be rolled back


@dataclass(frozen=True, slots=True, eq=False)
class Guess:
    """Call the speculators that are too slow to be called inside the loop."""

    query: Query
    speculators: Sequence[int]  # by place, in the order of the calls
    previous: Hits | None = None  # of the step before, verified or guessed; `None` at the first one


@dataclass(frozen=True, slots=True, eq=False)
class Search:
    """Search these queries in one round trip."""

    queries: tuple[Query, ...]
    wide: bool = True  # whether more hits than are verified are requested, for the speculators
    speculative: bool = False  # a step before one of the queries may be rolled back


@dataclass(frozen=True, slots=True, eq=False)
class Extend:
    """Write the next segment."""

    state: Any
    hits: Hits
    ahead: bool = False  # no search has confirmed these hits yet
    speculative: bool = False  # these hits, or those of a step before, may be wrong
    progress: Progress = field(default_factory=Progress)
    carried: Any = None  # what forming the query computed


@dataclass(frozen=True, slots=True, eq=False)
class Cancel:
    """Stop this work if it can be stopped; it must still be completed, as cancelled or as done."""

    need: "Work"


@dataclass(frozen=True, slots=True, eq=False)
class Release:
    """Free the memory kept for this request's states, now: `workload.release(state)`."""

    state: Any


@dataclass(frozen=True, slots=True, eq=False)
class Finish:
    """The request ends: with an answer, or with the error of the plain loop."""

    answer: Answer | None = None
    error: Exception | None = None


Work: TypeAlias = Start | FormQuery | Encode | Guess | Search | Extend
Notice: TypeAlias = Cancel | Release | Event | Finish
Need: TypeAlias = Work | Notice


@dataclass(frozen=True, slots=True)
class SearchResult:
    """One query's result: the real hits, and those prefetched with them."""

    hits: Hits
    wide: Hits


@dataclass(frozen=True, slots=True, eq=False)
class Completed:
    """A piece of work, or one query of a search, has been completed.

    Times are seconds on the engine's clock since the request began.
    """

    need: Work
    value: Any = None
    error: Exception | None = None
    index: int = 0  # of the query in its search
    started_s: float = 0.0
    ended_s: float = 0.0

    @property
    def took_s(self) -> float:
        """The duration in seconds."""
        return self.ended_s - self.started_s


@dataclass(frozen=True, slots=True, eq=False)
class PartialOutput:
    """The state of an unfinished segment or query."""

    need: FormQuery | Extend
    state: Any
    at_s: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Waited:
    """For a while nothing was completed: pending queries no longer wait for speculative work."""


@dataclass(frozen=True, slots=True, eq=False)
class Aborted:
    """Ends a request at once: it was cancelled, or a part raised no `Exception`."""

    error: BaseException
    need: Work | None = None  # the work that raised it


Completion: TypeAlias = Completed | PartialOutput


class InFlight:
    """The work that has been started and not completed."""

    def __init__(self) -> None:
        """Start with nothing in flight."""
        self._open: dict[Work, int] = {}  # work -> outstanding completions
        self._alone: Work | None = None
        self.searching: dict[Hashable, Search] = {}  # query key -> the search that contains it
        self.searches = 0
        self.encoding: dict[str, Encode] = {}  # text -> its encoding in flight

    def __bool__(self) -> bool:
        """Whether anything is in flight."""
        return bool(self._open)

    def __iter__(self) -> Iterator[Work]:
        """Iterate over the work in flight, oldest first."""
        return iter(tuple(self._open))

    def start(self, need: Work) -> None:
        """Record that this work starts."""
        self._alone = None if self._open else need
        if isinstance(need, Search):
            self.searching.update((query.key, need) for query in need.queries)
            self.searches += 1
        elif isinstance(need, Encode):
            self.encoding[need.query.text] = need
        self._open[need] = len(need.queries) if isinstance(need, Search) else 1

    def complete(self, need: Work, index: int) -> bool:
        """Record a completion; return whether it was this work's last one."""
        if isinstance(need, Search):
            key = need.queries[index].key
            if self.searching.get(key) is need:
                del self.searching[key]
        elif isinstance(need, Encode):
            del self.encoding[need.query.text]
        self._open[need] -= 1
        if self._open[need]:
            return False
        del self._open[need]
        self.searches -= isinstance(need, Search)
        return True

    def exclusive(self, need: Work) -> bool:
        """Return whether nothing else was in flight since this work started."""
        return self._alone is need
