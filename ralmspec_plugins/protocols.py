"""The seams: what a workload, a retriever, a speculator and a local model must offer.

They are protocols, not base classes: anything with these methods fits.
"""

from collections.abc import Callable, Hashable, Sequence
from contextvars import ContextVar
from typing import Any, Final, Protocol, TypeVar, runtime_checkable

from ralmspec_plugins.errors import Cancelled, ConfigError
from ralmspec_plugins.types import (
    Formed,
    Hit,
    Hits,
    NoRetrieval,
    Passage,
    Query,
    Request,
    TokenLogprob,
)

StateT = TypeVar("StateT")

# Whether the work that is being done may be discarded: it stands behind a guess that no search
# has confirmed yet. Engines set it around each query, search and segment, in the thread or task
# that does the work, for adapters that report calls to their host.
speculative: Final[ContextVar[bool]] = ContextVar("ralmspec_speculative", default=False)


class Progress:
    """The connection between a segment, or a query, being written and the loop that needs it.

    A model calls `check()` between tokens and so stops when its text is no
    longer needed, and `report(state)` with the state so far, so that a
    segment whose passages are verified can be streamed before it is whole.
    Neither is an obligation: a segment that reports nothing is streamed when
    it is finished.
    """

    def __init__(self, report: Callable[[Any], None] | None = None) -> None:
        """Send reports to `report`, or nowhere."""
        self._report = report
        self._cancelled = False
        self.model_passes = 0
        self.tokens = 0
        self.drafts_accepted = 0
        self.decisions_retaken = 0

    @property
    def cancelled(self) -> bool:
        """Whether what is being written is no longer needed."""
        return self._cancelled

    @property
    def wanted(self) -> bool:
        """Whether reports go anywhere: worth streaming for, where that costs anything."""
        return self._report is not None

    def cancel(self) -> None:
        """Ask the writer to stop at its next check (safe from any thread)."""
        self._cancelled = True

    def connect(self, report: Callable[[Any], None]) -> None:
        """Send reports to `report` from now on."""
        self._report = report

    def check(self) -> None:
        """Raise `Cancelled` when what is being written is no longer needed."""
        if self._cancelled:
            raise Cancelled("this segment is no longer needed")

    def report(self, state: Any) -> None:
        """Hand on the state with the unfinished text."""
        if self._report is not None and not self._cancelled:
            self._report(state)

    def count(
        self, *, model_passes: int, tokens: int, drafts_accepted: int, decisions_retaken: int
    ) -> None:
        """Take in what writing took; a model that counts its passes calls this at the end."""
        self.model_passes += model_passes
        self.tokens += tokens
        self.drafts_accepted += drafts_accepted
        self.decisions_retaken += decisions_retaken


class Workload(Protocol[StateT]):
    """When to ask, what to ask, and what the hits do to the state.

    A state is immutable and holds what later work and the final text can
    depend on. Sources, scores and statistics are no part of it: the loop keeps
    them (docs/decisions/0001).

    `TextWorkload` (`ralmspec_plugins.workloads`) has a default for all of it but
    `query` and `extend`.

    `inline_query`: `query()` is pure and costs microseconds, and may be called
    from the loop itself instead of from a worker.
    `reads_scores`: `extend()` looks at the scores of its hits; where it does
    not, it is handed hits without them, and scores need not agree.

    Optional, where they are there: `astart()`, `aquery()` and `aextend()` for `AsyncEngine`;
    `agree(state, guess, hits)` says whether a guess is as good as the real hits for
    all that `extend` reads, and `lossy` that it may say so of one that is not;
    `side_by_side` says that a segment that is no longer
    needed may be left to itself while the next one is written: a call of a server.
    """

    inline_query: bool
    reads_scores: bool

    def start(self, request: Request) -> StateT:
        """Turn a request into the first state."""
        ...

    def query(self, state: StateT) -> str | Query | NoRetrieval | Formed | None:
        """Say what to ask next, or `None` when the answer is complete.

        A text is encoded by the retriever; a `Query` is searched as it is. `NO_RETRIEVAL`
        says that this step needs no search: `extend` is handed no hits. A `Formed` brings
        what forming the query computed on to `extend`, with any of these.

        A query that a model writes takes a parameter `progress`: it is then cancelled like a
        segment when its step is dropped, and what it reports is streamed like a segment's.
        """
        ...

    def extend(self, state: StateT, hits: Hits, progress: Progress) -> StateT:
        """Write the next segment from a state and its hits.

        What `query` returned in `Formed(..., carried)` is handed to a parameter `carried`.
        `progress` can be left out.

        Raises:
            Cancelled: `progress` was cancelled while writing.
        """
        ...

    def text(self, state: StateT) -> str:
        """Give the whole text of a state."""
        ...

    def settled(self, state: StateT) -> str:
        """Give the part of the text that nothing later can change, if this state is true."""
        ...

    def query_key(self, state: StateT) -> Hashable | None:
        """Hold everything that `query(state)` can depend on; `None` if that cannot be said.

        Equal keys promise equal queries, and that what they carry is interchangeable, so a
        dropped step's query is taken back.
        """
        ...

    def extend_key(self, state: StateT, hits: Hits) -> Hashable | None:
        """Hold everything that `extend(state, hits)` can depend on, to the last bit.

        That takes in the model's key-value cache: the same tokens under another
        cache history differ in the last bits. Equal keys promise states that are
        interchangeable for all later work, so a dropped segment is taken back.
        """
        ...

    def release(self, state: StateT) -> None:
        """Free what is kept in memory for this request's states; all of it can be rebuilt."""
        ...


class Retriever(Protocol):
    """Answers a query the same way throughout a request, and without side effects.

    `signature` names everything its answers depend on (store, collection, k,
    filter, user, embedder): query caches and passage caches are partitioned by it.

    Optional, where they are there: `inline_encode` says that `encode` costs microseconds, and
    may be called from the loop itself instead of from a worker; `encode_lanes` how many
    encodings may run at a time (1 unless it says so: a local encoder uses the whole machine, a
    hosted one serves many calls); `unencoded(text)` forms the query of a text as it stands
    before it is encoded, with the same key; `aencode()` and `asearch()` for `AsyncEngine`.
    """

    @property
    def signature(self) -> Hashable:
        """Name the store, and all settings that its answers depend on."""
        ...

    def encode(self, text: str) -> Query:
        """Form the query of a text: its encoding is made here, once, alone in its pass."""
        ...

    def search(self, queries: Sequence[Query]) -> list[Hits]:
        """Find the best passages of each query, best first.

        A query's result does not depend on what else is in the batch.
        """
        ...


@runtime_checkable
class WideRetriever(Retriever, Protocol):
    """A retriever that can be searched wider than its own k.

    Only where a wider search starts with exactly the hits of the plain one (an
    exact ranking): then one search serves to verify and to prefetch.
    """

    k: int

    def search_wide(self, queries: Sequence[Query], width: int) -> list[Hits]:
        """Find the best `width` passages of each query; the first k are those of `search`."""
        ...


class PassageTable(Protocol):
    """Ranks the passages of a pool with the retriever's own metric and tie rule.

    One over hits that carry more than a guess needs has `kept`, which gives of a hit what
    a pool keeps of it.
    """

    def put(self, slot: int, hit: Hit) -> None:
        """Remember a passage under a slot number, over whatever was there."""
        ...

    def rank(self, query: Query, slots: Sequence[int], k: int) -> list[tuple[int, float]]:
        """Give the best k of these slots with their scores, best first, ties by passage id."""
        ...


@runtime_checkable
class PoolableRetriever(Retriever, Protocol):
    """A retriever whose metric a pool can apply to single passages."""

    k: int

    def table(self, capacity: int) -> PassageTable:
        """Make an empty table for a pool of this capacity."""
        ...


class Speculator(Protocol):
    """Guesses what a search will return. Thread-safe where it is shared.

    `inline`: `guess` may be called from the loop itself: it costs microseconds, or no more than
    a few milliseconds where no event loop runs that others share.

    Optional: `by_text` says that `guess` reads the query's text and no encoding. Speculators
    that stand before all others that need it are asked while the query is being encoded.
    `invalidate()` forgets what was learned, for when the index has changed. One that requests
    share counts these calls in `generation`, and takes the count from before a request's first
    search as a third argument of `learn`, to leave out what may have been found before.
    """

    inline: bool

    def guess(self, query: Query) -> Hits | None:
        """Give the hits that the real search is expected to return, or `None`."""
        ...

    def learn(self, query: Query, hits: Hits) -> None:
        """Take in the hits of a real search, prefetched ones included."""
        ...


class LanguageModel(Protocol[StateT]):
    """Continues a text with passages in front of it, a few tokens at a time.

    Its state is the draft so far: immutable, tokens rather than text, and with
    what the compute schedule (docs/architecture.md) needs (which passages the key-value
    cache stands on, and at which length it was last prefilled).

    Optional, where they are there: `awrite()` for `AsyncEngine`; `same_passages(one, other)`
    says whether the model writes the same behind both; `side_by_side` is the workload's.
    With `reads_hits` the model is handed hits wherever passages stand here; the scores
    in them are those of the search only with `reads_scores`, and `None` without.
    `resume(draft, request, text)` begins behind a text that stands already, in the request of
    `draft` but by the settings of `request`; `text()` then gives what was written since.
    `stop_of(draft)` gives the stop string that ended a draft, "" if it ended otherwise or not,
    and `None` where that is not known. `write_one_sentence()` is a `write_sentence()` that keeps
    nothing behind the sentence, where the latter does.
    `scored(thresholds)` gives the same model as a `ScoredLanguageModel`; call it through the
    function `scored_model`, which says what is missing where a model has no such method.
    """

    def begin(self, request: Request) -> StateT:
        """Tokenise the prompt."""
        ...

    def write(
        self, draft: StateT, passages: Sequence[Passage], tokens: int, progress: Progress
    ) -> StateT:
        """Continue a draft by at most this many tokens, these passages in front.

        Raises:
            ContextOverflowError: passages, prompt and text exceed the context.
            Cancelled: `progress` was cancelled while writing.
        """
        ...

    def finished(self, draft: StateT) -> bool:
        """Say whether the draft has ended: end of sequence, a stop string, or its full length."""
        ...

    def tail(self, draft: StateT, tokens: int) -> str:
        """Give the last tokens of prompt and text, as text."""
        ...

    def text(self, draft: StateT) -> str:
        """Give what was written, without the prompt, cut before a stop string."""
        ...

    def settled(self, draft: StateT) -> str:
        """Give the part of `text` that no later token can change.

        Held back are what may turn out to be the start of a stop string, and
        incomplete characters.
        """
        ...

    def text_key(self, draft: StateT) -> Hashable:
        """Hold what `tail` depends on: prompt and tokens, not the cache's history."""
        ...

    def write_key(self, draft: StateT, passages: Sequence[Passage], tokens: int) -> Hashable:
        """Hold all that `write` depends on, to the last bit."""
        ...

    def release(self, draft: StateT) -> None:
        """Free the caches kept for this draft's request."""
        ...


class ScoredLanguageModel(LanguageModel[StateT], Protocol[StateT]):
    """A language model whose drafts hold the log-probabilities of the tokens that it wrote.

    They are by the model's own distribution: before temperature, penalties, top-k and top-p.
    They are no part of a draft's value, and of partial drafts that are reported they may be
    missing.
    """

    def logprobs(self, draft: StateT) -> tuple[TokenLogprob, ...]:
        """Give the tokens written so far: their texts, joined, are `text(draft)`.

        Raises:
            InputError: some of the draft was written without log-probabilities.
        """
        ...


def scored_model(
    lm: LanguageModel[StateT], thresholds: Sequence[float] = ()
) -> ScoredLanguageModel[StateT]:
    """Give a model whose drafts hold log-probabilities: the same one, on the same caches.

    Args:
        lm: the model.
        thresholds: probabilities, above 0 and at most 1, that those of tokens are compared with.
            Each comparison then gives what it gives without speculation on tokens: one that
            is too near to say is taken again by passes of one token. The model may be
            one of a server, whose log-probabilities are taken as they come.

    Raises:
        ConfigError: the model has none, or a threshold is no probability.
    """
    if not all(0.0 < threshold <= 1.0 for threshold in thresholds):
        raise ConfigError(f"thresholds must be above 0 and at most 1, got {tuple(thresholds)}")
    scored = getattr(lm, "scored", None)
    if scored is None:
        raise ConfigError(
            f"{type(lm).__name__} gives no log-probabilities of its tokens: it has no method "
            "scored(thresholds). A local model driven by tokens (HuggingFaceLM, or direct=True "
            "in a host) has them, and so has a server's that takes logprobs."
        )
    model: ScoredLanguageModel[StateT] = scored(tuple(thresholds))
    return model
