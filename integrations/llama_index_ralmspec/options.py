"""The settings of a `SpeculativeQueryEngine` that the host's own query engine does not have."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal

from llama_index.core.base.base_retriever import BaseRetriever

from ralmspec_plugins.adapters.engines import (
    OwnPool,
    Speculation,
    WorkloadMaker,
    WorkloadName,
    check_reads_logprobs,
    is_one_shot,
)
from ralmspec_plugins.adapters.retriever_state import BatchMode
from ralmspec_plugins.adapters.text_model import Bound, Continuation
from ralmspec_plugins.adapters.writing_options import check_decoding
from ralmspec_plugins.arguments import suggests_fields
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.scheduling.model_queue import ModelQueue
from ralmspec_plugins.scheduling.schedules import Schedule
from ralmspec_plugins.speculators.passage_cache import SharedPassageCache
from ralmspec_plugins.speculators.query_cache import QueryCache
from ralmspec_plugins.waste import WasteShare


@suggests_fields
@dataclass(frozen=True, slots=True, kw_only=True, eq=False, weakref_slot=True)
class Options:
    """How a query engine speculates, and how it writes if the host's synthesizer does not.

    Attributes:
        workload: "one_shot" (one retrieval, then the response synthesizer: the host's own query
            engine), "sentences" (a retrieval for each sentence), "interval" (one every few
            tokens), "flare", "iter_retgen", "multi_hop" (docs/workloads.md), or a function from
            a model to a workload: `functools.partial(Interval, interval=8)`.
        direct: whether a local `HuggingFaceLLM` or `SpeculativeLLM` is driven by tokens and
            key-value cache, not by its calls.
        decoding: with `direct`, a `Decoding`, which enables speculative decoding
            (docs/decoding.md); a `SpeculativeLLM` has its own.
        bound: how a call is bounded to n tokens; known for the usual classes.
        continuation: how the chat model continues its own last message; known for the usual
            classes.
        logprobs: the arguments of a call that request log-probabilities in OpenAI's form, for
            "flare"; known for OpenAI's classes.
        sentence_stop: the stop string that ends a sentence, for models whose output cannot be
            bounded.
        max_tokens: the maximum number of tokens of an answer, by the bounds of its steps: 256,
            for sentences 1024.
        stop: strings at which an answer ends; not for "one_shot".
        seed: the random seed for sampling with a directly driven model.
        deadline_s: the timeout after which a request ends with `DeadlineExceeded`.
        speculate: whether to speculate; `False`: the plain loop.
        guess_through: whether postprocessors, and with "one_shot" the response synthesizer, may
            be called with guessed nodes, so more often than in the host and in another order.
            `None`: if all their classes are known to keep no state between two calls. Set `True`
            if yours keep none. With `False` they wait for the search, unless the memo has it.
        schedule: how far to speculate; `Continuous` by default.
        prefetch: the number of nodes of a wider search for the pool: max(20, 20 k), at most 80,
            or 2 k.
        pool: the passage cache of nodes found so far, for guesses: by default one per engine, if
            the search uses only LlamaIndex' own classes. `None`: one per request.
        memo: caches results of searches, which are used without a new search: for an index that
            does not change, or if `invalidate` is called after a change.
        replica: a cheap retriever over the same nodes that guesses for an expensive one.
        max_wasted_tokens: the maximum number of tokens that the wrong guesses of one response may
            cost, by what the model reports: then its next searches are waited for. 0: no guess;
            `None`: no limit.
        max_wasted_encodings: the same for the embeddings of queries that are not part of the
            response.
        max_wasted_share: the share of discarded calls among all calls of the model, 0 to 1, in all
            queries of the engine and of its copies; with 0.1 the first call on a guess is made
            after nine others. `None`: no limit.
        max_concurrent_calls: the maximum number of the model's calls at once, in all queries of the
            engine and of its copies: others wait, and those that depend on no guess go first.
            `None`: no limit.
        batching: which batch searches are used: "exact", "probed" or "off".
        side_by_side: the maximum number of concurrent single calls of the retriever.
        pure: whether the retriever finds the same nodes for the same query; by default
            determined by its class.
        report: whether `metadata["ralmspec"]` of a response has its `Report`, in addition to
            the sources' metadata; `stats_of(response)` works in either case.
    """

    workload: WorkloadName | WorkloadMaker = "one_shot"
    direct: bool = False
    decoding: Any = None
    bound: Bound | None = None
    continuation: Continuation | None = None
    logprobs: Mapping[str, Any] | None = None
    sentence_stop: str | None = None
    max_tokens: int | None = None
    stop: str | tuple[str, ...] = ()
    seed: int = 0
    deadline_s: float | None = None
    speculate: bool = True
    guess_through: bool | None = None
    schedule: Schedule | None = None
    prefetch: int | None = None
    pool: SharedPassageCache | Literal["own"] | None = "own"
    memo: QueryCache | None = None
    replica: BaseRetriever | None = None
    max_wasted_tokens: int | None = None
    max_wasted_encodings: int | None = None
    max_wasted_share: float | None = None
    max_concurrent_calls: int | None = None
    batching: BatchMode = "exact"
    side_by_side: int = 8
    pure: bool | None = None
    report: bool = False
    one_shot: bool = field(init=False, repr=False)  # one retrieval, then the synthesizer

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            ConfigError: they are not compatible; the message says what to do.
        """
        self._check_types()
        if self.pool == "own":
            object.__setattr__(self, "pool", OwnPool())
        elif self.pool is not None and not isinstance(self.pool, SharedPassageCache):
            raise ConfigError(f"pool must be a SharedPassageCache or None, got {self.pool!r}")
        if self.guess_through is False and self.replica is not None:
            raise ConfigError(
                "a replica is used for guesses, and guess_through=False disables these: remove "
                "one of them, or set guess_through=True"
            )
        check_decoding(self.decoding, direct=self.direct)
        object.__setattr__(self, "one_shot", is_one_shot(self.workload))
        if self.one_shot:
            self._refuse_steps()
        check_reads_logprobs(self.workload, self.logprobs)

    def _check_types(self) -> None:
        """Check the types of the options, so that errors are raised before the first query.

        Raises:
            ConfigError: one has another type; the message says which.
        """
        for names, fits, what in _FITTING:
            for name in names:
                value = getattr(self, name)
                if not fits(value):
                    raise ConfigError(f"{name} must be {what}, got {value!r}")

    def _refuse_steps(self) -> None:
        """Check that no setting of writing in steps is given, since the synthesizer writes."""
        given = {
            "direct": self.direct,
            "bound": self.bound,
            "continuation": self.continuation,
            "logprobs": self.logprobs,
            "sentence_stop": self.sentence_stop,
            "max_tokens": self.max_tokens,
            "stop": self.stop,
        }
        useless = [name for name, value in given.items() if value]
        if useless:
            raise ConfigError(
                f"{', '.join(useless)} cannot be used with workload='one_shot', where the host's "
                "response synthesizer writes the whole answer: set it on the LLM itself, or use "
                "workload='sentences' or 'interval'"
            )

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        stop = self.stop
        return ((stop,) if stop else ()) if isinstance(stop, str) else tuple(stop)

    def speculation(
        self,
        *,
        guesses: bool,
        may_guess: Callable[[], bool] | None = None,
        model_queue: ModelQueue | None = None,
        waste_share: WasteShare | None = None,
    ) -> Speculation:
        """Return the settings of speculation.

        Args:
            guesses: whether the host's parts may be called with guesses.
            may_guess: returns the same at any time, also during a request.
            model_queue: in which calls of the model wait for each other.
            waste_share: the calls of all queries.
        """
        pool = self.pool if isinstance(self.pool, SharedPassageCache) else None
        return Speculation(
            speculate=self.speculate,
            schedule=self.schedule,
            prefetch=self.prefetch,
            pool=pool,
            memo=self.memo,
            side_by_side=self.side_by_side,
            calls_cost=not self.direct,
            guesses=guesses,
            may_guess=may_guess,
            max_wasted_tokens=self.max_wasted_tokens,
            max_wasted_encodings=self.max_wasted_encodings,
            max_wasted_share=waste_share,
            model_queue=model_queue,
        )


def _is_seconds(value: object) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")
    )


def _is_count(value: object) -> bool:
    return value is None or (type(value) is int and value >= 1)


def _are_texts(value: object) -> bool:
    if isinstance(value, str):
        return True
    return isinstance(value, tuple | list) and all(isinstance(one, str) and one for one in value)


def _is_bound(value: object) -> bool:
    return value is None or callable(value) or (isinstance(value, str) and value != "")


# The values that options may have, and their description.
_FITTING: Final[Sequence[tuple[Sequence[str], Callable[[Any], bool], str]]] = (
    (("max_tokens", "prefetch", "max_concurrent_calls"), _is_count, "a number of at least 1"),
    (("side_by_side",), lambda one: one is not None and _is_count(one), "a number of at least 1"),
    (("seed",), lambda one: type(one) is int, "a number"),
    (("deadline_s",), lambda one: one is None or _is_seconds(one), "a number of seconds above 0"),
    (("speculate", "direct", "report"), lambda one: isinstance(one, bool), "True or False"),
    (("guess_through", "pure"), lambda one: isinstance(one, bool | None), "True, False or None"),
    (("bound",), _is_bound, "an argument's name or a function"),
    (("sentence_stop",), lambda one: isinstance(one, str | None), "a text"),
    (("logprobs",), lambda one: isinstance(one, Mapping | None), "a call's arguments or None"),
    (("memo",), lambda one: isinstance(one, QueryCache | None), "a QueryCache or None"),
    (("stop",), _are_texts, "texts that are not empty"),
)
NAMES = frozenset(one.name for one in fields(Options) if one.init)
