"""The records that travel through the system: passage, query, hit, request, answer."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import Any, Final, TypeAlias

from ralmspec_plugins.errors import ConfigError, DeadlineExceeded

# What happened while a request was answered: counts, and a timeline of measured spans.


class Outcome(StrEnum):
    """What became of a piece of work."""

    KEPT = "kept"  # its result is part of the answer, or taught a guess
    DROPPED = "dropped"  # written behind a wrong guess
    CANCELLED = "cancelled"  # stopped before it was whole
    FAILED = "failed"  # raised


@dataclass(slots=True)
class Span:
    """One piece of work on the engine's clock, which starts at 0 with the request."""

    kind: str  # "start", "ask", "encode", "guess", "search" or "extend"
    started_s: float
    ended_s: float
    queries: int = 0  # in a search: how many queries shared its round trip
    ahead: bool = False  # an extend that began before its passages were verified
    outcome: Outcome = Outcome.KEPT
    passes: int = 0  # of a model that counts them


@dataclass(frozen=True, slots=True)
class Stats:
    """The numbers of one request, all counted or measured, none computed from the others' model."""

    wall_s: float = 0.0
    first_text_s: float | None = None  # when the first settled text could be shown
    searches: int = 0  # round trips to the retriever
    queries: int = 0  # queries in them, those of dropped steps included
    batch_sizes: tuple[int, ...] = ()  # queries in each round trip, in order
    remembered: int = 0  # committed steps whose hits were known without a search
    segments: int = 0  # committed steps
    without_retrieval: int = 0  # committed steps that needed no search
    wasted_segments: int = 0  # begun, and not part of the answer
    guesses: int = 0  # guesses that a search confirmed or refuted
    accepted: int = 0
    reused: int = 0  # dropped segments that became part of the answer after all
    unguessed: str | None = None  # why no segment was begun on a guess; `None` if one was
    lossy: bool = False  # the workload's own `agree` may have let a wrong guess stand
    retries: int = 0  # failed speculative work that was run once more alone
    model_passes: int = 0  # of a model that counts them, those of wasted segments included
    tokens_written: int = 0  # in them
    drafts_accepted: int = 0  # tokens that were drafted, and chosen by the model
    decisions_retaken: int = 0  # choices of a token taken again by passes of one token
    timeline: tuple[Span, ...] = field(default=(), repr=False)

    @property
    def guess_rate(self) -> float | None:
        """The share of guesses that were right, or `None` if none was made."""
        return self.accepted / self.guesses if self.guesses else None

    @property
    def tokens_per_pass(self) -> float | None:
        """Tokens written in a model's pass, prefills included; `None` if passes are not counted."""
        return self.tokens_written / self.model_passes if self.model_passes else None

    @property
    def search_s(self) -> float:
        """Seconds during which at least one search was running."""
        return _covered(span for span in self.timeline if span.kind == "search")

    @property
    def write_s(self) -> float:
        """Seconds during which the model was writing, wasted segments included."""
        return _covered(span for span in self.timeline if span.kind == "extend")

    @property
    def overlap_s(self) -> float:
        """Seconds during which the model was writing and a search was running."""
        both = [span for span in self.timeline if span.kind in ("search", "extend")]
        return self.search_s + self.write_s - _covered(both)


@dataclass(frozen=True, slots=True)
class VerifierStats:
    """What a `Verifier` and those beside it have done so far, and what they are doing now."""

    calls: int = 0  # searches that were asked for
    searches: int = 0  # searches that reached the retriever, merged
    queries: int = 0  # queries in them
    batch_sizes: Mapping[int, int] = field(default_factory=dict)  # size -> searches of that size
    waited_median_s: float = 0.0  # from being asked for to being searched, over the latest calls
    waited_p95_s: float = 0.0
    repeated: int = 0  # calls searched once more, since a search that they shared had failed
    given_up: int = 0  # calls whose caller had gone before they were answered
    refused: int = 0  # calls that found no room in the line
    waiting: int = 0  # queries in the line now
    running: int = 0  # searches that are out now

    @property
    def mean_batch(self) -> float | None:
        """Queries in a search, on average; `None` before the first."""
        return self.queries / self.searches if self.searches else None


def _covered(spans: Iterable[Span]) -> float:
    """Measure the union of intervals.

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
    """A piece of the knowledge base with an id that never changes."""

    id: str
    text: str
    title: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked: a text, and its encoding, made once.

    The encoding is the retriever's own (a vector, a list of terms) and is
    searched, guessed with and remembered as it is: encoding the same text
    again, in another batch, differs in the last bits.
    """

    text: str = field(compare=False)
    encoding: Any = field(default=None, compare=False, repr=False)
    key: Hashable = None  # what makes two queries the same; the text unless given

    def __post_init__(self) -> None:
        """Fall back to the text as the key."""
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
        """Be shown by its name."""
        return self.value


NO_RETRIEVAL: Final = NoRetrieval.NO_RETRIEVAL  # in place of a query: this step needs no search


@dataclass(frozen=True, slots=True)
class Formed:
    """What a workload's `query` may return where forming the query computed more than the query.

    `carried` (a look-ahead sentence, say) is handed on to `extend` with the query's hits, in
    its parameter `carried`. It has to follow from what `query_key` holds.
    """

    query: "str | Query | NoRetrieval | None"
    carried: Any = None


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage with its score, or without one for workloads that do not read scores.

    `features` is what the retriever wants remembered to rank this passage in a
    pool (a row number, a vector); it is no part of a hit's value.
    """

    passage: Passage
    score: float | None = None
    features: Any = field(default=None, compare=False, repr=False)

    def unscored(self) -> "Hit":
        """Give the hit back without its score, for a workload that may not see it."""
        return Hit(self.passage)


Hits: TypeAlias = Sequence[Hit]  # immutable: a tuple, or arrays that say so (`fixed`)


def fixed(hits: Hits) -> Hits:
    """Give hits that nobody can change: those of a list, say, as a tuple.

    Arrays that stand for hits (a thousand neighbours of a token) are left as they are
    where they are marked by `immutable = True`: no hit is made that nobody looks at.
    """
    return hits if getattr(hits, "immutable", False) else tuple(hits)


def unscored(hits: Hits) -> Hits:
    """Give hits without their scores, for a workload that may not see them."""
    return tuple(hit.unscored() for hit in hits)


def passages_of(hits: Hits) -> list[Passage]:
    """Give the passages of hits, best first."""
    return [hit.passage for hit in hits]


def read_by(lm: object, hits: Hits) -> Any:
    """Give what a language model is handed: passages, or the hits themselves if it `reads_hits`."""
    return hits if getattr(lm, "reads_hits", False) else passages_of(hits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One question to be answered."""

    prompt: str
    max_tokens: int = 128  # the length of the papers' answers
    seed: int = 0
    stop: tuple[str, ...] = ()
    deadline_s: float | None = None
    context: Any = field(default=None, compare=False, repr=False)  # for the parts; never looked at

    def __post_init__(self) -> None:
        """Refuse settings that no workload could honour."""
        if self.max_tokens < 1:
            raise ConfigError(f"max_tokens must be at least 1, got {self.max_tokens}")
        if self.deadline_s is not None and not self.deadline_s > 0:
            raise ConfigError(f"deadline_s must be above 0, got {self.deadline_s}")
        if not isinstance(self.stop, tuple) or not all(self.stop):
            raise ConfigError(f"stop must be a tuple of texts, none empty, got {self.stop!r}")

    def check_deadline(self, elapsed_s: float) -> None:
        """Raise `DeadlineExceeded` when this much time is too much."""
        if self.deadline_s is not None and elapsed_s > self.deadline_s:
            raise DeadlineExceeded(f"no answer within {self.deadline_s} seconds")


@dataclass(frozen=True, slots=True)
class Retrieved:
    """One committed step's part in the record: what was asked, and what was really found."""

    query: Query
    hits: Hits


@dataclass(frozen=True, slots=True)
class Answer:
    """The final text, what it rests on, and what it took."""

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
