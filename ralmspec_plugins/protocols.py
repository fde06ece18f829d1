"""Protocols of a workload, a retriever, a speculator and a language model.

They are protocols, not base classes: any object with these methods can be used.
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

# Whether the current work may be discarded, because it depends on a guess that no search has
# confirmed yet. Engines set it around each query, search and segment, in the thread or task that
# does the work, for adapters that report calls to their host.
speculative: Final[ContextVar[bool]] = ContextVar("ralmspec_speculative", default=False)


class Progress:
    """Connects the generation of a segment or a query with the loop.

    A model calls `check()` between tokens, to stop when its text is no
    longer needed, and `report(state)` with the current state, so that a
    segment whose passages are verified can be streamed before it is complete.
    Both are optional: a segment that reports nothing is streamed when
    it is finished.
    """

    def __init__(self, report: Callable[[Any], None] | None = None) -> None:
        """Send reports to `report`; without it they are discarded."""
        self._report = report
        self._cancelled = False
        self._on_cancel: Callable[[], None] | None = None
        self.confirmed = False  # nothing that the text depends on is a guess any longer
        self.model_passes = 0
        self.tokens = 0
        self.drafts_accepted = 0
        self.decisions_retaken = 0
        self._charged = 0

    @property
    def cancelled(self) -> bool:
        """Whether the text is no longer needed."""
        return self._cancelled

    @property
    def wanted(self) -> bool:
        """Whether reports are used; if not, a model need not stream."""
        return self._report is not None

    def cancel(self) -> None:
        """Make the next `check()` raise `Cancelled`; thread-safe."""
        self._cancelled = True
        if self._on_cancel is not None:
            self._on_cancel()

    def on_cancel(self, wake: Callable[[], None]) -> None:
        """Call a function when the text is no longer needed, for work that waits."""
        self._on_cancel = wake
        if self._cancelled:
            wake()

    def connect(self, report: Callable[[Any], None]) -> None:
        """Send reports to `report` from now on."""
        self._report = report

    def check(self) -> None:
        """Raise `Cancelled` if the text is no longer needed."""
        if self._cancelled:
            raise Cancelled("this segment is no longer needed")

    def report(self, state: Any) -> None:
        """Report the state with the unfinished text."""
        if self._report is not None and not self._cancelled:
            self._report(state)

    def count(
        self, *, model_passes: int, tokens: int, drafts_accepted: int, decisions_retaken: int
    ) -> None:
        """Add to the statistics; a model that counts its passes calls this at the end."""
        self.model_passes += model_passes
        self.tokens += tokens
        self.drafts_accepted += drafts_accepted
        self.decisions_retaken += decisions_retaken

    def charge(self, tokens: int) -> None:
        """Add the tokens that a call costs, where a model does not count its passes.

        A call is charged with what it may cost at most when it begins, and with the difference
        when its cost is known, so that one that was stopped has a cost, too.
        """
        self._charged += tokens

    @property
    def cost(self) -> int:
        """The tokens counted and charged."""
        return self.tokens + self._charged


class Workload(Protocol[StateT]):
    """Defines when to retrieve, with which query, and how the hits change the state.

    A state is immutable and holds all that later work and the final text
    depend on. Sources, scores and statistics are not part of it: the loop records
    them (docs/decisions/0001).

    `TextWorkload` (`ralmspec_plugins.workloads`) has defaults for all methods except `query` and
    `extend`.

    `inline_query`: `query()` is pure and takes microseconds, and may be called
    by the loop itself instead of a worker.
    `reads_scores`: `extend()` reads the scores of its hits; if false, it receives
    hits without scores, and scores are not compared.

    Optional: `astart()`, `aquery()` and `aextend()` for `AsyncEngine`;
    `agree(state, guess, hits)` returns whether a guess is equivalent to the real hits for
    all that `extend` reads, and `lossy` is true if it may accept one that is not;
    `side_by_side` is true if a segment that is no longer
    needed may finish in parallel with the next one, as a call to a server may;
    `retrieves_once` is true if no request has more than one query: without shared caches it is
    answered plainly, since there is nothing to guess from.
    """

    inline_query: bool
    reads_scores: bool

    def start(self, request: Request) -> StateT:
        """Turn a request into the first state."""
        ...

    def query(self, state: StateT) -> str | Query | NoRetrieval | Formed | None:
        """Return the next query, or `None` when the answer is complete.

        A text is encoded by the retriever; a `Query` is searched as it is. `NO_RETRIEVAL`
        means that this step needs no search: `extend` receives no hits. A `Formed` wraps
        any of these with a value that is passed to `extend`.

        A method that generates the query with a model takes a parameter `progress`: it is
        cancelled like a segment when its step is dropped, and its reports are streamed.
        """
        ...

    def extend(self, state: StateT, hits: Hits, progress: Progress) -> StateT:
        """Write the next segment from a state and its hits.

        The value in `Formed(..., carried)` is passed as the parameter `carried`.
        `progress` can be omitted.

        Raises:
            Cancelled: `progress` was cancelled during generation.
        """
        ...

    def text(self, state: StateT) -> str:
        """Return the whole text of a state."""
        ...

    def settled(self, state: StateT) -> str:
        """Return the part of the text that no later step changes, if this state is committed."""
        ...

    def query_key(self, state: StateT) -> Hashable | None:
        """Return a key of all that `query(state)` depends on; `None` if there is none.

        Equal keys imply equal queries and interchangeable carried values, so the
        query of a dropped step can be reused.
        """
        ...

    def extend_key(self, state: StateT, hits: Hits) -> Hashable | None:
        """Return a key of all that `extend(state, hits)` depends on, to the last bit.

        This includes the model's key-value cache: the same tokens with another
        cache history differ in the last bits. Equal keys imply states that are
        interchangeable for all later work, so a dropped segment can be reused.
        """
        ...

    def release(self, state: StateT) -> None:
        """Free the memory of this request's states; it can be rebuilt."""
        ...


class Retriever(Protocol):
    """Returns equal hits for equal queries throughout a request, without side effects.

    `signature` identifies everything that the hits depend on (store, collection, k,
    filter, user, embedder): query caches and passage caches are partitioned by it.

    Optional: `inline_encode` is true if `encode` takes microseconds, and
    may be called by the loop itself instead of a worker; `encode_lanes` is the number of
    encodings of a request that may run in parallel (default 1: a local encoder uses the whole
    machine, a hosted one serves many calls), read again before each one; `unencoded(text)`
    returns the query of a text before it is encoded, with the same key; `aencode()` and
    `asearch()` are for `AsyncEngine`.
    """

    @property
    def signature(self) -> Hashable:
        """Return a key of the store and of all settings that the hits depend on."""
        ...

    def encode(self, text: str) -> Query:
        """Return the query of a text with its encoding, computed once, in a batch of one."""
        ...

    def search(self, queries: Sequence[Query]) -> list[Hits]:
        """Return the best passages of each query, best first.

        The result of a query does not depend on the other queries of the batch.
        """
        ...


@runtime_checkable
class WideRetriever(Retriever, Protocol):
    """A retriever that can be searched wider than its own k.

    A wider search must start with exactly the hits of the plain one (an
    exact ranking): then one search both verifies and prefetches.
    """

    k: int

    def search_wide(self, queries: Sequence[Query], width: int) -> list[Hits]:
        """Return the best `width` passages of each query; the first k are those of `search`."""
        ...


class PassageTable(Protocol):
    """Ranks the passages of a cache with the retriever's own metric and tie rule.

    Optional: `kept` returns the part of a hit that the cache stores.
    """

    def put(self, slot: int, hit: Hit) -> None:
        """Store a passage in a slot, replacing the previous one."""
        ...

    def rank(self, query: Query, slots: Sequence[int], k: int) -> list[tuple[int, float]]:
        """Return the best k of these slots with their scores, best first, ties by passage id."""
        ...


@runtime_checkable
class PoolableRetriever(Retriever, Protocol):
    """A retriever whose metric a passage cache can apply to single passages."""

    k: int

    def table(self, capacity: int) -> PassageTable:
        """Return an empty table for a passage cache of this capacity."""
        ...


class Speculator(Protocol):
    """Guesses the hits of a search. Thread-safe where it is shared.

    Optional: `inline` is true if `guess` may be called by the loop itself: it takes
    microseconds, or at most a few milliseconds where no shared event loop runs.
    `by_text` is true if `guess` reads the query's text and not its encoding. Such speculators
    are called while the query is being encoded; an inline one that reads the encoding may guess
    again then, and where there is none, only those are called that precede all others.
    `guess_after(query, previous)` is called in place of `guess` from the second step on:
    `previous` are the hits that the step before was given, verified or guessed.
    `invalidate()` discards what was learned, after a change of the index. A shared speculator
    counts these calls in `generation`, and takes the count from before a request's first
    search as a third argument of `learn`, to ignore hits that may be outdated.
    """

    def guess(self, query: Query) -> Hits | None:
        """Return the hits expected of the real search, or `None`."""
        ...

    def learn(self, query: Query, hits: Hits) -> None:
        """Learn from the hits of a real search, including prefetched ones.

        Called before the next guess, and before that when nothing else is to be done, while the
        model generates. Not called for searches during which guesses do not pay off, nor at the
        end of a request for its own speculators.
        """
        ...


class LanguageModel(Protocol[StateT]):
    """Continues a text with passages before it, a few tokens at a time.

    Its state is the draft: immutable, of tokens rather than text, and with
    the data of the compute schedule (docs/architecture.md): the passages of the key-value
    cache, and the length at which it was last prefilled.

    Optional: `awrite()` for `AsyncEngine`; `same_passages(one, other)`
    returns whether the model's output is the same after both; `side_by_side` as in `Workload`.
    With `reads_hits` the model receives hits in place of passages; their scores
    are those of the search only with `reads_scores`, and `None` otherwise.
    `resume(draft, request, text)` starts after an existing text, in the request of `draft` with
    the settings of `request`; `text()` then returns only what was written since.
    `stop_of(draft)` returns the stop string that ended a draft, "" if none did, and `None` if
    that is unknown. `write_one_sentence()` is a `write_sentence()` that leaves no token after the
    sentence in the draft.
    `scored(thresholds)` returns the same model as a `ScoredLanguageModel`; call it through the
    function `scored_model`, which says what is missing where a model has no such method.
    """

    def begin(self, request: Request) -> StateT:
        """Tokenise the prompt."""
        ...

    def write(
        self, draft: StateT, passages: Sequence[Passage], tokens: int, progress: Progress
    ) -> StateT:
        """Continue a draft by at most this many tokens, with these passages before it.

        Raises:
            ContextOverflowError: passages, prompt and text exceed the model's context.
            Cancelled: `progress` was cancelled during generation.
        """
        ...

    def finished(self, draft: StateT) -> bool:
        """Return whether the draft has ended: by an end token, a stop string, or its length."""
        ...

    def tail(self, draft: StateT, tokens: int) -> str:
        """Return the last tokens of prompt and text, as text."""
        ...

    def text(self, draft: StateT) -> str:
        """Return the generated text, without the prompt, cut before a stop string."""
        ...

    def settled(self, draft: StateT) -> str:
        """Return the part of `text` that no later token can change.

        Excluded are a possible start of a stop string, and incomplete characters.
        """
        ...

    def text_key(self, draft: StateT) -> Hashable:
        """Return a key of all that `tail` depends on: prompt and tokens, not the cache history."""
        ...

    def write_key(self, draft: StateT, passages: Sequence[Passage], tokens: int) -> Hashable:
        """Return a key of all that `write` depends on, to the last bit."""
        ...

    def release(self, draft: StateT) -> None:
        """Free the caches kept for this draft's request."""
        ...


class ScoredLanguageModel(LanguageModel[StateT], Protocol[StateT]):
    """A language model whose drafts have the log-probabilities of their tokens.

    They are those of the model's distribution, before temperature, penalties, top-k and top-p.
    They are not part of a draft's value, and partial drafts may be without
    them.
    """

    def logprobs(self, draft: StateT) -> tuple[TokenLogprob, ...]:
        """Return the generated tokens; their joined texts are `text(draft)`.

        Raises:
            InputError: a part of the draft has no log-probabilities.
        """
        ...


def scored_model(
    lm: LanguageModel[StateT], thresholds: Sequence[float] = ()
) -> ScoredLanguageModel[StateT]:
    """Return the same model, with the same caches, whose drafts have log-probabilities.

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
