"""Who waits to be searched, and whose queries go into the next batch: no threads, no clock.

Calls wait in groups; only calls of one group are merged. Groups take turns, and
so do the calls of a group: whatever a caller brings, the next one is served too.
Nothing that one group does fills another one's line.
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

# A caller's search while it waits and is searched, and the batches that it is searched in.


SearchCall: TypeAlias = Callable[[Sequence[Query]], list[Hits]]
AsyncSearchCall: TypeAlias = Callable[[Sequence[Query]], Awaitable[list[Hits]]]


@dataclass(frozen=True, slots=True)
class SearchFn:
    """How a search is carried out: in a thread, or awaited on an event loop."""

    search: SearchCall | None
    asearch: AsyncSearchCall | None = None
    loop: AbstractEventLoop | None = None  # whose `asearch` is awaited

    @property
    def stopped(self) -> bool:
        """Whether the event loop that it needs does not run."""
        return self.loop is not None and not self.loop.is_running()


@dataclass(eq=False, slots=True, kw_only=True)
class PendingCall:
    """One caller's search, and what has been found for it so far.

    It ends with hits for every query, or with the error of a search that was
    exactly this call. When a search that it shared with others fails, it is
    searched once more, whole and with fewer others. Where nothing can be
    searched any more it is `disturbed`: its caller then searches alone, as
    without anybody else.
    """

    group: Hashable  # calls of one group may be merged
    way: SearchFn
    queries: Sequence[Query]
    came_s: float
    wake: Callable[[], None]  # tells the caller, from any thread, that the call has ended
    context: Context = field(default_factory=copy_context)
    tries: int = 0  # shared searches that failed
    taken: int = 0  # queries that have left the line
    found: dict[int, Hits] = field(default_factory=dict)  # by place
    error: BaseException | None = None
    disturbed: bool = False
    given_up: bool = False  # nobody waits for it any more

    @property
    def waiting(self) -> int:
        """How many of its queries stand in the line."""
        return len(self.queries) - self.taken

    @property
    def ended(self) -> bool:
        """Whether the caller can go on."""
        return self.disturbed or self.error is not None or len(self.found) == len(self.queries)

    def restart(self) -> None:
        """Forget what was found: it is searched again, whole."""
        self.tries += 1
        self.taken = len(self.queries)
        self.found.clear()


@dataclass(frozen=True, slots=True)
class CallPart:
    """A part of a call in a batch, at one of the call's tries."""

    call: PendingCall
    places: range
    tries: int

    @property
    def stale(self) -> bool:
        """Whether the call was restarted meanwhile, or has ended."""
        return self.tries != self.call.tries or self.call.ended


@dataclass(eq=False, slots=True)
class Batch:
    """The queries of one search: a piece of each of some calls of a group."""

    pieces: list[CallPart]
    given: bool = False  # its outcome, to its callers

    @property
    def calls(self) -> list[PendingCall]:
        """The calls that it serves."""
        return [piece.call for piece in self.pieces]

    @property
    def way(self) -> SearchFn:
        """How it is searched: the first call's way, since a group's ways are alike."""
        return self.pieces[0].call.way

    @property
    def size(self) -> int:
        """How many queries it has."""
        return sum(len(piece.places) for piece in self.pieces)

    @property
    def unwanted(self) -> bool:
        """Whether all its callers have gone."""
        return all(call.given_up for call in self.calls)

    @property
    def queries(self) -> list[Query]:
        """The queries in the order of the pieces."""
        return [piece.call.queries[at] for piece in self.pieces for at in piece.places]

    @property
    def is_one_call(self) -> bool:
        """Whether this is exactly what a single caller asked for, no more and no less."""
        piece = self.pieces[0]
        return len(self.pieces) == 1 and len(piece.places) == len(piece.call.queries)

    def checked(self, found: list[Hits]) -> list[Hits]:
        """Return what was found if there is one result for each query.

        Raises:
            InputError: there are more or fewer.
        """
        return results(found, self.queries)

    def give(self, outcome: list[Hits] | BaseException) -> list[PendingCall]:
        """Note in each call what was found for it; list those that must be searched again."""
        self.given = True
        current = [piece.call for piece in self.pieces if not piece.stale]
        if not isinstance(outcome, BaseException):
            found = iter(outcome)
            for piece in self.pieces:
                mine = dict(zip(piece.places, found, strict=False))
                if not piece.stale:
                    piece.call.found.update(mine)
            return []
        if not self.is_one_call:
            return current
        for call in current:
            call.error = outcome
        return []

    def let_go(self) -> list[PendingCall]:
        """Have each caller search alone; list the calls that this disturbed."""
        self.given = True
        disturbed = [piece.call for piece in self.pieces if not piece.stale]
        for call in disturbed:
            call.disturbed = True
        return disturbed


class _Group:
    """The calls of one group: in the line, at its door, and to be searched again."""

    def __init__(self) -> None:
        self.calls: OrderedDict[PendingCall, None] = OrderedDict()
        self.door: OrderedDict[PendingCall, None] = OrderedDict()
        self.again: deque[list[PendingCall]] = deque()
        self.size = 0  # queries in the line

    def everybody(self) -> Iterator[PendingCall]:
        return chain(self.calls, self.door, *self.again)


class RequestQueue:
    """The calls that wait, at most `capacity` queries of each group; the others at its door.

    A call larger than the capacity is let in when its group's line is empty.
    Not thread-safe: whoever uses it holds a lock. What it does for one batch
    takes time by the size of the batch, not of the line.

    >>> from ralmspec_plugins.batching.queue import PendingCall, RequestQueue, SearchFn
    >>> from ralmspec_plugins.types import Query
    >>> line = RequestQueue(capacity=8)
    >>> for words in ("abcde", "x"):
    ...     queries = [Query(word) for word in words]
    ...     call = PendingCall(
    ...         group="", way=SearchFn(None), queries=queries, came_s=0, wake=print
    ...     )
    ...     line.join(call)
    >>> [query.text for query in line.next_batch(3).queries]
    ['a', 'b', 'x']
    """

    def __init__(self, capacity: int) -> None:
        """Start with nobody waiting."""
        self.capacity = capacity
        self._groups: OrderedDict[Hashable, _Group] = OrderedDict()  # the next one first

    @property
    def size(self) -> int:
        """How many queries stand in the line, in all groups."""
        return sum(group.size for group in self._groups.values())

    def join(self, call: PendingCall) -> None:
        """Take a call in, or let it wait at the door."""
        group = self._groups.setdefault(call.group, _Group())
        group.door[call] = None
        self._let_in(group)

    def leave(self, call: PendingCall) -> bool:
        """Take a call out that nobody waits for any more; say whether it was still waiting."""
        group = self._groups.get(call.group)
        if group is None or (call not in group.door and call not in group.calls):
            return False
        if call in group.door:
            del group.door[call]
        else:
            del group.calls[call]
            group.size -= call.waiting
        self._let_in(group)  # it may have stood in the way
        self._forget_if_empty(call.group)
        return True

    def repeat(self, calls: Sequence[PendingCall]) -> None:
        """Have calls of one group searched again, in two halves: so a bad one is soon alone."""
        for call in calls:
            self.leave(call)
            call.restart()
        middle = (len(calls) + 1) // 2
        for half in (calls[:middle], calls[middle:]):
            if half:
                self._groups.setdefault(calls[0].group, _Group()).again.append(list(half))

    def outside(self, call: PendingCall) -> bool:
        """Whether a call still waits at the door."""
        group = self._groups.get(call.group)
        return group is not None and call in group.door

    def next_batch(self, most: int) -> Batch | None:
        """Take the next batch of at most so many queries out of the line.

        What is searched again may be more, where it is a single call.
        """
        while self._groups:
            name, group = next(iter(self._groups.items()))
            batch = self._again(group, most) if group.again else self._fresh(group, most)
            self._groups.move_to_end(name)
            self._let_in(group)
            self._forget_if_empty(name)
            if batch.pieces:
                return batch
        return None

    def _again(self, group: _Group, most: int) -> Batch:
        """Take the first calls that are to be searched again together, as far as there is room."""
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

    def _fresh(self, group: _Group, most: int) -> Batch:
        """Return every call its share of the room, and then what is left of it to the first."""
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
            batch.pieces.append(CallPart(call, range(call.taken, call.taken + count), call.tries))
            call.taken += count
            group.size -= count
            if call.waiting:
                group.calls.move_to_end(call)  # behind those who got nothing
            else:
                del group.calls[call]
        return batch

    def waits_on(self, loop: AbstractEventLoop) -> bool:
        """Whether a search on this event loop stands in the line or at the door."""
        firsts = (next(group.everybody()) for group in self._groups.values())
        return any(call.way.loop is loop for call in firsts)

    def empty(self) -> list[PendingCall]:
        """Send everybody away, those at the door too."""
        sent_off = [call for group in self._groups.values() for call in group.everybody()]
        self._groups.clear()
        return sent_off

    def _let_in(self, group: _Group) -> None:
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
        """Assert what must hold between any two calls."""
        for name, group in self._groups.items():
            waiting = [call.waiting for call in group.calls]
            assert group.size == sum(waiting)
            assert all(waiting), "a call without queries stands in the line"
            assert group.size <= self.capacity or len(waiting) == 1
            assert all(call.group == name for call in group.everybody())
            assert next(group.everybody(), None), "a group without calls stands in the line"
            assert all(group.again), "nobody is to be searched again"
