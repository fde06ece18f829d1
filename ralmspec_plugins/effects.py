"""What the loop asks its engine for, what the engine reports back, and what is in flight.

`Start`, `FormQuery`, `Encode`, `Guess`, `Search` and `Extend` are work: each is completed by one
`Completed` (a `Search` by one for each of its queries), in any order. The others are
notices and need no completion.
"""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.types import Answer, Hits, Query, Request, Retrieved

# What `Engine.events` and `AsyncEngine.events` tell while a request is answered.
#
# A step of the answer is told in this order: `Confirmed`, any number of `Settled`, and
# `Commit`; at its end more text may settle. The steps come one after the other, as in
# the plain loop. A step without retrieval has no `Confirmed`. Text that a model wrote while
# it formed a query settles before the query's `Confirmed`. `Guessed`, `Judged` and
# `RolledBack` tell of speculation, and may stand anywhere. A request that fails ends with
# `Failed`.


@dataclass(frozen=True, slots=True, eq=False)
class Guessed:
    """A step is written ahead of its search, with these hits."""

    query: Query
    hits: Hits


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """The search for a query that was guessed has answered."""

    query: Query
    right: bool


@dataclass(frozen=True, slots=True, eq=False)
class RolledBack:
    """So many segments, written or being written, stand behind a wrong guess and are dropped."""

    segments: int


@dataclass(frozen=True, slots=True, eq=False)
class Confirmed:
    """The next step of the answer has its real hits; what is written with them is to come."""

    retrieved: Retrieved

    @property
    def hits(self) -> Hits:
        """What is written with."""
        return self.retrieved.hits


@dataclass(frozen=True, slots=True, eq=False)
class Commit:
    """This step is part of the answer."""

    retrieved: Retrieved | None  # `None` if it needed no retrieval
    state: Any

    @property
    def hits(self) -> Hits:
        """What it was written with."""
        return () if self.retrieved is None else self.retrieved.hits


@dataclass(frozen=True, slots=True, eq=False)
class Settled:
    """The text from the beginning that nothing can change any more.

    `state` is what it was taken from: a committed one, or an unfinished segment's.
    """

    text: str
    state: Any


@dataclass(frozen=True, slots=True, eq=False)
class Failed:
    """The request comes to this error, as the plain loop does."""

    error: Exception
    query: Query | None = None  # whose search it was; `None` where anything else failed


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
    """Ask the speculators that are too slow to be asked inside the loop."""

    query: Query
    encoded: bool = True  # if not, only those that guess by the text


@dataclass(frozen=True, slots=True, eq=False)
class Search:
    """Search these queries in one round trip."""

    queries: tuple[Query, ...]
    wide: bool = True  # whether the speculators are to learn more than what is verified
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
    """The request is over: with an answer, or with the error that the plain loop comes to."""

    answer: Answer | None = None
    error: Exception | None = None


Work: TypeAlias = Start | FormQuery | Encode | Guess | Search | Extend
Notice: TypeAlias = Cancel | Release | Event | Finish
Need: TypeAlias = Work | Notice


@dataclass(frozen=True, slots=True)
class SearchResult:
    """One query's result: the hits that are verified against, and those prefetched with them."""

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
    index: int = 0  # which of a search's queries
    started_s: float = 0.0
    ended_s: float = 0.0
    busy_s: float = 0.0  # how long this process computed meanwhile, where that is measured

    @property
    def took_s(self) -> float:
        """How long it took."""
        return self.ended_s - self.started_s


@dataclass(frozen=True, slots=True, eq=False)
class PartialOutput:
    """An unfinished segment or query: what has been written so far."""

    need: FormQuery | Extend
    state: Any
    at_s: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Aborted:
    """Ends a request at once, past its loop: it was given up, or a part raised no `Exception`."""

    error: BaseException
    need: Work | None = None  # whose it is


Completion: TypeAlias = Completed | PartialOutput


class InFlight:
    """The work that has been started and not completed."""

    def __init__(self) -> None:
        """Start with nothing in flight."""
        self._open: dict[Work, int] = {}  # work -> completions still to come
        self._alone: Work | None = None
        self.searching: dict[Hashable, Search] = {}  # query key -> the search it is out with
        self.searches = 0
        self.encoding: dict[str, Encode] = {}  # text -> what encodes it

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
        elif isinstance(need, Encode):
            self.encoding[need.query.text] = need
        self._open[need] = len(need.queries) if isinstance(need, Search) else 1

    def complete(self, need: Work, index: int) -> bool:
        """Note a completion; say whether it was this work's last one."""
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

    def alone(self, need: Work) -> bool:
        """Say whether nothing else was in flight since this work started."""
        return self._alone is need
