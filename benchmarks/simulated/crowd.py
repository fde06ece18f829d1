"""Many requests at once in virtual time: their searches merged, their segments at a few servers."""

import heapq
import itertools
from collections import deque
from collections.abc import Hashable, Sequence
from contextvars import Context
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from ralmspec_plugins.batching.queue import Batch, PendingCall, RequestQueue, SearchFn
from ralmspec_plugins.config import Settings
from ralmspec_plugins.effects import (
    Aborted,
    Cancel,
    Completed,
    Completion,
    Extend,
    Need,
    Search,
    Work,
)
from ralmspec_plugins.engine.context import RequestContext
from ralmspec_plugins.engine.session import Session
from ralmspec_plugins.engine.simulation import Latencies
from ralmspec_plugins.errors import Cancelled, ConfigError
from ralmspec_plugins.protocols import Retriever, Workload
from ralmspec_plugins.types import Answer, Request, as_request

# The work of a crowd by the virtual time at which it will be done; lines for what must wait.


class SimulatedClient:
    """One request of a crowd."""

    def __init__(self, session: Session, request: Request, arrived_s: float) -> None:
        """Arrive at this time of the crowd's clock."""
        self.session = session
        self.request = request
        self.arrived_s = arrived_s
        self.ended_s = 0.0
        self.context: RequestContext | None = None  # from its arrival to its answer
        self.answer: Answer | None = None
        self.out: dict[Work, Out] = {}

    @property
    def group(self) -> Hashable:
        """What its searches can be merged with."""
        wide = self.session.wide
        width = None if wide is None else self.session.settings.width(wide.k)
        return self.session.retriever.signature, width


@dataclass(slots=True, eq=False)
class Out:
    """A piece of work that is out: what it comes to, and where it waits."""

    member: SimulatedClient
    need: Work
    dones: list[Completed] = field(default_factory=list)
    call: PendingCall | None = None  # of a search, in the line or being searched
    written: bool = False  # by a server, now


Event: TypeAlias = SimulatedClient | Out | Batch  # somebody arrives; work is done; a search ends


class EventSimulator:
    """Where a crowd is attended to: one clock, one line for searches, one for the servers."""

    def __init__(
        self, latencies: Latencies, lanes: int, max_batch: int, writers: int | None
    ) -> None:
        """Open at 0 with nobody there."""
        self.batch_sizes: list[int] = []
        self._latencies = latencies
        self._now_s = 0.0
        self._due: list[tuple[float, int, Event]] = []
        self._order = itertools.count()
        self._line = RequestQueue(capacity=1 << 62)  # nobody is refused
        self._free = lanes
        self._max_batch = max_batch
        self._outs: dict[PendingCall, Out] = {}
        self._idle = writers
        self._to_write: deque[Out] = deque()
        self._context = Context()  # nothing runs in it; calls want one

    def run(self, members: Sequence[SimulatedClient]) -> None:
        """Answer all of them."""
        for member in members:
            self._push(member.arrived_s, member)
        try:
            while self._due:
                self._now_s, _, event = heapq.heappop(self._due)
                self._happen(event)
        finally:
            for member in members:
                if member.context is not None:
                    member.context.close()

    def _push(self, due_s: float, event: Event) -> None:
        heapq.heappush(self._due, (due_s, next(self._order), event))

    def _happen(self, event: Event) -> None:
        if isinstance(event, SimulatedClient):
            event.context = RequestContext(event.session, event.request)
            self._see_to(event, next(event.context.flow))
        elif isinstance(event, Batch):
            self._searched(event)
        elif event.member.out.get(event.need) is event and event.dones:
            self._let_go(event)
            self._complete(event, event.dones)

    def _see_to(self, member: SimulatedClient, needs: Sequence[Need]) -> None:
        context = member.context
        assert context is not None
        for need in needs:
            if isinstance(need, Work):
                self._start(member, context, need)
            elif isinstance(need, Cancel):
                self._cancel(member, need.need)
            else:
                context.note(need)
        if context.finish is not None:
            self._finish(member, context)

    def _start(self, member: SimulatedClient, context: RequestContext, need: Work) -> None:
        """Do the work now; it is completed when its time has passed."""
        handed_in: list[Completion | Aborted] = []
        context.carry_out(need, lambda: self._now_s - member.arrived_s, handed_in.append)
        out = member.out[need] = Out(member, need)
        for done in handed_in:
            if isinstance(done, Aborted):
                raise done.error
            if isinstance(done, Completed):
                out.dones.append(done)
        if isinstance(need, Search):
            self._line_up(out, need)
        elif isinstance(need, Extend) and self._idle is not None:
            self._to_write.append(out)
            self._write()
        else:
            self._push(self._now_s + self._latencies.of(need), out)

    # Searching

    def _line_up(self, out: Out, search: Search) -> None:
        out.call = PendingCall(
            group=out.member.group,
            search_fn=_NO_WAY,
            queries=search.queries,
            came_s=self._now_s,
            wake=_nobody,
            context=self._context,
        )
        self._outs[out.call] = out
        self._line.join(out.call)
        self._search()

    def _search(self) -> None:
        """Start searches while lanes are free and calls wait, as `Dispatcher` does."""
        while self._free and (batch := self._line.next_batch(self._max_batch)):
            self._free -= 1
            self.batch_sizes.append(batch.size)
            seconds = self._latencies.overhead_s + self._latencies.search_s(batch.size)
            self._push(self._now_s + seconds, batch)

    def _searched(self, batch: Batch) -> None:
        """Start the next search, and then tell the callers of this one."""
        self._free += 1
        batch.give([()] * batch.size)
        self._search()
        for call in batch.calls:
            if call.ended and (out := self._outs.pop(call, None)) is not None:
                self._complete(out, out.dones)

    # Writing

    def _write(self) -> None:
        """Give each idle server a segment."""
        while self._idle and self._to_write:
            out = self._to_write.popleft()
            if out.member.out.get(out.need) is not out:
                continue  # it was cancelled while it waited
            self._idle -= 1
            out.written = True
            self._push(self._now_s + self._latencies.of(out.need), out)

    def _let_go(self, out: Out) -> None:
        """Have the server of a segment write the next one."""
        if out.written and self._idle is not None:
            out.written = False
            self._idle += 1
            self._write()

    # Completing

    def _complete(self, out: Out, dones: Sequence[Completed]) -> None:
        member, context = out.member, out.member.context
        if member.out.pop(out.need, None) is None or context is None:
            return
        for done in dones:
            now_s = self._now_s - member.arrived_s
            member.request.check_deadline(now_s)
            self._see_to(member, context.flow.send(replace(done, ended_s=now_s)))
            if member.context is None:
                return

    def _cancel(self, member: SimulatedClient, need: Work) -> None:
        """Have work completed as cancelled, as soon as it can stop."""
        out = member.out.pop(need, None)
        if out is None:
            return
        self._leave(out)
        stopped = Out(member, need)
        stopped.dones = [replace(done, value=None, error=_CANCELLED) for done in out.dones]
        stopped.written, out.written = out.written, False
        member.out[need] = stopped
        stops = isinstance(need, Extend) and (self._idle is None or stopped.written)
        self._push(self._now_s + (self._latencies.stop_s if stops else 0.0), stopped)

    def _leave(self, out: Out) -> None:
        if out.call is not None and self._outs.pop(out.call, None) is not None:
            out.call.given_up = True
            self._line.leave(out.call)

    def _finish(self, member: SimulatedClient, context: RequestContext) -> None:
        """Note the answer; what is still out for this request is let go."""
        if member.context is None:
            return
        member.ended_s = self._now_s
        member.context = None
        context.close()
        for out in list(member.out.values()):
            self._leave(out)
            self._let_go(out)
        member.out.clear()
        member.answer = context.answer(self._now_s - member.arrived_s)


def _nobody() -> None:
    """Wake nobody: there are no threads."""


_NO_WAY = SearchFn(None)
_CANCELLED = Cancelled("this work is no longer needed")


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What a crowd of requests came to; all times are simulated."""

    answers: tuple[Answer, ...]  # in the order of the requests; their times begin as they arrive
    ended_s: tuple[float, ...]  # when each was answered, on the crowd's clock
    batch_sizes: tuple[int, ...]  # queries in each merged search, in order

    @property
    def wall_s(self) -> float:
        """When the last request was answered."""
        return max(self.ended_s, default=0.0)

    @property
    def latencies_s(self) -> list[float]:
        """How long each request took from its arrival."""
        return [answer.stats.wall_s for answer in self.answers]

    @property
    def mean_batch(self) -> float:
        """Queries in a merged search, on average."""
        return sum(self.batch_sizes) / max(1, len(self.batch_sizes))


class LoadSimulation:
    """Answers many requests at once in virtual time: real results, given durations.

    Each request has a loop of its own, as on an engine; all have one clock. Searches
    are merged as a `Verifier` with these `lanes` merges them: what comes while all are
    busy goes out together when one is free. Segments are written by `writers` servers,
    first come first served, or by one server for each request. Deterministic. What
    requests have in common, such as a pool, is in the settings.
    """

    def __init__(
        self,
        workload: Workload[Any],
        retriever: Retriever,
        latencies: Latencies,
        settings: Settings | None = None,
        *,
        lanes: int = 1,
        max_batch: int = 64,
        writers: int | None = None,
    ) -> None:
        """Put a workload in front of a retriever, both real, with these latencies.

        Raises:
            ConfigError: nothing could ever be searched or written, or `latencies` has a
                contention: whose work slows whose is not known of many machines.
        """
        for name, value in (("lanes", lanes), ("max_batch", max_batch), ("writers", writers)):
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if latencies.contention or latencies.slows_searches:
            raise ConfigError("a crowd has no contention; give curves measured under load instead")
        self._session = Session(
            workload, retriever, settings, clock=lambda: 0.0, timed=False, stop_encode_s=0.0
        )
        self._latencies = latencies
        self._lanes = lanes
        self._max_batch = max_batch
        self._writers = writers

    def run(
        self, requests: Sequence[Request | str], arrivals_s: Sequence[float] | None = None
    ) -> LoadResult:
        """Answer requests that arrive at these times, all at 0 unless told.

        Raises:
            ConfigError: there is not one time of arrival for each request.
            Exception: What the plain loop would have raised for one of them.
        """
        arrivals = [0.0] * len(requests) if arrivals_s is None else list(arrivals_s)
        if len(arrivals) != len(requests):
            raise ConfigError(f"{len(requests)} requests came at {len(arrivals)} times")
        members = [
            SimulatedClient(self._session, as_request(request), at_s)
            for request, at_s in zip(requests, arrivals, strict=True)
        ]
        time = EventSimulator(self._latencies, self._lanes, self._max_batch, self._writers)
        time.run(members)
        return LoadResult(
            tuple(member.answer for member in members if member.answer is not None),
            tuple(member.ended_s for member in members),
            tuple(time.batch_sizes),
        )
