"""The engine in virtual time: the same loop, given latencies, deterministic."""

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ralmspec_plugins.config import Settings
from ralmspec_plugins.effects import (
    Aborted,
    Cancel,
    Completed,
    Completion,
    Encode,
    Extend,
    FormQuery,
    Guess,
    Need,
    Search,
    Work,
)
from ralmspec_plugins.engine.session import RequestContext, Session, as_request
from ralmspec_plugins.errors import Cancelled, ConfigError
from ralmspec_plugins.protocols import Retriever, Workload
from ralmspec_plugins.types import Answer, Request

# How long each kind of work takes in virtual time.


WorkT = TypeVar("WorkT", FormQuery, Encode, Extend, Guess)


@dataclass(frozen=True, slots=True, kw_only=True)
class Latencies:
    """How long each kind of work takes, in seconds of virtual time.

    Where one piece of work takes longer than another of its kind (a segment on another
    passage begins with a prefill), a function gives the seconds: it is shown the work,
    and so the state that it starts from.
    """

    extend_s: float | Callable[[Extend], float] = 1.0
    search_s: Callable[[int], float] = lambda _: 1.0  # b(n), by the size of the batch
    ask_s: float | Callable[[FormQuery], float] = 0.0
    encode_s: float | Callable[[Encode], float] = 0.0
    guess_s: float | Callable[[Guess], float] = 0.0
    overhead_s: float = 0.0  # what the engine itself takes to hand out a piece of work
    stop_s: float = 0.0  # until a segment that is told to stop has stopped, at most
    contention: float = 0.0  # 0: searching and writing take nothing from each other; 1: each
    # takes twice as long while the other goes on, as on one machine that either of them fills
    search_contention: float | None = None  # of the searches, where it differs from the writing's

    def __post_init__(self) -> None:
        """Refuse times without a meaning."""
        given = {
            "contention": self.contention,
            "search_contention": self.slows_searches,
            "overhead_s": self.overhead_s,
            "stop_s": self.stop_s,
        }
        for name, value in given.items():
            if not value >= 0:
                raise ConfigError(f"{name} must be at least 0, got {value}")

    @property
    def slows_searches(self) -> float:
        """How much longer a search takes while something is written."""
        return self.contention if self.search_contention is None else self.search_contention

    def of(self, need: Work) -> float:
        """Return the duration of one piece of work that has the machine to itself."""
        if isinstance(need, Search):
            return self.overhead_s + self.search_s(len(need.queries))
        if isinstance(need, Extend):
            return self.overhead_s + _seconds(self.extend_s, need)
        if isinstance(need, FormQuery):
            return self.overhead_s + _seconds(self.ask_s, need)
        if isinstance(need, Encode):
            return self.overhead_s + _seconds(self.encode_s, need)
        if isinstance(need, Guess):
            return self.overhead_s + _seconds(self.guess_s, need)
        return 0.0


def _seconds(given: float | Callable[[WorkT], float], need: WorkT) -> float:
    return given(need) if callable(given) else given


class Simulation:
    """Answers requests in virtual time: real results, given durations.

    Searches run side by side as the schedule sends them, the model writes one
    segment or query at a time, and one that is cancelled stops within `stop_s`. Encodings take
    turns in as many lanes as the retriever has for them. With
    `contention`, searches and the model's work slow each other down. What is done inside the
    loop takes no time. Times in the answer's statistics are simulated.
    """

    def __init__(
        self,
        workload: Workload[Any],
        retriever: Retriever,
        latencies: Latencies,
        settings: Settings | None = None,
    ) -> None:
        """Put a workload in front of a retriever, both real, with these latencies."""
        self._setup = Session(workload, retriever, settings, clock=lambda: 0.0)
        self._latencies = latencies

    def run(self, request: Request | str) -> Answer:
        """Answer a request.

        Raises:
            Exception: What the plain loop would have raised.
        """
        wanted = as_request(request)
        job = RequestContext(self._setup, wanted)
        clock = _VirtualTime(job, self._latencies)
        try:
            needs = next(job.flow)
            while True:
                for need in needs:
                    clock.see_to(need)
                if job.finish is not None:
                    return job.answer(clock.now_s)
                completion = clock.next_completion()
                wanted.check_deadline(clock.now_s)
                needs = job.flow.send(completion)
        finally:
            job.close()


class _VirtualTime:
    """The work that is out, by the virtual time at which it will be done."""

    def __init__(self, job: RequestContext, latencies: Latencies) -> None:
        self._job = job
        self._latencies = latencies
        self.now_s = 0.0
        self._due: list[tuple[float, int, Completed]] = []
        self._order = itertools.count()
        self._both = False  # whether a search and something else are going on
        self._slower = 1.0 + latencies.contention, 1.0 + latencies.slows_searches

    def see_to(self, need: Need) -> None:
        if isinstance(need, Work):
            self._start(need)
        elif isinstance(need, Cancel):
            self._cancel(need.need)
        else:
            self._job.note(need)

    def _start(self, need: Work) -> None:
        """Do the work now; it is completed when its time has passed."""
        handed_in: list[Completion | Aborted] = []
        self._job.carry_out(need, lambda: self.now_s, handed_in.append)
        pace = self._slower[isinstance(need, Search)] if self._both else 1.0
        ends_s = self.now_s + pace * self._latencies.of(need)
        for done in handed_in:
            if isinstance(done, Aborted):
                raise done.error
            if isinstance(done, Completed):  # reports are passed over: a segment is one moment here
                self._push(ends_s, done)
        self._keep_pace()

    def _keep_pace(self) -> None:
        """Stretch or shorten what is left of everything that is out, when the pace changes."""
        both = len({isinstance(done.need, Search) for _, _, done in self._due}) == 2
        if both == self._both:
            return
        self._both = both
        if self._slower != (1.0, 1.0):
            now_s = self.now_s
            stretch = self._slower if both else tuple(1.0 / slower for slower in self._slower)
            self._due = [
                (now_s + stretch[isinstance(done.need, Search)] * (due_s - now_s), order, done)
                for due_s, order, done in self._due
            ]
            heapq.heapify(self._due)

    def _push(self, due_s: float, done: Completed) -> None:
        heapq.heappush(self._due, (due_s, next(self._order), done))

    def _cancel(self, need: Work) -> None:
        """Complete as cancelled, as soon as it can stop, what would be completed later."""
        writes = isinstance(need, FormQuery | Extend)
        stops_s = self.now_s + (self._latencies.stop_s if writes else 0.0)
        due, self._due = self._due, []
        for due_s, order, done in due:
            if done.need is need and stops_s <= due_s:
                self._push(stops_s, replace(done, value=None, error=_CANCELLED))
            else:
                heapq.heappush(self._due, (due_s, order, done))
        self._keep_pace()

    def next_completion(self) -> Completed:
        """Go on to the next moment at which something is completed."""
        self.now_s, _, done = heapq.heappop(self._due)
        self._keep_pace()
        return replace(done, ended_s=self.now_s)


_CANCELLED = Cancelled("this work is no longer needed")
