"""One request being answered: its loop, and the code that carries out what the loop needs.

What the engines share. An engine decides where and when the work is done.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from ralmspec_plugins.errors import Overloaded
from ralmspec_plugins.events import (
    Commit,
    Confirmed,
    Event,
    Failed,
    Guessed,
    Judged,
    RolledBack,
    Settled,
)
from ralmspec_plugins.loop import speculate
from ralmspec_plugins.needs import (
    Ask,
    Broken,
    Completion,
    Done,
    Extend,
    Finish,
    Found,
    Guess,
    Notice,
    Release,
    Reported,
    Search,
    Start,
    Work,
)
from ralmspec_plugins.plain import formed
from ralmspec_plugins.records import Answer, Query, Request
from ralmspec_plugins.setups import Setup

_ALL = (Guessed, Judged, RolledBack, Confirmed, Commit, Settled, Failed)

HandIn: TypeAlias = Callable[[Completion | Broken], None]  # takes what comes, from any thread


def _never_busy() -> float:
    return 0.0


class Job:
    """One request being answered: the loop, and what it needs to have done."""

    def __init__(
        self,
        setup: Setup,
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
        self.flow = speculate(setup.workload, request, setup.retriever, self.guesses, policy)
        self.finish: Finish | None = None
        self._state: Any = None
        self._closed = False

    def note(self, notice: Notice) -> None:
        """Keep up with the loop, and free memory where it asks for it."""
        if isinstance(notice, self._kept):
            self._events.append(notice)
        if isinstance(notice, Commit):
            self._state = notice.state
        elif isinstance(notice, Release):
            self.setup.workload.release(notice.state)
        elif isinstance(notice, Finish):
            self.finish = notice

    def events(self) -> list[Event]:
        """Take what has happened since this was last asked."""
        events, self._events = self._events, []
        return events

    def answer(self, wall_s: float) -> Answer:
        """Give the answer of a finished request, or raise what it came to."""
        assert self.finish is not None
        if self.finish.error is not None:
            raise self.finish.error
        assert self.finish.answer is not None
        answer = self.finish.answer
        return replace(answer, stats=replace(answer.stats, wall_s=wall_s))

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
        try:
            if isinstance(need, Search):
                results = list(self.results(need.queries, widely=need.wide))
            else:
                results = [self.result(need, clock, complete)]
        except Exception as error:  # noqa: BLE001 the loop decides whether it counts
            results = [error]
        except BaseException as error:  # noqa: BLE001 raised where the request is waited for
            complete(Broken(error, need))
            return
        for done in completions(need, results, started_s, clock(), busy() - before_s):
            complete(done)

    def results(self, queries: Sequence[Query], *, widely: bool) -> list[Found | Exception]:
        """Search a batch; if that fails, each query singly, so that errors are each one's own."""
        try:
            return list(self.setup.search(queries, widely=widely))
        except Exception as error:  # noqa: BLE001 the loop decides whether it counts
            if len(queries) == 1 or isinstance(error, Overloaded):
                return [error] * len(queries)
        return [self.results([query], widely=widely)[0] for query in queries]

    def result(
        self,
        need: Work,
        clock: Callable[[], float],
        complete: HandIn,
    ) -> Any:
        """Do a piece of work other than a search; what it raises is raised."""
        workload = self.setup.workload
        if isinstance(need, Extend):
            if self.reports:
                need.progress.connect(lambda state: complete(Reported(need, state, clock())))
            return workload.extend(need.state, need.hits, need.progress)
        if isinstance(need, Ask):
            return formed(workload, self.setup.retriever, need.state)
        if isinstance(need, Guess):
            return self.guesses.slow_guess(need.query)
        assert isinstance(need, Start)
        return self.begun(workload.start(need.request))

    def begun(self, state: Any) -> Any:
        """Note the first state; one that comes when nobody waits any more is freed at once."""
        self._state = state
        if self._closed:
            self.setup.workload.release(state)
        return state


def completions(
    need: Work, results: list[Any], started_s: float, ended_s: float, busy_s: float = 0.0
) -> list[Done]:
    """Turn the results of a piece of work into its completions."""
    return [
        Done(need, None, result, index, started_s, ended_s, busy_s)
        if isinstance(result, Exception)
        else Done(need, result, None, index, started_s, ended_s, busy_s)
        for index, result in enumerate(results)
    ]


def as_request(request: Request | str) -> Request:
    """Take a prompt for a request with default settings."""
    return Request(prompt=request) if isinstance(request, str) else request
