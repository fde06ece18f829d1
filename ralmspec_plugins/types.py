"""The records of the system: passage, query, hit, request, answer, statistics."""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum, StrEnum
from numbers import Real
from threading import TIMEOUT_MAX
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ralmspec_plugins.errors import ConfigError, DeadlineExceeded, InputError

# Statistics of a request: counts, and a timeline of measured spans.


class Outcome(StrEnum):
    """The outcome of a piece of work."""

    KEPT = "kept"  # its result is part of the answer, or was learned by a speculator
    DROPPED = "dropped"  # depended on a wrong guess
    CANCELLED = "cancelled"  # stopped before it was complete
    FAILED = "failed"  # raised


@dataclass(slots=True)
class Span:
    """One piece of work on the engine's clock, which starts at 0 with the request.

    Attributes:
        kind: "start", "ask", "encode", "guess", "search" or "extend".
        started_s: seconds since the request began.
        ended_s: the same, of its end.
        queries: in a search: how many queries shared its round trip.
        ahead: whether an extend started before its passages were verified.
        outcome: whether its result was used.
        passes: of a model that counts them.
        tokens: those that the work cost: that a local model generated, or that a server's model
            reported in total; of a call without a report, those that it was allowed to generate.
    """

    kind: str
    started_s: float
    ended_s: float
    queries: int = 0
    ahead: bool = False
    outcome: Outcome = Outcome.KEPT
    passes: int = 0
    tokens: int = 0


@dataclass(frozen=True, slots=True, repr=False)
class Stats:
    """The statistics of one request, all counted or measured.

    Attributes:
        wall_s: seconds from the beginning of the request to its end.
        first_text_s: seconds until the first settled text could be shown.
        searches: round trips to the retriever.
        queries: queries in them, including those of dropped steps.
        batch_sizes: queries in each round trip, in order.
        remembered: committed steps whose hits were known without a search.
        segments: committed steps.
        without_retrieval: committed steps that needed no search.
        wasted_segments: segments that were started, and are not part of the answer.
        wasted_tokens: tokens of queries and segments that are not part of the answer, as in `Span`.
        wasted_encodings: encodings of queries that are not part of the answer, or repeated ones.
        guesses: guesses that a search accepted or rejected.
        accepted: guesses that a search accepted.
        reused: dropped segments that were reused in the answer.
        replaced: guesses by a query's text that were in use when one by its encoding replaced them.
        unguessed: why no segment was started on a guess; `None` if one was.
        limited_by: the bound of the settings that was reached, "max_wasted_tokens",
            "max_wasted_encodings" or "max_wasted_share", so that a guess was not used; `None` if
            none was.
        lossy: whether the workload's `agree` may have accepted a guess that differed.
        retries: failed speculative work that was retried in isolation.
        model_passes: passes of a model that counts them, including those of wasted segments.
        tokens_written: tokens that were generated in these passes.
        drafts_accepted: drafted tokens that the model accepted.
        decisions_retaken: tokens chosen again by passes of one token.
        timeline: all measured pieces of work.

    >>> Stats(wall_s=1.234, searches=9, queries=12, segments=12, guesses=11, accepted=10)
    Stats(1.234 s, 12 segments, 9 searches of 12 queries, 10 of 11 guesses accepted (91 %))
    >>> Stats(wall_s=0.5, segments=3, searches=3, queries=3)
    Stats(0.500 s, 3 segments, 3 searches of 3 queries, no guesses)
    """

    wall_s: float = 0.0
    first_text_s: float | None = None
    searches: int = 0
    queries: int = 0
    batch_sizes: tuple[int, ...] = ()
    remembered: int = 0
    segments: int = 0
    without_retrieval: int = 0
    wasted_segments: int = 0
    wasted_tokens: int = 0
    wasted_encodings: int = 0
    guesses: int = 0
    accepted: int = 0
    reused: int = 0
    replaced: int = 0
    unguessed: str | None = None
    limited_by: str | None = None
    lossy: bool = False
    retries: int = 0
    model_passes: int = 0
    tokens_written: int = 0
    drafts_accepted: int = 0
    decisions_retaken: int = 0
    timeline: tuple[Span, ...] = field(default=(), repr=False)

    def __repr__(self) -> str:
        """Return the time, the searches and the acceptance; `dataclasses.asdict` has the rest."""
        rate = self.guess_rate
        told = f"{self.accepted} of {self.guesses} guesses accepted ({rate:.0%})" if rate else ""
        if not rate:
            told = f"none of {self.guesses} guesses accepted" if self.guesses else "no guesses"
        return (
            f"Stats({self.wall_s:.3f} s, {self.segments} segments, {self.searches} searches of "
            f"{self.queries} queries, {told.replace('%', ' %')})"
        )

    @property
    def guess_rate(self) -> float | None:
        """The acceptance rate of the guesses, or `None` if none was made."""
        return self.accepted / self.guesses if self.guesses else None

    @property
    def tokens_per_pass(self) -> float | None:
        """Tokens per model pass, prefills included; `None` if passes are not counted."""
        return self.tokens_written / self.model_passes if self.model_passes else None

    @property
    def search_s(self) -> float:
        """Seconds during which at least one search was running."""
        return _covered(span for span in self.timeline if span.kind == "search")

    @property
    def write_s(self) -> float:
        """Seconds during which the model was generating, including wasted segments."""
        return _covered(span for span in self.timeline if span.kind == "extend")

    @property
    def overlap_s(self) -> float:
        """Seconds during which generation and a search overlapped."""
        both = [span for span in self.timeline if span.kind in ("search", "extend")]
        return self.search_s + self.write_s - _covered(both)


@dataclass(frozen=True, slots=True)
class VerifierStats:
    """The counts and the current load of a `Verifier`, and of those that share its lanes.

    Attributes:
        calls: requested searches.
        searches: merged searches of the retriever.
        queries: queries in them.
        batch_sizes: the number of searches of each size.
        waited_median_s: median seconds from the request to the start of its search, of the latest
            calls.
        waited_p95_s: the 95th percentile of the same.
        repeated: calls retried after a failure of their shared search.
        given_up: calls cancelled before they were answered.
        refused: calls rejected because the queue was full.
        waiting: queries in the queue now.
        running: searches in flight now.
    """

    calls: int = 0
    searches: int = 0
    queries: int = 0
    batch_sizes: Mapping[int, int] = field(default_factory=dict)
    waited_median_s: float = 0.0
    waited_p95_s: float = 0.0
    repeated: int = 0
    given_up: int = 0
    refused: int = 0
    waiting: int = 0
    running: int = 0

    @property
    def mean_batch(self) -> float | None:
        """Queries in a search, on average; `None` before the first."""
        return self.queries / self.searches if self.searches else None


def _covered(spans: Iterable[Span]) -> float:
    """Return the length of the union of intervals.

    >>> _covered([Span("search", 0.0, 2.0), Span("search", 1.0, 3.0), Span("search", 5.0, 6.0)])
    4.0
    """
    total, reached = 0.0, float("-inf")
    for span in sorted(spans, key=lambda span: span.started_s):
        total += max(0.0, span.ended_s - max(span.started_s, reached))
        reached = max(reached, span.ended_s)
    return total


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of the knowledge base with a stable id.

    Attributes:
        id: unique in the knowledge base, and the same whenever the passage is found.
        text: what is searched and read.
        title: shown before the text by some templates.
        metadata: further values, which are part of the passage: a guess that differs in them is
            wrong.
    """

    id: str
    text: str
    title: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Query:
    """A text to search for, and its encoding, computed once.

    The encoding is specific to the retriever (a vector, a list of terms). The same
    object is used for searches, guesses and caches: encoding the same text
    again, in another batch, differs in the last bits.

    Attributes:
        text: what to search for, in words.
        encoding: what the retriever computed of the text.
        key: identifies equal queries; the text by default.
    """

    text: str = field(compare=False)
    encoding: Any = field(default=None, compare=False, repr=False)
    key: Hashable = None

    def __post_init__(self) -> None:
        """Use the text as the default key."""
        if self.key is None:
            object.__setattr__(self, "key", self.text)


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token of a text: what it adds to the text, and its log-probability.

    A token that is a part of a character adds nothing; the one that completes it adds the
    character. A token that ends the text adds nothing either.
    """

    text: str
    logprob: float  # natural; by the model's own distribution, whatever then chose the token


class NoRetrieval(Enum):
    """The type of `NO_RETRIEVAL`."""

    NO_RETRIEVAL = "NO_RETRIEVAL"

    def __repr__(self) -> str:
        """Return the name."""
        return self.value


NO_RETRIEVAL: Final = NoRetrieval.NO_RETRIEVAL  # in place of a query: no search is needed


@dataclass(frozen=True, slots=True)
class Formed:
    """A query with a value that a workload's `query` passes to `extend`.

    `carried` (such as a look-ahead sentence) is passed to the parameter `carried` of `extend`
    with the query's hits. It must be determined by `query_key`.

    Attributes:
        query: the query, as `query` may return it alone.
        carried: any value for `extend`.
    """

    query: "str | Query | NoRetrieval | None"
    carried: Any = None


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage with its score, or without one for workloads that do not read scores.

    `features` is what the retriever needs to rank this passage in a
    passage cache (a row number, a vector); it is not part of a hit's value.

    Attributes:
        passage: what was found.
        score: the retriever's; higher is better.
        features: of the passage, for a passage table.
    """

    passage: Passage
    score: float | None = None
    features: Any = field(default=None, compare=False, repr=False)

    def unscored(self) -> "Hit":
        """Return the hit without its score, for a workload that does not read scores."""
        return Hit(self.passage)


Hits: TypeAlias = Sequence[Hit]  # immutable: a tuple, or arrays marked as such (`fixed`)


def fixed(hits: Hits) -> Hits:
    """Return immutable hits: a tuple of those of a list, for example.

    Arrays that represent hits (a thousand neighbours of a token) are returned unchanged
    if they are marked with `immutable = True`: hits are created only when they are read.
    """
    return hits if getattr(hits, "immutable", False) else tuple(hits)


def unscored(hits: Hits) -> Hits:
    """Return hits without their scores, for a workload that does not read scores."""
    return tuple(hit.unscored() for hit in hits)


_EQUAL_READS_SAME: Final = frozenset((str, bytes, int, bool))  # the most frequent ones
_TEXTS: Final = (str, bytes)
_SEQUENCES: Final = (list, tuple)


def same_to_read(ours: object, theirs: object) -> bool:
    """Return whether two values are equal, and whatever reads them reads the same.

    For Python's `==`, 1.0 equals `True`, 0.0 equals -0.0, and dicts have no order; a workload
    that writes what it reads would write another text. Dataclasses are compared field by field,
    arrays bit by bit; any other objects must be equal and look the same.

    >>> 1.0 == True, same_to_read(1.0, True), same_to_read(0.0, -0.0)
    (True, False, False)
    >>> same_to_read({"a": 1, "b": [2]}, {"b": [2], "a": 1})
    False
    >>> same_to_read((Hit(Passage("p", "x")),), (Hit(Passage("p", "x")),))
    True
    >>> from decimal import Decimal
    >>> Decimal("1.0") == Decimal("1"), same_to_read(Decimal("1.0"), Decimal("1"))
    (True, False)
    """
    if ours is theirs:
        return True
    kind = type(ours)
    if kind is not type(theirs):
        return False
    if kind in _EQUAL_READS_SAME or isinstance(ours, _TEXTS):
        return bool(ours == theirs)
    if isinstance(ours, _SEQUENCES) and isinstance(theirs, _SEQUENCES):
        return len(ours) == len(theirs) and all(map(same_to_read, ours, theirs))
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        values = map(same_to_read, ours.values(), theirs.values())
        return len(ours) == len(theirs) and all(map(same_to_read, ours, theirs)) and all(values)
    if isinstance(ours, Real) and isinstance(theirs, Real):
        return ours == theirs and math.copysign(1, ours) == math.copysign(1, theirs)
    if isinstance(ours, np.ndarray) and isinstance(theirs, np.ndarray):
        return _same_arrays(ours, theirs)
    if not bool(ours == theirs):
        return False
    if is_dataclass(ours):
        names = [one.name for one in fields(ours) if one.compare]
        return all(same_to_read(getattr(ours, name), getattr(theirs, name)) for name in names)
    # Sets have orders, times their zones; the default representation shows no value.
    return type(ours).__repr__ is object.__repr__ or repr(ours) == repr(theirs)


def _same_arrays(ours: NDArray[Any], theirs: NDArray[Any]) -> bool:
    """Return whether two arrays have the same bits; of objects, whether these read the same."""
    if (ours.dtype, ours.shape) != (theirs.dtype, theirs.shape):
        return False
    if ours.dtype.hasobject:
        return same_to_read(ours.tolist(), theirs.tolist())
    return ours.tobytes() == theirs.tobytes()


def passages_of(hits: Hits) -> list[Passage]:
    """Return the passages of hits, best first."""
    return [hit.passage for hit in hits]


def read_by(lm: object, hits: Hits) -> Any:
    """Return the passages of hits, or the hits if the language model has `reads_hits`."""
    return hits if getattr(lm, "reads_hits", False) else passages_of(hits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One question to be answered.

    Attributes:
        prompt: the question, or the start of a text.
        max_tokens: the maximum length of the answer; the default is that of the papers' answers.
        seed: of random numbers; each token draws by the seed and its position.
        stop: texts before which the answer ends.
        deadline_s: seconds after which the request ends with `DeadlineExceeded`; `None`: no
            deadline.
        context: any object for your own parts; it is never read here.
    """

    prompt: str
    max_tokens: int = 128
    seed: int = 0
    stop: tuple[str, ...] = ()
    deadline_s: float | None = None
    context: Any = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.max_tokens < 1:
            raise ConfigError(f"max_tokens must be at least 1, got {self.max_tokens}")
        if self.deadline_s is not None and not 0 < self.deadline_s <= TIMEOUT_MAX:
            raise ConfigError(
                f"deadline_s must be above 0 and at most {TIMEOUT_MAX:.0f}, got {self.deadline_s}; "
                "None: no deadline"
            )
        if not isinstance(self.stop, tuple) or not all(self.stop):
            raise ConfigError(f"stop must be a tuple of texts, none empty, got {self.stop!r}")

    def check_deadline(self, elapsed_s: float) -> None:
        """Raise `DeadlineExceeded` if this time exceeds the deadline."""
        if self.deadline_s is not None and elapsed_s > self.deadline_s:
            raise DeadlineExceeded(f"no answer within {self.deadline_s} seconds")


def as_request(request: Request | str) -> Request:
    """Return a request; a prompt becomes one with default settings.

    Raises:
        InputError: it is neither.
    """
    if isinstance(request, str):
        return Request(prompt=request)
    if not isinstance(request, Request):
        raise InputError(f"a request must be a text or a Request, got {request!r:.200}")
    return request


@dataclass(frozen=True, slots=True)
class Retrieved:
    """The record of one committed step: its query and its real hits.

    Attributes:
        query: what was searched.
        hits: what was found, and the step was written with.
    """

    query: Query
    hits: Hits


@dataclass(frozen=True, slots=True)
class Answer:
    """The final text, its retrieved steps and its statistics.

    Attributes:
        text: the whole text.
        retrieved: the committed steps that searched, in order.
        state: the workload's last state.
        stats: what it took; not part of the comparison of two answers.
    """

    text: str
    retrieved: tuple[Retrieved, ...]
    state: Any = field(compare=False, repr=False)
    stats: Stats = field(compare=False, repr=False)

    @property
    def sources(self) -> tuple[Hit, ...]:
        """The hits of all committed steps in order of use, each passage once."""
        first: dict[str, Hit] = {}
        for step in self.retrieved:
            for hit in step.hits:
                first.setdefault(hit.passage.id, hit)
        return tuple(first.values())
