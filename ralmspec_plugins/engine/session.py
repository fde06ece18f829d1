"""What the requests of one engine have in common: parts that fit each other, and what is shared."""

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from ralmspec_plugins.batching.verifier import Verifier
from ralmspec_plugins.config import Settings
from ralmspec_plugins.effects import (
    Aborted,
    Commit,
    Completed,
    Completion,
    Confirmed,
    Encode,
    Event,
    Extend,
    Failed,
    Finish,
    FormQuery,
    Guess,
    Guessed,
    Judged,
    Notice,
    PartialOutput,
    Release,
    RolledBack,
    Search,
    SearchResult,
    Settled,
    Start,
    Work,
)
from ralmspec_plugins.errors import ConfigError, Overloaded
from ralmspec_plugins.loop import speculate
from ralmspec_plugins.parts import Parts, results
from ralmspec_plugins.protocols import (
    PoolableRetriever,
    Retriever,
    Speculator,
    WideRetriever,
    Workload,
    speculative,
)
from ralmspec_plugins.scheduling.cost_model import Costs
from ralmspec_plugins.speculators.cascade import SpeculatorCascade
from ralmspec_plugins.speculators.passage_cache import PassageCache, SharedPassageCache
from ralmspec_plugins.types import Answer, Query, Request, fixed

_log = logging.getLogger(__name__)


class Session:
    """What the requests of one engine have in common."""

    def __init__(
        self,
        workload: Workload[Any],
        retriever: Retriever,
        settings: Settings | None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Check that the parts fit each other.

        Args:
            workload: what is written.
            retriever: what is searched.
            settings: how.
            clock: gives the seconds that guesses inside the loop are timed with.

        Raises:
            ConfigError: A shared speculator belongs to another retriever.
        """
        self.parts = Parts(workload, retriever)
        self.workload = workload
        self.retriever = retriever = self.parts.retriever
        self.settings = settings or Settings()
        self.costs = Costs()
        self._clock = clock
        self.speculate = self.settings.speculate
        self._pure = getattr(retriever, "pure", True)
        self._process = os.getpid()
        self._told = False
        self.unguessed: str | None = None  # why nothing is ever guessed
        if not self.speculate:
            self.unguessed = "speculation is switched off"
        elif not self._pure:
            _log.warning("%r is not pure: its requests are answered plainly", retriever)
            self.speculate, self._told = False, True
            self.unguessed = "the retriever is not pure"
        self.wide = retriever if self.speculate and isinstance(retriever, WideRetriever) else None
        awide = self.speculate and hasattr(retriever, "asearch_wide")
        self._awide = retriever if awide else None
        self._check_speculators(self._common_speculators())

    @property
    def switch_interval_s(self) -> float | None:
        """How often threads take turns while a request is answered; `None` leaves it be."""
        return self.settings.switch_interval_s if self.speculate else None

    def check_process(self) -> None:
        """Refuse to go on in a forked process: it has none of the threads.

        Raises:
            ConfigError: The process was forked since this was made.
        """
        if os.getpid() != self._process:
            raise ConfigError(
                "this engine was made before the process forked, and its threads are not here; "
                "make an engine in each worker process"
            )

    def for_batch(self) -> "Session":
        """Make the setup of requests that are answered at once: one verifier and one pool.

        An opaque retriever may answer each request in the name of another user, so its requests
        keep passage caches of their own. A memo is shared only where the caller gave one, who
        alone knows that the index does not change. What is not pure is not merged either.
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
        return Session(self.workload, retriever, settings, clock=self._clock)

    def guesses(self) -> SpeculatorCascade:
        """Make what one request knows and guesses with."""
        if not self.speculate:
            return SpeculatorCascade()
        speculators = self.settings.speculators
        if speculators is None:
            speculators = self._own_pool()
        elif callable(speculators):
            speculators = speculators()
            self._check_speculators(speculators)
        return SpeculatorCascade(
            speculators,
            memo=self.settings.memo,
            signature=self.retriever.signature,
            signature_now=(lambda: self.retriever.signature) if self._shares else None,
            may_guess=self.settings.may_guess,
            clock=self._clock,
        )

    def invalidate(self) -> None:
        """Forget what requests have found with this retriever and later ones would use.

        A function that makes speculators for each request is asked for some, since those
        that it gives may be shared nevertheless.
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
    def _shares(self) -> bool:
        """Whether what a request finds may be remembered for others; a function may give shared."""
        settings = self.settings
        shared = (settings.memo, settings.pool, settings.speculators)
        return any(one is not None for one in shared)

    def _common_speculators(self) -> Sequence[Speculator]:
        """Give those that all requests share."""
        speculators = self.settings.speculators
        return () if speculators is None or callable(speculators) else speculators

    def _check_speculators(self, speculators: Sequence[Speculator]) -> None:
        ours = self.retriever.signature
        for speculator in speculators:
            signature = getattr(speculator, "signature", ours)
            if signature != ours:
                raise ConfigError(
                    f"{speculator!r} was made for the retriever {signature!r}, "
                    f"but this engine's is {ours!r}: make one for each"
                )

    def tell_unguessed(self, why: str) -> None:
        """Log once why nothing was guessed."""
        if not self._told:
            self._told = True
            _log.info("%r: nothing is guessed: %s", self.retriever, why)

    def _own_pool(self) -> Sequence[Speculator]:
        settings = self.settings
        if settings.pool is not None:
            return (settings.pool.of(self.retriever),)
        pool = PassageCache(self.retriever, capacity=settings.capacity, eviction=settings.eviction)
        return (pool,)

    def search(self, queries: Sequence[Query], *, widely: bool = True) -> list[SearchResult]:
        """Search one batch; `widely`, more than is verified where that is the same ranking."""
        wide = self.wide
        if wide is None or not widely:
            return _found(self.retriever.search(queries), queries)
        try:
            return _found(wide.search_wide(queries, self.settings.width(wide.k)), queries, wide.k)
        except Overloaded:  # says nothing about wide searches
            raise
        except Exception as error:  # noqa: BLE001 only what the plain search does counts
            return self._narrow(queries, error)

    def _narrow(self, queries: Sequence[Query], error: Exception) -> list[SearchResult]:
        """Search as wide as is verified; if only that works, it is searched so from now on."""
        found = _found(self.retriever.search(queries), queries)
        self._complain(error)
        self.wide = None
        return found

    def _complain(self, error: Exception) -> None:
        _log.warning("%r cannot be searched wider: %s", self.retriever, error)

    async def asearch(self, queries: Sequence[Query], *, widely: bool = True) -> list[SearchResult]:
        """Do the same with a retriever that is asynchronous."""
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
    """Return the results of a search that was wider than k, or just as wide."""
    if k is None:
        return [SearchResult(hits, hits) for hits in results(found, queries)]
    return [SearchResult(fixed(hits[:k]), hits) for hits in results(found, queries)]


# One request being answered: its loop, and the code that carries out what the loop needs.
#
# What the engines share. An engine decides where and when the work is done.


_ALL = (Guessed, Judged, RolledBack, Confirmed, Commit, Settled, Failed)

HandIn: TypeAlias = Callable[[Completion | Aborted], None]  # takes what comes, from any thread


def _never_busy() -> float:
    return 0.0


class RequestContext:
    """One request being answered: the loop, and what it needs to have done."""

    def __init__(
        self,
        setup: Session,
        request: Request,
        *,
        reports: bool = False,
        watched: bool = False,
        stoppable: bool = True,
    ) -> None:
        """Begin nothing yet.

        Args:
            setup: what the engine's requests have in common.
            request: what is to be answered.
            reports: whether unfinished segments are handed in too, for a stream.
            watched: whether all events are kept, not only the settled text.
            stoppable: whether another thread may give it up at any moment.
        """
        self.setup = setup
        self.request = request
        self.reports = reports
        self.stoppable = stoppable
        self._kept = _ALL if watched else (Settled,)
        self._events: list[Event] = []
        self.guesses = setup.guesses()
        policy = setup.settings.schedule.begin(setup.costs) if setup.speculate else None
        self.flow = speculate(setup.parts, request, self.guesses, policy)
        self.finish: Finish | None = None
        self._state: Any = None
        self._shown = 0  # characters of settled text
        self._closed = False

    def note(self, notice: Notice) -> None:
        """Keep up with the loop, and free memory where it asks for it."""
        if isinstance(notice, self._kept):
            self._events.append(notice)
        if isinstance(notice, Settled):
            self._shown = len(notice.text)
        elif isinstance(notice, Commit):
            self._state = notice.state
        elif isinstance(notice, Release):
            self.setup.workload.release(notice.state)
        elif isinstance(notice, Finish):
            self.finish = notice

    def events(self) -> list[Event]:
        """Take what has happened since this was last asked."""
        events, self._events = self._events, []
        return events

    def outcome(self, wall_s: float) -> Answer | Exception:
        """Return the answer of a finished request, or the error that it came to."""
        assert self.finish is not None
        answer = self.finish.answer
        if answer is None:
            assert self.finish.error is not None
            return self.finish.error
        unguessed = self.setup.unguessed or answer.stats.unguessed
        if unguessed is not None:
            self.setup.tell_unguessed(unguessed)
        return replace(answer, stats=replace(answer.stats, wall_s=wall_s, unguessed=unguessed))

    def answer(self, wall_s: float) -> Answer:
        """Return the answer of a finished request, or raise what it came to."""
        outcome = self.outcome(wall_s)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def rest(self) -> list[Event]:
        """Settle what is left of a complete answer's text."""
        answer = None if self.finish is None else self.finish.answer
        if answer is None or len(answer.text) <= self._shown:
            return []
        return [Settled(answer.text, answer.state)]

    def close(self) -> None:
        """End the loop, and free what is kept for this request's states."""
        self.flow.close()
        self._closed = True
        if self._state is not None:
            self.setup.workload.release(self._state)

    def carry_out(
        self,
        need: Work,
        clock: Callable[[], float],
        complete: HandIn,
        busy: Callable[[], float] = _never_busy,
    ) -> None:
        """Do a piece of work and hand in its completion; errors are handed in, never raised.

        Args:
            need: the work.
            clock: gives the seconds since the request began.
            complete: takes the completions.
            busy: gives the seconds that this process has computed.
        """
        started_s, before_s = clock(), busy()
        results: list[Any]
        token = speculative.set(speculative.get() or may_be_discarded(need))
        try:
            if isinstance(need, Search):
                results = list(self.results(need.queries, widely=need.wide))
            else:
                results = [self.result(need, clock, complete)]
        except Exception as error:  # noqa: BLE001 the loop decides whether it counts
            results = [Raised(error)]
        except BaseException as error:  # noqa: BLE001 raised where the request is waited for
            complete(Aborted(error, need))
            return
        finally:
            speculative.reset(token)
        for done in completions(need, results, started_s, clock(), busy() - before_s):
            complete(done)

    def results(self, queries: Sequence[Query], *, widely: bool) -> list["SearchResult | Raised"]:
        """Search a batch; if that fails, each query singly, so that errors are each one's own."""
        try:
            return list(self.setup.search(queries, widely=widely))
        except Exception as error:  # noqa: BLE001 the loop decides whether it counts
            if len(queries) == 1 or isinstance(error, Overloaded):
                return [Raised(error)] * len(queries)
        return [self.results([query], widely=widely)[0] for query in queries]

    def result(
        self,
        need: Work,
        clock: Callable[[], float],
        complete: HandIn,
    ) -> Any:
        """Do a piece of work other than a search; what it raises is raised."""
        parts = self.setup.parts
        if isinstance(need, FormQuery | Extend) and self.reports:
            need.progress.connect(lambda state: complete(PartialOutput(need, state, clock())))
        if isinstance(need, Extend):
            return parts.extend(need.state, need.hits, need.progress, need.carried)
        if isinstance(need, FormQuery):
            return parts.form(need.state, need.progress)
        if isinstance(need, Encode):
            return parts.encode(need.query.text)
        if isinstance(need, Guess):
            return self.guesses.guess_async(need.query, encoded=need.encoded)
        assert isinstance(need, Start)
        return self.begun(parts.workload.start(need.request))

    def begun(self, state: Any) -> Any:
        """Note the first state; one that comes when nobody waits any more is freed at once."""
        self._state = state
        if self._closed:
            self.setup.workload.release(state)
        return state


@dataclass(frozen=True, slots=True)
class Raised:
    """What a piece of work raised: a result may be an exception too, such as a state."""

    error: Exception


def may_be_discarded(need: Work) -> bool:
    """Return whether work makes a guess, or stands behind one that no search has confirmed."""
    if isinstance(need, FormQuery | Encode | Search | Extend):
        return need.speculative
    return isinstance(need, Guess)


def completions(
    need: Work, results: list[Any], started_s: float, ended_s: float, busy_s: float = 0.0
) -> list[Completed]:
    """Turn the results of a piece of work into its completions."""
    return [
        Completed(need, None, result.error, index, started_s, ended_s, busy_s)
        if isinstance(result, Raised)
        else Completed(need, result, None, index, started_s, ended_s, busy_s)
        for index, result in enumerate(results)
    ]


def as_request(request: Request | str) -> Request:
    """Take a prompt for a request with default settings."""
    return Request(prompt=request) if isinstance(request, str) else request
