"""The queue of calls, and the forming of batches: no threads, no clock.

Calls wait in groups; only calls of one group are merged. Groups are served round-robin, and
so are the calls of a group, whatever their size.
Each group has its own capacity.
"""

from asyncio import AbstractEventLoop
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Hashable, Iterator, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import TypeAlias

from ralmspec_plugins.parts import results
from ralmspec_plugins.types import Hits, Query

# Calls, and the batches in which they are searched.


SearchCall: TypeAlias = Callable[[Sequence[Query]], list[Hits]]
AsyncSearchCall: TypeAlias = Callable[[Sequence[Query]], Awaitable[list[Hits]]]


@dataclass(frozen=True, slots=True)
class SearchFn:
    """A search function, which runs in a thread or is awaited on an event loop."""

    search: SearchCall | None
    asearch: AsyncSearchCall | None = None
    loop: AbstractEventLoop | None = None  # the event loop of an awaited search

    @property
    def stopped(self) -> bool:
        """Whether its event loop does not run."""
        return self.loop is not None and not self.loop.is_running()


@dataclass(eq=False, slots=True, kw_only=True)
class PendingCall:
    """One caller's search, and its results so far.

    It ends with hits for every query, or with the error of a search of only
    this call. When a search shared with others fails, the call is
    retried as a whole with fewer others. When nothing can be
    searched any more it is `disturbed`: its caller then searches separately,
    without a batch.
    """

    group: Hashable  # calls of one group may be merged
    search_fn: SearchFn
    queries: Sequence[Query]
    came_s: float
    wake: Callable[[], None]  # notifies the caller, from any thread, that the call has ended
    context: Context = field(default_factory=copy_context)
    tries: int = 0  # shared searches that failed
    taken: int = 0  # queries that have left the queue
    found: dict[int, Hits] = field(default_factory=dict)  # by place
    error: BaseException | None = None
    disturbed: bool = False
    given_up: bool = False  # its caller has cancelled it

    @property
    def waiting(self) -> int:
        """The number of its queries in the queue."""
        return len(self.queries) - self.taken

    @property
    def ended(self) -> bool:
        """Whether the caller can continue."""
        return self.disturbed or self.error is not None or len(self.found) == len(self.queries)

    def restart(self) -> None:
        """Discard the results: the whole call is searched again."""
        self.tries += 1
        self.taken = len(self.queries)
        self.found.clear()


@dataclass(frozen=True, slots=True)
class CallPart:
    """The part of a call in a batch, at one of the call's tries."""

    call: PendingCall
    places: range
    tries: int

    @property
    def stale(self) -> bool:
        """Whether the call was restarted since, or has ended."""
        return self.tries != self.call.tries or self.call.ended


@dataclass(eq=False, slots=True)
class Batch:
    """The queries of one search: parts of calls of one group."""

    parts: list[CallPart]
    delivered: bool = False  # whether its outcome was delivered

    @property
    def calls(self) -> list[PendingCall]:
        """The calls of its parts."""
        return [piece.call for piece in self.parts]

    @property
    def search_fn(self) -> SearchFn:
        """The search function of the first call: those of a group are equivalent."""
        return self.parts[0].call.search_fn

    @property
    def size(self) -> int:
        """The number of queries."""
        return sum(len(piece.places) for piece in self.parts)

    @property
    def abandoned(self) -> bool:
        """Whether all its callers have cancelled."""
        return all(call.given_up for call in self.calls)

    @property
    def queries(self) -> list[Query]:
        """The queries in the order of the parts."""
        return [piece.call.queries[at] for piece in self.parts for at in piece.places]

    @property
    def is_one_call(self) -> bool:
        """Whether it consists of exactly one whole call."""
        piece = self.parts[0]
        return len(self.parts) == 1 and len(piece.places) == len(piece.call.queries)

    def checked(self, found: list[Hits]) -> list[Hits]:
        """Return the results, if there is one for each query.

        Raises:
            InputError: there are more or fewer results.
        """
        return results(found, self.queries)

    def give(self, outcome: list[Hits] | BaseException) -> list[PendingCall]:
        """Store the results in each call; return the calls that must be searched again."""
        self.delivered = True
        current = [piece.call for piece in self.parts if not piece.stale]
        if not isinstance(outcome, BaseException):
            found = iter(outcome)
            for piece in self.parts:
                mine = dict(zip(piece.places, found, strict=False))
                if not piece.stale:
                    piece.call.found.update(mine)
            return []
        if not self.is_one_call:
            return current
        for call in current:
            call.error = outcome
        return []

    def disturb(self) -> list[PendingCall]:
        """Make each caller search separately; return the disturbed calls."""
        self.delivered = True
        disturbed = [piece.call for piece in self.parts if not piece.stale]
        for call in disturbed:
            call.disturbed = True
        return disturbed


class _Group:
    """The calls of one group: queued, waiting for admission, and to be retried."""

    def __init__(self) -> None:
        self.calls: OrderedDict[PendingCall, None] = OrderedDict()
        self.door: OrderedDict[PendingCall, None] = OrderedDict()
        self.again: deque[list[PendingCall]] = deque()
        self.size = 0  # queries in the queue

    def all_calls(self) -> Iterator[PendingCall]:
        return chain(self.calls, self.door, *self.again)


class RequestQueue:
    """A queue of at most `capacity` queries of each group; other calls wait for admission.

    A call larger than the capacity is admitted when the queue of its group is empty.
    Not thread-safe: users hold a lock. The time to form a batch
    depends on the size of the batch, not of the queue.

    >>> from ralmspec_plugins.batching.queue import PendingCall, RequestQueue, SearchFn
    >>> from ralmspec_plugins.types import Query
    >>> queue = RequestQueue(capacity=8)
    >>> for words in ("abcde", "x"):
    ...     queries = [Query(word) for word in words]
    ...     call = PendingCall(
    ...         group="", search_fn=SearchFn(None), queries=queries, came_s=0, wake=print
    ...     )
    ...     queue.join(call)
    >>> [query.text for query in queue.next_batch(3).queries]
    ['a', 'b', 'x']
    """

    def __init__(self, capacity: int) -> None:
        """Create an empty queue."""
        self.capacity = capacity
        self._groups: OrderedDict[Hashable, _Group] = OrderedDict()  # the next group first

    @property
    def size(self) -> int:
        """The number of queries in the queue, in all groups."""
        return sum(group.size for group in self._groups.values())

    def join(self, call: PendingCall) -> None:
        """Add a call to the queue, or let it wait for admission."""
        group = self._groups.setdefault(call.group, _Group())
        group.door[call] = None
        self._admit(group)

    def leave(self, call: PendingCall) -> bool:
        """Remove a cancelled call; return whether it was still waiting."""
        group = self._groups.get(call.group)
        if group is None or (call not in group.door and call not in group.calls):
            return False
        if call in group.door:
            del group.door[call]
        else:
            del group.calls[call]
            group.size -= call.waiting
        self._admit(group)  # it may have blocked others
        self._forget_if_empty(call.group)
        return True

    def repeat(self, calls: Sequence[PendingCall]) -> None:
        """Queue calls of one group again, in two halves, to isolate the failing one."""
        for call in calls:
            self.leave(call)
            call.restart()
        middle = (len(calls) + 1) // 2
        for half in (calls[:middle], calls[middle:]):
            if half:
                self._groups.setdefault(calls[0].group, _Group()).again.append(list(half))

    def awaits_admission(self, call: PendingCall) -> bool:
        """Return whether a call still waits for admission."""
        group = self._groups.get(call.group)
        return group is not None and call in group.door

    def next_batch(self, most: int) -> Batch | None:
        """Remove and return the next batch of at most this many queries.

        A retried batch may be larger, if it is a single call.
        """
        while self._groups:
            name, group = next(iter(self._groups.items()))
            batch = self._retry_batch(group, most) if group.again else self._fair_batch(group, most)
            self._groups.move_to_end(name)
            self._admit(group)
            self._forget_if_empty(name)
            if batch.parts:
                return batch
        return None

    def _retry_batch(self, group: _Group, most: int) -> Batch:
        """Return a batch of the next calls to be retried together, up to the maximum size."""
        calls = [call for call in group.again.popleft() if not call.given_up]
        count, size = 0, 0
        while count < len(calls) and (not count or size + len(calls[count].queries) <= most):
            size += len(calls[count].queries)
            count += 1
        if calls[count:]:
            group.again.appendleft(calls[count:])
        return Batch(
            [CallPart(call, range(len(call.queries)), call.tries) for call in calls[:count]]
        )

    def _fair_batch(self, group: _Group, most: int) -> Batch:
        """Return a batch with an equal share of each call, and the remainder of the first ones."""
        calls = list(islice(group.calls, most))
        share = max(1, most // len(group.calls))
        counts = dict.fromkeys(calls, 0)
        room = most
        for limit in (share, most):
            for call in calls:
                more = min(call.waiting - counts[call], limit, room)
                counts[call] += more
                room -= more
        batch = Batch([])
        for call, count in counts.items():
            batch.parts.append(CallPart(call, range(call.taken, call.taken + count), call.tries))
            call.taken += count
            group.size -= count
            if call.waiting:
                group.calls.move_to_end(call)  # after those without a share
            else:
                del group.calls[call]
        return batch

    def waits_on(self, loop: AbstractEventLoop) -> bool:
        """Return whether a search on this event loop is queued or waits for admission."""
        firsts = (next(group.all_calls()) for group in self._groups.values())
        return any(call.search_fn.loop is loop for call in firsts)

    def empty(self) -> list[PendingCall]:
        """Remove and return all calls, including those that wait for admission."""
        removed = [call for group in self._groups.values() for call in group.all_calls()]
        self._groups.clear()
        return removed

    def _admit(self, group: _Group) -> None:
        while group.door:
            call = next(iter(group.door))
            if group.size and group.size + len(call.queries) > self.capacity:
                return
            del group.door[call]
            group.calls[call] = None
            group.size += len(call.queries)

    def _forget_if_empty(self, name: Hashable) -> None:
        group = self._groups[name]
        if not (group.calls or group.door or group.again):
            del self._groups[name]

    def check(self) -> None:
        """Assert the invariants."""
        for name, group in self._groups.items():
            waiting = [call.waiting for call in group.calls]
            assert group.size == sum(waiting)
            assert all(waiting), "a call without queries is in the queue"
            assert group.size <= self.capacity or len(waiting) == 1
            assert all(call.group == name for call in group.all_calls())
            assert next(group.all_calls(), None), "a group without calls is in the queue"
            assert all(group.again), "a group of retries is empty"
