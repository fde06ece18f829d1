"""What happened while a request was answered: counts, and a timeline of measured spans."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Outcome(StrEnum):
    """What became of a piece of work."""

    KEPT = "kept"  # its result is part of the answer, or taught a guess
    DROPPED = "dropped"  # written behind a wrong guess
    CANCELLED = "cancelled"  # stopped before it was whole
    FAILED = "failed"  # raised


@dataclass(slots=True)
class Span:
    """One piece of work on the engine's clock, which starts at 0 with the request."""

    kind: str  # "start", "ask", "guess", "search" or "extend"
    started_s: float
    ended_s: float
    queries: int = 0  # in a search: how many queries shared its round trip
    ahead: bool = False  # an extend that began before its passages were verified
    outcome: Outcome = Outcome.KEPT


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
    wasted_segments: int = 0  # begun, and not part of the answer
    guesses: int = 0  # guesses that a search confirmed or refuted
    guesses_right: int = 0
    taken_back: int = 0  # dropped segments that became part of the answer after all
    retries: int = 0  # failed speculative work that was run once more alone
    timeline: tuple[Span, ...] = field(default=(), repr=False)

    @property
    def guess_rate(self) -> float | None:
        """The share of guesses that were right, or `None` if none was made."""
        return self.guesses_right / self.guesses if self.guesses else None

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
