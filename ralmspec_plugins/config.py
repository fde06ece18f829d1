"""The settings of an engine."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

from ralmspec_plugins.arguments import suggests_fields
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.protocols import Speculator
from ralmspec_plugins.scheduling.model_queue import ModelQueue
from ralmspec_plugins.scheduling.schedules import Continuous, Schedule
from ralmspec_plugins.speculators.cascade import usable
from ralmspec_plugins.speculators.passage_cache import SharedPassageCache, eviction_of
from ralmspec_plugins.speculators.query_cache import QueryCache
from ralmspec_plugins.waste import WasteLimits, WasteShare


@suggests_fields
@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How an engine speculates. The defaults suit a local retriever.

    Without `speculators`, each request has its own passage cache, ranked by the
    retriever's own table if it has one, else by the vectors of earlier queries or by words;
    with `pool`, all requests share that cache, which is partitioned by retriever. While a
    query is being encoded in a worker, what the step before was given is guessed (`Repetition`);
    a guess of the cache replaces it if that is expected to save time. Any number
    of speculators can be given instead: they are called in order, the first guess is
    used, and all of them learn. Those given here are shared by all requests; a function
    that makes them is called once for each request.

    `switch_interval_s` sets `sys.setswitchinterval` while a request runs speculatively. That
    setting applies to the whole process, so by default it is not changed; 0.0005 helps where
    the store runs in another process, and `ralmspec diagnose` measures whether it does.

    `may_guess` is called before each speculative segment: while it returns False, no segment
    is started on a guess. Searches, and the reuse of their results, are not affected. It must
    return quickly, and is called from any thread.

    `max_wasted_tokens` and `max_wasted_encodings` bound what the wrong guesses of one request may
    cost. All that depends on a guess counts as wasted until it is verified; when a bound is
    reached, nothing is started on a guess, and `Stats.limited_by` names the bound. Encodings do
    not exceed theirs; tokens exceed theirs by at most one call of the model, which is charged
    with what it may generate until its model reports its tokens.

    `model_queue` is for a model that answers few calls at once, such as a local one, or a server
    with a limit: calls wait in it, and those that depend on no guess go first, whichever
    request they are of. All engines that use the model can be given the same queue.

    Attributes:
        schedule: how far to speculate, and when to search, such as `Continuous(lanes=4)`.
        prefetch: the number of hits that a verification adds to the cache; `None`: max(20, 20 k).
        capacity: passages in a request's own passage cache.
        eviction: what leaves a full one: "lru", "lfu" or "fifo".
        pool: a passage cache that all requests share, with a capacity and eviction of its own.
        speculators: guess in place of the passage cache and of `Repetition`.
        memo: a query cache across requests: only where the index does not change.
        speculate: `False`: the plain loop.
        switch_interval_s: seconds, while running speculatively; `None`: Python's own, 5 ms.
        may_guess: asked before each speculative segment; `None`: always.
        max_wasted_tokens: tokens of discarded calls of a request; 0: no guess. `None`: no bound.
        max_wasted_encodings: encodings of discarded queries of a request, where the retriever
            encodes in a worker; 0: no guess. `None`: no bound.
        max_wasted_share: the share of discarded calls among all calls of the model, 0 to 1, in all
            requests of the engines with these settings; a `WasteShare` counts for the engines
            of several settings. `None`: no bound.
        model_queue: bounds the calls of the model at once; `None`: no bound.
    """

    schedule: Schedule = field(default_factory=Continuous)
    prefetch: int | None = None
    capacity: int = 1000
    eviction: str = "lru"
    pool: SharedPassageCache | None = None
    speculators: Sequence[Speculator] | Callable[[], Sequence[Speculator]] | None = None
    memo: QueryCache | None = None
    speculate: bool = True
    switch_interval_s: float | None = None
    may_guess: Callable[[], bool] | None = None
    max_wasted_tokens: int | None = None
    max_wasted_encodings: int | None = None
    max_wasted_share: WasteShare | float | None = None
    model_queue: ModelQueue | None = None

    def __post_init__(self) -> None:
        """Check the settings."""
        numbers: dict[str, Any] = {"prefetch": self.prefetch, "capacity": self.capacity}
        for name, value in numbers.items():
            if value is not None and not (isinstance(value, Integral) and int(value) >= 1):
                raise ConfigError(f"{name} must be a whole number of at least 1, got {value!r}")
        if not isinstance(self.speculate, bool):
            raise ConfigError(f"speculate must be True or False, got {self.speculate!r}")
        share = self.max_wasted_share
        if share is not None and not isinstance(share, WasteShare):
            object.__setattr__(self, "max_wasted_share", WasteShare(share))
        _ = self.waste_limits  # raises errors early
        eviction_of(self.eviction)
        if self.switch_interval_s is not None and not self.switch_interval_s > 0:
            raise ConfigError(
                f"switch_interval_s must be above 0, or None, got {self.switch_interval_s}"
            )
        if self.pool is not None and self.speculators is not None:
            raise ConfigError(
                "pool and speculators were both given; put pool.of(retriever) among the speculators"
            )
        if not _offers(self.schedule, "begin"):
            raise ConfigError(
                "schedule must be FixedStride(...), OptimalStride(...) or Continuous(...), "
                f"got {self.schedule!r}"
            )
        self._check_caches()
        if self.speculators is not None and not callable(self.speculators):
            object.__setattr__(self, "speculators", usable(self.speculators))

    def _check_caches(self) -> None:
        if self.pool is not None and not _offers(self.pool, "of"):
            raise ConfigError(f"pool must be a SharedPassageCache(...), got {self.pool!r}")
        if self.memo is not None and not _offers(self.memo, "known"):
            raise ConfigError(f"memo must be a QueryCache(...), got {self.memo!r}")
        if self.model_queue is not None and not isinstance(self.model_queue, ModelQueue):
            raise ConfigError(f"model_queue must be a ModelQueue(...), got {self.model_queue!r}")
        if self.may_guess is not None and not callable(self.may_guess):
            raise ConfigError(f"may_guess must be a function, or None, got {self.may_guess!r}")

    @property
    def waste_limits(self) -> WasteLimits:
        """The bounds on what wrong guesses may cost."""
        share = self.max_wasted_share
        assert share is None or isinstance(share, WasteShare)
        return WasteLimits(
            max_wasted_tokens=self.max_wasted_tokens,
            max_wasted_encodings=self.max_wasted_encodings,
            max_wasted_share=share,
        )

    def width(self, k: int) -> int:
        """Return the number of hits that a verification asks a retriever of this k for."""
        return max(k, 20 * k if self.prefetch is None else self.prefetch)


def _offers(part: object, name: str) -> bool:
    return not isinstance(part, type) and callable(getattr(part, name, None))
