"""The engine in virtual time: the same loop with given latencies, deterministic."""

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
from ralmspec_plugins.engine.context import RequestContext
from ralmspec_plugins.engine.session import Session
from ralmspec_plugins.errors import Cancelled, ConfigError
from ralmspec_plugins.protocols import Retriever, Workload
from ralmspec_plugins.types import Answer, Request, as_request

# Durations of each kind of work in virtual time.


WorkT = TypeVar("WorkT", FormQuery, Encode, Extend, Guess)


@dataclass(frozen=True, slots=True, kw_only=True)
class Latencies:
    """The duration of each kind of work, in seconds of virtual time.

    If the duration differs within one kind (a segment with another
    passage begins with a prefill), a function of the work returns the seconds.

    Attributes:
        extend_s: of writing a segment.
        search_s: b(n), by the size of the batch.
        ask_s: of forming a query.
        encode_s: of encoding one.
        guess_s: of a guess that is not made inside the loop.
        overhead_s: the engine's overhead for a piece of work.
        stop_s: the maximum time until a cancelled segment has stopped.
        stop_encode_s: the maximum time until a cancelled encoding has stopped: 0 if it is awaited,
            as by `AsyncEngine`; infinite in the threads of `Engine`.
        contention: 0: searches and generation do not slow each other down; 1: each takes twice as
            long during the other, as on one machine that either of them uses fully.
        search_contention: of searches, if it differs from that of generation.
    """

    extend_s: float | Callable[[Extend], float] = 1.0
    search_s: Callable[[int], float] = lambda _: 1.0
    ask_s: float | Callable[[FormQuery], float] = 0.0
    encode_s: float | Callable[[Encode], float] = 0.0
    guess_s: float | Callable[[Guess], float] = 0.0
    overhead_s: float = 0.0
    stop_s: float = 0.0
    stop_encode_s: float = 0.0
    contention: float = 0.0
    search_contention: float | None = None

    def __post_init__(self) -> None:
        """Check the durations."""
        given = {
            "contention": self.contention,
            "search_contention": self.slows_searches,
            "overhead_s": self.overhead_s,
            "stop_s": self.stop_s,
            "stop_encode_s": self.stop_encode_s,
        }
        for name, value in given.items():
            if not value >= 0:
                raise ConfigError(f"{name} must be at least 0, got {value}")

    @property
    def slows_searches(self) -> float:
        """The relative slowdown of a search during generation."""
        return self.contention if self.search_contention is None else self.search_contention

    def of(self, need: Work) -> float:
        """Return the duration of one piece of work without contention."""
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
    """Answers requests in virtual time: real results with given durations.

    Searches run in parallel as the schedule starts them, the model generates one
    segment or query at a time, and a cancelled one stops within `stop_s`. Encodings run
    in the retriever's number of lanes. With
    `contention`, searches and the model's work slow each other down. Work inside the
    loop takes no time. Times in the answer's statistics are simulated.
    """

    def __init__(
        self,
        workload: Workload[Any],
        retriever: Retriever,
        latencies: Latencies,
        settings: Settings | None = None,
    ) -> None:
        """Create a simulation of a workload and a retriever with these latencies."""
        self._session = Session(
            workload,
            retriever,
            settings,
            clock=lambda: 0.0,
            timed=False,
            stop_encode_s=latencies.stop_encode_s,
        )
        self._latencies = latencies

    def run(self, request: Request | str) -> Answer:
        """Answer a request.

        Raises:
            Exception: What the plain loop would raise.
        """
        wanted = as_request(request)
        context = RequestContext(self._session, wanted)
        clock = _VirtualTime(context, self._latencies)
        try:
            needs = next(context.flow)
            while True:
                for need in needs:
                    clock.process(need)
                context.learn()
                if context.finish is not None:
                    return context.answer(clock.now_s)
                completion = clock.next_completion()
                wanted.check_deadline(clock.now_s)
                needs = context.flow.send(completion)
        finally:
            context.close()


class _VirtualTime:
    """The work in flight, by the virtual time at which it will be complete."""

    def __init__(self, context: RequestContext, latencies: Latencies) -> None:
        self._context = context
        self._latencies = latencies
        self.now_s = 0.0
        self._due: list[tuple[float, int, Completed]] = []
        self._order = itertools.count()
        self._both = False  # whether a search and other work overlap
        self._slower = 1.0 + latencies.contention, 1.0 + latencies.slows_searches

    def process(self, need: Need) -> None:
        if isinstance(need, Work):
            self._start(need)
        elif isinstance(need, Cancel):
            self._cancel(need.need)
        else:
            self._context.note(need)

    def _start(self, need: Work) -> None:
        """Run the work now; it is completed after its duration."""
        handed_in: list[Completion | Aborted] = []
        self._context.carry_out(need, lambda: self.now_s, handed_in.append)
        pace = self._slower[isinstance(need, Search)] if self._both else 1.0
        ends_s = self.now_s + pace * self._latencies.of(need)
        for done in handed_in:
            if isinstance(done, Aborted):
                raise done.error
            if isinstance(
                done, Completed
            ):  # reports are ignored: a segment has no duration in real time
                self._push(ends_s, done)
        self._keep_pace()

    def _keep_pace(self) -> None:
        """Rescale the remaining durations of the work in flight, when contention changes."""
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
        """Complete work as cancelled at the time when it stops, if that is earlier."""
        stops_s = self.now_s
        if isinstance(need, FormQuery | Extend):
            stops_s += self._latencies.stop_s
        elif isinstance(need, Encode):
            stops_s += self._latencies.stop_encode_s
        due, self._due = self._due, []
        for due_s, order, done in due:
            if done.need is need and stops_s <= due_s:
                self._push(stops_s, replace(done, value=None, error=_CANCELLED))
            else:
                heapq.heappush(self._due, (due_s, order, done))
        self._keep_pace()

    def next_completion(self) -> Completed:
        """Advance to the next completion, and return it."""
        self.now_s, _, done = heapq.heappop(self._due)
        self._keep_pace()
        return replace(done, ended_s=self.now_s)


_CANCELLED = Cancelled("this work is no longer needed")
