"""The context of one request: its loop, and the code of its work."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

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
from ralmspec_plugins.engine.session import Session
from ralmspec_plugins.errors import Overloaded
from ralmspec_plugins.guesses import NOT_WORTH_GUESSING
from ralmspec_plugins.loop import speculate
from ralmspec_plugins.protocols import (
    Progress,
    speculative,
)
from ralmspec_plugins.speculators.cascade import SpeculatorCascade
from ralmspec_plugins.types import Answer, Query, Request

# An engine decides where and when the work runs.


_ALL = (Guessed, Judged, RolledBack, Confirmed, Commit, Settled, Failed)

HandIn: TypeAlias = Callable[[Completion | Aborted], None]  # receives completions, from any thread


class RequestContext:
    """One request: its loop, its work and its events."""

    def __init__(
        self,
        session: Session,
        request: Request,
        *,
        reports: bool = False,
        watched: bool = False,
        stoppable: bool = True,
    ) -> None:
        """Create the context; no work is started.

        Args:
            session: the engine's session.
            request: the request to answer.
            reports: whether unfinished segments are reported, for a stream.
            watched: whether all events are kept, not only the settled text.
            stoppable: whether another thread may cancel the request.
        """
        self.session = session
        self.request = request
        self.reports = reports
        self.stoppable = stoppable
        self._kept = _ALL if watched else (Settled,)
        self._events: list[Event] = []
        self.plain = session.begins_plainly()
        self.guesses = SpeculatorCascade() if self.plain else session.guesses()
        begin = session.settings.schedule.begin
        self._policy = policy = None if self.plain else begin(session.costs)
        limits = session.settings.waste_limits
        self.flow = speculate(session.parts, request, self.guesses, policy, limits)
        self.finish: Finish | None = None
        self._state: Any = None
        self._shown = 0  # characters of settled text
        self._closed = False
        self._in_caller: Progress | None = None  # of generation in the calling thread
        self._stopped = False

    @property
    def worth_guessing(self) -> bool:
        """Whether guesses pay off now, made before or after a query is encoded."""
        return self._policy is not None and self._policy.worth_guessing(early=True)

    @contextmanager
    def in_caller(self, need: Work) -> Iterator[None]:
        """Make this work one that `stop_caller` stops, while the body carries it out."""
        if isinstance(need, FormQuery | Extend):
            self._in_caller = need.progress
            if self._stopped:
                need.progress.cancel()
        try:
            yield
        finally:
            self._in_caller = None

    def stop_caller(self) -> None:
        """Stop generation in the calling thread, from another one."""
        self._stopped = True
        if (progress := self._in_caller) is not None:
            progress.cancel()

    def note(self, notice: Notice) -> None:
        """Process a notice of the loop: store events, and free memory."""
        if isinstance(notice, self._kept):
            self._events.append(notice)
        if isinstance(notice, Settled):
            self._shown = len(notice.text)
        elif isinstance(notice, Commit):
            self._state = notice.state
        elif isinstance(notice, Release):
            self.session.workload.release(notice.state)
        elif isinstance(notice, Finish):
            self.finish = notice

    def events(self) -> list[Event]:
        """Return the events since the last call."""
        events, self._events = self._events, []
        return events

    def outcome(self, wall_s: float) -> Answer | Exception:
        """Return the answer of a finished request, or its error."""
        assert self.finish is not None
        answer = self.finish.answer
        if answer is None:
            assert self.finish.error is not None
            return self.finish.error
        unguessed = answer.stats.unguessed
        if answer.stats.queries:  # else there was nothing to guess
            unguessed = self.session.unguessed or unguessed
            if self.plain:
                unguessed = unguessed or NOT_WORTH_GUESSING
            else:
                self.session.ended(unguessed, wall_s)
        if unguessed is not None:
            self.session.tell_unguessed(unguessed)
        return replace(answer, stats=replace(answer.stats, wall_s=wall_s, unguessed=unguessed))

    def answer(self, wall_s: float) -> Answer:
        """Return the answer of a finished request, or raise its error."""
        outcome = self.outcome(wall_s)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def rest(self) -> list[Event]:
        """Return the events that settle the rest of a complete answer's text."""
        answer = None if self.finish is None else self.finish.answer
        if answer is None or len(answer.text) <= self._shown:
            return []
        return [Settled(answer.text, answer.state)]

    def learn(self) -> None:
        """Hand new results to the speculators, if there are any to be learned now."""
        if self.may_learn:
            self.guesses.catch_up()

    @property
    def may_learn(self) -> bool:
        """Whether speculators should learn new results as soon as nothing else is to be done.

        Before a guess is made, they have learned all results in any case. So results are not
        learned while guesses do not pay off, nor at the end of a request that shares none; nor
        where there is something else to be done, for other requests.
        """
        if not self.guesses.is_behind or (self.finish is not None and not self.session.teaches):
            return False
        costs = self.session.costs
        if self.finish is None and (costs.store.is_crowded or not costs.load.has_room(own=1)):
            return False
        return self.worth_guessing

    def close(self) -> None:
        """End the loop, and free the memory of this request's states."""
        self.flow.close()
        self._closed = True
        self.session.costs.store.end(self)
        if self._state is not None:
            self.session.workload.release(self._state)

    def carry_out(
        self,
        need: Work,
        clock: Callable[[], float],
        complete: HandIn,
    ) -> None:
        """Run a piece of work and report its completion; errors are reported, never raised.

        Args:
            need: the work.
            clock: returns the seconds since the request began.
            complete: receives the completions.
        """
        started_s = clock()
        results: list[Any]
        token = speculative.set(speculative.get() or may_be_discarded(need))
        try:
            if isinstance(need, Search):
                results = list(self.results(need.queries, widely=need.wide))
            else:
                with self.session.on_model(need, clock) as waited:
                    if waited:
                        started_s = clock()
                    results = [self.result(need, clock, complete)]
        except Exception as error:  # noqa: BLE001 the loop decides whether it counts
            results = [Raised(error)]
        except BaseException as error:  # noqa: BLE001 raised to the request's caller
            complete(Aborted(error, need))
            return
        finally:
            speculative.reset(token)
        for done in self.completions(need, results, started_s, clock()):
            complete(done)

    def completions(
        self,
        need: Work,
        results: list[Any],
        started_s: float,
        ended_s: float,
    ) -> list[Completed]:
        """Return the completions of a piece of work; note what providers ask for in its errors."""
        completed = completions(need, results, started_s, ended_s)
        for done in completed:
            if done.error is not None:
                self.session.rate_limit.note(done.error)
        return completed

    def results(self, queries: Sequence[Query], *, widely: bool) -> list["SearchResult | Raised"]:
        """Search a batch; if that fails, search each query separately, for separate errors."""
        try:
            return list(self.session.search(queries, widely=widely))
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
        """Run a piece of work other than a search; errors are raised."""
        parts = self.session.parts
        if isinstance(need, FormQuery | Extend) and self.reports:
            need.progress.connect(lambda state: complete(PartialOutput(need, state, clock())))
        if isinstance(need, Extend):
            return parts.extend(need.state, need.hits, need.progress, need.carried)
        if isinstance(need, FormQuery):
            return parts.form(need.state, need.progress)
        if isinstance(need, Encode):
            return self.session.encode(need.query.text)
        if isinstance(need, Guess):
            return self.guesses.guess(need.speculators, need.query, need.previous)
        assert isinstance(need, Start)
        return self.begun(parts.start(need.request))

    def begun(self, state: Any) -> Any:
        """Record the first state; after the end of the request it is freed immediately."""
        self._state = state
        if self._closed:
            self.session.workload.release(state)
        else:
            self.session.costs.store.begin(self)
        return state


@dataclass(frozen=True, slots=True)
class Raised:
    """What a piece of work raised: a result may be an exception too, such as a state."""

    error: Exception


def may_be_discarded(need: Work) -> bool:
    """Return whether work makes a guess, or depends on an unverified one."""
    if isinstance(need, FormQuery | Encode | Search | Extend):
        return need.speculative
    return isinstance(need, Guess)


def completions(
    need: Work, results: list[Any], started_s: float, ended_s: float
) -> list[Completed]:
    """Return the completions of a piece of work from its results."""
    return [
        Completed(need, None, result.error, index, started_s, ended_s)
        if isinstance(result, Raised)
        else Completed(need, result, None, index, started_s, ended_s)
        for index, result in enumerate(results)
    ]
