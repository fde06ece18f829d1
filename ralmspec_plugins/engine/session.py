"""The session of an engine, shared by its requests."""

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    contextmanager,
    nullcontext,
)
from dataclasses import replace
from math import inf
from typing import Any

from ralmspec_plugins.batching.verifier import Verifier
from ralmspec_plugins.config import Settings
from ralmspec_plugins.effects import (
    Extend,
    FormQuery,
    SearchResult,
    Work,
)
from ralmspec_plugins.errors import ConfigError, Overloaded
from ralmspec_plugins.guesses import NOT_WORTH_GUESSING
from ralmspec_plugins.parts import Parts, results
from ralmspec_plugins.protocols import (
    PoolableRetriever,
    Retriever,
    Speculator,
    WideRetriever,
    Workload,
)
from ralmspec_plugins.scheduling.cost_model import Costs
from ralmspec_plugins.scheduling.dormancy import Dormancy
from ralmspec_plugins.scheduling.rate_limit import RateLimit
from ralmspec_plugins.speculators.cascade import SpeculatorCascade, usable
from ralmspec_plugins.speculators.passage_cache import (
    PassageCache,
    SharedPassageCache,
    check_k,
)
from ralmspec_plugins.speculators.ranking import SpeculatorRates
from ralmspec_plugins.speculators.repetition import Repetition
from ralmspec_plugins.types import Query, fixed

_log = logging.getLogger(__name__)


class Session:
    """The parts and caches that the requests of one engine share."""

    def __init__(
        self,
        workload: Workload[Any],
        retriever: Retriever,
        settings: Settings | None,
        clock: Callable[[], float] = time.perf_counter,
        known: "Session | None" = None,
        *,
        merged: bool = False,
        timed: bool = True,
        stop_encode_s: float = inf,
    ) -> None:
        """Check that the parts are compatible.

        Args:
            workload: the engine's workload.
            retriever: the engine's retriever.
            settings: the engine's settings.
            clock: returns the seconds by which inline guesses are timed.
            known: a session of the same model, store and speculators: what is measured there is
                known here, and the other way round.
            merged: whether searches of several requests are merged here and not there: the costs
                are then those known there at the beginning, and measured separately from then on.
            timed: whether it is measured what searches compute; not in virtual time.
            stop_encode_s: the maximum time until an encoding that is not needed has stopped.

        Raises:
            ConfigError: A shared speculator belongs to another retriever.
        """
        self.parts = Parts(workload, retriever, stop_encode_s=stop_encode_s)
        self.workload = workload
        self.retriever = retriever = self.parts.retriever
        if settings is not None and not isinstance(settings, Settings):
            raise ConfigError(f"settings must be Settings(...), or None, got {settings!r:.200}")
        self.settings = settings or Settings()
        self.costs, self.rates, self.rate_limit = Costs(), SpeculatorRates(), RateLimit()
        if known is not None:
            self.costs = known.costs.copy() if merged else known.costs
            self.rates, self.rate_limit = known.rates, known.rate_limit
        self.dormancy: Dormancy = Dormancy() if known is None or merged else known.dormancy
        self._is_timed_here = timed and self.settings.speculate
        self._is_timed = self._is_timed_here and not isinstance(retriever, Verifier)
        if timed and isinstance(retriever, Verifier) and (known is None or merged):
            self.costs.store = retriever.store_time
        self._clock = clock
        self.speculate = self.settings.speculate
        self._pure = getattr(retriever, "pure", True)
        self._process = os.getpid()
        self._told = False
        self.unguessed: str | None = None  # why no guess is ever made
        if not self.speculate:
            self.unguessed = "speculation is switched off"
        elif not self._pure:
            _log.warning("%r is not pure: its requests are answered without speculation", retriever)
            self.speculate, self._told = False, True
            self.unguessed = "the retriever is not pure"
        elif self.parts.retrieves_once and not self._shares:
            self.speculate = False
            self.unguessed = "a request that retrieves once has nothing of its own to guess from"
        self.wide = retriever if self.speculate and isinstance(retriever, WideRetriever) else None
        awide = self.speculate and hasattr(retriever, "asearch_wide")
        self._awide = retriever if awide else None
        if self.speculate:
            self._check_caches()
        self._check_speculators(self._common_speculators())

    @property
    def switch_interval_s(self) -> float | None:
        """The thread switch interval during a request; `None` for the process's own."""
        return self.settings.switch_interval_s if self.speculate else None

    def begins_plainly(self) -> bool:
        """Return whether the request that begins now is answered as by the plain loop."""
        return not self.speculate or self.dormancy.begins()

    def ended(self, unguessed: str | None, wall_s: float) -> None:
        """Record how a request ended that was not answered plainly.

        Args:
            unguessed: why no segment was started on a guess; `None` if one was.
            wall_s: its seconds.
        """
        knows = self.settings.memo is not None  # a memo saves searches without any guess
        paid = unguessed != NOT_WORTH_GUESSING or knows or not self.costs.store.computes_here
        self.dormancy.ended(paid=paid, wall_s=wall_s)

    def check_process(self) -> None:
        """Check that the process was not forked: the child process has none of the threads.

        Raises:
            ConfigError: The process was forked since this was made.
        """
        if os.getpid() != self._process:
            raise ConfigError(
                "this engine was created before the process forked, and its threads do not exist "
                "here; create an engine in each worker process"
            )

    def for_batch(self) -> "Session":
        """Return the session of concurrent requests, with one verifier and one passage cache.

        An opaque retriever may answer each request for another user, so its requests
        have separate passage caches. A query cache is shared only if the caller passed one, since
        only the caller knows that the index does not change. Impure retrievers are not merged.
        """
        settings, retriever = self.settings, self.retriever
        if not self._pure:
            return self
        own = settings.speculators is None and settings.pool is None
        if own and isinstance(retriever, PoolableRetriever):
            pool = SharedPassageCache(capacity=settings.capacity, eviction=settings.eviction)
            settings = replace(settings, pool=pool)
        if not isinstance(retriever, Verifier):
            retriever = Verifier(retriever, lanes=getattr(settings.schedule, "lanes", 1))
        return Session(
            self.workload,
            retriever,
            settings,
            clock=self._clock,
            known=self,
            merged=True,
            stop_encode_s=self.parts.stop_encode_s,
        )

    @contextmanager
    def on_model(self, need: Work, clock: Callable[[], float]) -> Iterator[bool]:
        """Count and time the body's work if it is the model's, when it is its turn.

        Yields:
            Whether it may have waited.
        """
        queue = self.settings.model_queue
        if queue is None or not isinstance(need, FormQuery | Extend):
            with self.segment(need, clock):
                yield False
            return
        turn = queue.turn(need.progress, speculative=need.speculative)
        with turn, self.segment(need, clock):
            yield True

    def aturn(self, need: Work) -> AbstractAsyncContextManager[None] | None:
        """Return what waits for the turn of work on an event loop; `None` if it need not wait."""
        queue = self.settings.model_queue
        if queue is None or not isinstance(need, FormQuery | Extend):
            return None
        return queue.aturn(need.progress, speculative=need.speculative)

    def segment(self, need: Work, clock: Callable[[], float]) -> AbstractContextManager[None]:
        """Count and time the body's work if it is the model's."""
        writes = isinstance(need, FormQuery | Extend)
        return self.costs.load.segment(clock) if writes else nullcontext()

    def guesses(self) -> SpeculatorCascade:
        """Return a new cascade of query caches and speculators for one request."""
        speculators = self.settings.speculators
        if speculators is None:
            speculators = self._own_speculators()
        elif callable(speculators):
            speculators = usable(speculators())
            self._check_speculators(speculators)
        return SpeculatorCascade(
            speculators,
            memo=self.settings.memo,
            signature=self.retriever.signature,
            signature_now=(lambda: self.retriever.signature) if self._shares else None,
            may_guess=self.settings.may_guess,
            rate_limit=self.rate_limit,
            clock=self._clock,
            rates=self.rates,
        )

    def invalidate(self) -> None:
        """Discard the results of this retriever that later requests would reuse.

        A function that creates speculators for each request is called, since the
        speculators that it returns may be shared.
        """
        settings, signature = self.settings, self.retriever.signature
        if settings.memo is not None:
            settings.memo.invalidate(signature)
        if settings.pool is not None:
            settings.pool.invalidate(signature)
        speculators = settings.speculators
        for speculator in speculators() if callable(speculators) else speculators or ():
            if hasattr(speculator, "invalidate"):
                speculator.invalidate()

    @property
    def teaches(self) -> bool:
        """Whether a request's speculators serve others, too; a function may return shared ones."""
        settings = self.settings
        return settings.pool is not None or settings.speculators is not None

    @property
    def _shares(self) -> bool:
        """Whether requests may share results; a function may return shared speculators."""
        return self.teaches or self.settings.memo is not None

    def _common_speculators(self) -> Sequence[Speculator]:
        """Return the speculators that all requests share."""
        speculators = self.settings.speculators
        return () if speculators is None or callable(speculators) else speculators

    def _check_caches(self) -> None:
        signature = self.retriever.signature
        if self.settings.speculators is None:
            check_k(getattr(self.retriever, "k", None))
        try:
            hash(signature if self._shares else None)
        except TypeError:
            raise ConfigError(
                f"a retriever's signature must be hashable to share results, got {signature!r}"
            ) from None

    def _check_speculators(self, speculators: Sequence[Speculator]) -> None:
        ours = self.retriever.signature
        for speculator in speculators:
            try:
                signature = getattr(speculator, "signature", ours)
                differs = bool(signature != ours)
            except Exception:  # noqa: BLE001 the plain loop does not read it; guesses are verified
                _log.warning("the signature of %r is unknown", speculator, exc_info=True)
                continue
            if differs:
                raise ConfigError(
                    f"{speculator!r} was made for the retriever {signature!r}, "
                    f"but this engine's is {ours!r}: make one for each"
                )

    def tell_unguessed(self, why: str) -> None:
        """Log once why no guess was made."""
        if not self._told:
            self._told = True
            _log.info("%r: no guess is made: %s", self.retriever, why)

    def _own_speculators(self) -> Sequence[Speculator]:
        """Return a passage cache, and what guesses while a query is being encoded, if it is."""
        settings, retriever = self.settings, self.retriever
        pool = (
            PassageCache(retriever, capacity=settings.capacity, eviction=settings.eviction)
            if settings.pool is None
            else settings.pool.of(retriever)
        )
        if self.parts.inline_encode or self.workload.reads_scores or pool.by_text:
            return (pool,)
        return Repetition(unless=lambda: self.costs.encoder.computes_here), pool

    def search(self, queries: Sequence[Query], *, widely: bool = True) -> list[SearchResult]:
        """Search one batch; `widely`, with prefetched hits if the ranking is the same."""
        wide = self.wide
        if wide is None or not widely:
            with self._timed():
                return _found(self.retriever.search(queries), queries)
        try:
            with self._timed():
                found = wide.search_wide(queries, self.settings.width(wide.k))
            return _found(found, queries, wide.k)
        except Overloaded:  # independent of the width
            raise
        except Exception as error:  # noqa: BLE001 only what the plain search does counts
            return self._narrow(queries, error)

    def encode(self, text: str) -> Query:
        """Encode one query in this thread."""
        with self.costs.encoder.in_thread() if self._is_timed_here else nullcontext():
            return self.parts.encode(text)

    async def aencode(self, text: str) -> Query:
        """Encode one query with an asynchronous retriever."""
        with self.costs.encoder.awaited() if self._is_timed_here else nullcontext():
            return await self.parts.aencode(text)

    def _timed(self) -> AbstractContextManager[None]:
        """Time a search in this thread; a verifier times its own, in the threads of its lanes."""
        return self.costs.store.search() if self._is_timed else nullcontext()

    def _narrow(self, queries: Sequence[Query], error: Exception) -> list[SearchResult]:
        """Search without prefetching; if only this succeeds, later searches do the same."""
        found = _found(self.retriever.search(queries), queries)
        self._complain(error)
        self.wide = None
        return found

    def _complain(self, error: Exception) -> None:
        _log.warning("%r cannot be searched wider: %s", self.retriever, error)

    async def asearch(self, queries: Sequence[Query], *, widely: bool = True) -> list[SearchResult]:
        """Search one batch with an asynchronous retriever."""
        if self._is_timed_here:
            self.costs.store.awaited()
        wide: Any = self._awide
        plainly: Any = self.retriever
        if wide is None or not widely:
            return _found(await plainly.asearch(queries), queries)
        try:
            found = await wide.asearch_wide(queries, self.settings.width(wide.k))
            return _found(found, queries, wide.k)
        except Overloaded:
            raise
        except Exception as error:  # noqa: BLE001 only what the plain search does counts
            narrow = _found(await plainly.asearch(queries), queries)
            self._complain(error)
            self._awide = None
            return narrow


def _found(found: Any, queries: Sequence[Query], k: int | None = None) -> list[SearchResult]:
    """Return the results of a search of width k or more."""
    if k is None:
        return [SearchResult(hits, hits) for hits in results(found, queries)]
    return [SearchResult(fixed(hits[:k]), hits) for hits in results(found, queries)]
