"""Metrics of one request: counts, the timeline, and how much work ran in parallel."""

from collections import Counter, deque

from ralmspec_plugins.effects import (
    Completed,
    Encode,
    Extend,
    FormQuery,
    Guess,
    Search,
    Start,
    Work,
)
from ralmspec_plugins.errors import Cancelled
from ralmspec_plugins.scheduling.cost_model import Searched
from ralmspec_plugins.types import Outcome, Span, Stats

# How long a piece of work overlapped with work of the other kind: searches and segments.


_KEPT = 64  # intervals of each kind: a long search overlaps many short segments


class OverlapTracker:
    """Tracks when searches and segments ran, to measure their overlap.

    >>> from ralmspec_plugins.types import Query
    >>> from ralmspec_plugins.protocols import Progress
    >>> search, extend = Search((Query("a"),)), Extend(None, (), Progress())
    >>> overlap = OverlapTracker()
    >>> overlap.began(search, 0.0), overlap.began(extend, 1.0)
    (None, None)
    >>> overlap.ended(Completed(extend, None, started_s=1.0, ended_s=3.0))  # search continues
    2.0
    >>> overlap.ended(Completed(search, None, started_s=0.0, ended_s=8.0))
    2.0
    """

    def __init__(self) -> None:
        """Create a tracker with nothing running."""
        self._running: dict[Work, float] = {}
        self._over: dict[bool, deque[tuple[float, float]]] = {
            kind: deque(maxlen=_KEPT) for kind in (True, False)
        }

    def began(self, need: Work, at_s: float) -> None:
        """Record that a search or a segment begins."""
        if isinstance(need, Search | Extend):
            self._running[need] = at_s

    def ended(self, done: Completed) -> float:
        """Return the seconds that a search or a segment overlapped with the other kind."""
        need = done.need
        if not isinstance(need, Search | Extend):
            return 0.0
        self._running.pop(need, None)
        search, beside_s = isinstance(need, Search), 0.0
        for other, began_s in self._running.items():
            if isinstance(other, Search) != search:
                beside_s += done.ended_s - max(began_s, done.started_s)
        for began_s, ended_s in reversed(self._over[not search]):
            if ended_s <= done.started_s:
                break  # earlier ones ended even before
            beside_s += max(0.0, min(ended_s, done.ended_s) - max(began_s, done.started_s))
        self._over[search].append((done.started_s, done.ended_s))
        return min(beside_s, done.took_s)


_KINDS = {
    Start: "start",
    FormQuery: "ask",
    Encode: "encode",
    Guess: "guess",
    Search: "search",
    Extend: "extend",
}


class MetricsRecorder:
    """Counts the work of a request; `now_s` is the time of the last completion."""

    def __init__(self) -> None:
        """Create a recorder with all counts at 0."""
        self.now_s = 0.0
        self.first_text_s: float | None = None
        self.batches: list[int] = []
        self.remembered = 0
        self.segments = 0
        self.without_retrieval = 0
        self.guesses = 0
        self.accepted = 0
        self.reused = 0
        self.replaced = 0
        self.retries = 0
        self.wasted_tokens = 0
        self.encoded: Counter[str] = Counter()  # started encodings by text
        self.used_texts: set[str] = set()  # of the queries of committed steps
        self.model_passes = 0
        self.tokens_written = 0
        self.drafts_accepted = 0
        self.decisions_retaken = 0
        self._spans: list[Span] = []
        self._sent_s: dict[Search, float] = {}
        self._overlap = OverlapTracker()
        self.beside_s = 0.0  # overlap of the last completed work with the other kind

    def done(self, done: Completed) -> Span:
        """Add a completed piece of work to the timeline."""
        self.now_s = max(self.now_s, done.ended_s)
        self.beside_s = self._overlap.ended(done)
        need: Work = done.need
        outcome = Outcome.KEPT
        if done.error is not None:
            stopped = isinstance(done.error, Cancelled)
            outcome = Outcome.CANCELLED if stopped else Outcome.FAILED
        queries = len(need.queries) if isinstance(need, Search) else 0
        ahead = isinstance(need, Extend) and need.ahead
        span = Span(_KINDS[type(need)], done.started_s, done.ended_s, queries, ahead, outcome)
        self._spans.append(span)
        progress = getattr(need, "progress", None)  # of work that may call a model
        if progress is not None:
            span.passes = progress.model_passes
            span.tokens = progress.cost
            self.wasted_tokens += span.tokens if outcome is not Outcome.KEPT else 0
            self.model_passes += progress.model_passes
            self.tokens_written += progress.tokens
            self.drafts_accepted += progress.drafts_accepted
            self.decisions_retaken += progress.decisions_retaken
        return span

    def search(self, done: Completed) -> Searched:
        """Return the measurements of the last completed search."""
        assert isinstance(done.need, Search)
        return Searched(len(done.need.queries), done.took_s, self.beside_s)

    def began(self, need: Work) -> None:
        """Record that work begins now; a search is a round trip."""
        self._overlap.began(need, self.now_s)
        if isinstance(need, Search):
            self.batches.append(len(need.queries))
            self._sent_s[need] = self.now_s
        elif isinstance(need, Encode):
            self.encoded[need.query.text] += 1

    def unfinished(self, need: Work) -> None:
        """Add work whose result is no longer needed, before it ends: searches to the timeline."""
        if isinstance(need, FormQuery | Extend):
            self.wasted_tokens += need.progress.cost
        elif isinstance(need, Search):
            began_s, queries = self._sent_s[need], len(need.queries)
            span = Span("search", began_s, self.now_s, queries, outcome=Outcome.CANCELLED)
            self._spans.append(span)

    def record_outcome(self, accepted: bool) -> None:
        """Count a guess as accepted or rejected."""
        self.guesses += 1
        self.accepted += accepted

    def drop(self, span: Span | None) -> None:
        """Mark a segment or a query as discarded."""
        if span is not None and span.outcome is Outcome.KEPT:
            span.outcome = Outcome.DROPPED
            self.wasted_tokens += span.tokens

    def take_back(self, span: Span | None) -> None:
        """Mark a discarded segment or query as reused in the answer."""
        if span is not None and span.outcome is Outcome.DROPPED:
            span.outcome = Outcome.KEPT
            self.wasted_tokens -= span.tokens

    def text(self) -> None:
        """Record the time of the first settled text."""
        if self.first_text_s is None:
            self.first_text_s = self.now_s

    @property
    def wasted_encodings(self) -> int:
        """Encodings of queries that no committed step has, and repeated ones."""
        return self.encoded.total() - len(self.used_texts & self.encoded.keys())

    def stats(
        self,
        unguessed: str | None = None,
        *,
        limited_by: str | None = None,
        lossy: bool = False,
    ) -> Stats:
        """Return the statistics.

        Args:
            unguessed: the reason why no segment was started on a guess, if none was.
            limited_by: the bound on waste that was reached.
            lossy: whether a guess that differed may have been accepted.
        """
        extends = [span for span in self._spans if span.kind == "extend"]
        return Stats(
            wall_s=self.now_s,
            first_text_s=self.first_text_s,
            searches=len(self.batches),
            queries=sum(self.batches),
            batch_sizes=tuple(self.batches),
            remembered=self.remembered,
            segments=self.segments,
            without_retrieval=self.without_retrieval,
            wasted_segments=sum(span.outcome is not Outcome.KEPT for span in extends),
            wasted_tokens=self.wasted_tokens,
            wasted_encodings=self.wasted_encodings,
            guesses=self.guesses,
            accepted=self.accepted,
            reused=self.reused,
            replaced=self.replaced,
            unguessed=unguessed,
            limited_by=limited_by,
            lossy=lossy,
            retries=self.retries,
            model_passes=self.model_passes,
            tokens_written=self.tokens_written,
            drafts_accepted=self.drafts_accepted,
            decisions_retaken=self.decisions_retaken,
            timeline=tuple(self._spans),
        )
