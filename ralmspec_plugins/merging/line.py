"""Who waits to be searched, and whose queries go into the next batch: no threads, no clock.

Calls wait in groups; only calls of one group are merged. Groups take turns, and
so do the calls of a group: whatever a caller brings, the next one is served too.
"""

from asyncio import AbstractEventLoop
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from typing import TypeAlias

from ralmspec_plugins.errors import InputError
from ralmspec_plugins.records import Hits, Query

SearchCall: TypeAlias = Callable[[Sequence[Query]], list[Hits]]
AsyncSearchCall: TypeAlias = Callable[[Sequence[Query]], Awaitable[list[Hits]]]


@dataclass(frozen=True, slots=True)
class Way:
    """How a search is carried out: in a thread, or awaited on an event loop."""

    search: SearchCall | None
    asearch: AsyncSearchCall | None = None
    loop: AbstractEventLoop | None = None  # whose `asearch` is awaited

    @property
    def stopped(self) -> bool:
        """Whether the event loop that it needs does not run."""
        return self.loop is not None and not self.loop.is_running()


@dataclass(eq=False, slots=True, kw_only=True)
class Call:
    """One caller's search, and what has been found for it so far.

    It ends with hits for every query, or with the error of a search that was
    exactly this call, or because a search that it shared has failed: then its
    caller searches alone, as without anybody else.
    """

    group: Hashable  # calls of one group may be merged
    way: Way
    queries: Sequence[Query]
    came_s: float
    wake: Callable[[], None]  # tells the caller, from any thread, that the call has ended
    context: Context = field(default_factory=copy_context)
    taken: int = 0  # queries that have left the line
    found: dict[int, Hits] = field(default_factory=dict)  # by place
    error: BaseException | None = None
    disturbed: bool = False  # a shared search has failed
    given_up: bool = False  # nobody waits for it any more

    @property
    def waiting(self) -> int:
        """How many of its queries stand in the line."""
        return len(self.queries) - self.taken

    @property
    def ended(self) -> bool:
        """Whether the caller can go on."""
        return self.disturbed or self.error is not None or len(self.found) == len(self.queries)


@dataclass(eq=False, slots=True)
class Batch:
    """The queries of one search: a piece of each of some calls of a group."""

    pieces: list[tuple[Call, range]]
    given: bool = False  # its outcome, to its callers

    @property
    def way(self) -> Way:
        """How it is searched: the first call's way, since a group's ways are alike."""
        return self.pieces[0][0].way

    @property
    def size(self) -> int:
        """How many queries it has."""
        return sum(len(places) for _, places in self.pieces)

    @property
    def unwanted(self) -> bool:
        """Whether all its callers have gone."""
        return all(call.given_up for call, _ in self.pieces)

    @property
    def queries(self) -> list[Query]:
        """The queries in the order of the pieces."""
        return [call.queries[at] for call, places in self.pieces for at in places]

    @property
    def is_one_call(self) -> bool:
        """Whether this is exactly what a single caller asked for, no more and no less."""
        call, places = self.pieces[0]
        return len(self.pieces) == 1 and len(places) == len(call.queries)

    def checked(self, found: list[Hits]) -> list[Hits]:
        """Give what was found if there is one result for each query.

        Raises:
            InputError: there are more or fewer.
        """
        if len(found) != self.size:
            raise InputError(
                f"the retriever gave {len(found)} results for {self.size} queries; it must give "
                "one for each, in order"
            )
        return list(found)  # where it is lazy, its errors come here

    def give(self, outcome: list[Hits] | BaseException) -> list[Call]:
        """Note in each call what was found for it; list the calls that this one disturbed."""
        self.given = True
        if not isinstance(outcome, BaseException):
            found = iter(outcome)
            for call, places in self.pieces:
                call.found.update(zip(places, found, strict=False))
            return []
        if self.is_one_call:
            self.pieces[0][0].error = outcome
            return []
        return self.let_go()

    def let_go(self) -> list[Call]:
        """Have each caller search alone; list the calls that this disturbed."""
        self.given = True
        disturbed = [call for call, _ in self.pieces if not call.disturbed]
        for call in disturbed:
            call.disturbed = True
        return disturbed


class Line:
    """The calls that wait, at most `capacity` queries of them; later calls wait at the door.

    A call larger than the capacity is let in when the line is empty. Not
    thread-safe: whoever uses it holds a lock.

    >>> line = Line(capacity=8)
    >>> for words in ("abcde", "x"):
    ...     queries = [Query(word) for word in words]
    ...     line.join(Call(group="", way=Way(None), queries=queries, came_s=0, wake=print))
    >>> [query.text for query in line.next_batch(3).queries]
    ['a', 'b', 'x']
    """

    def __init__(self, capacity: int) -> None:
        """Start with nobody waiting."""
        self.capacity = capacity
        self.size = 0  # queries in the line
        self._groups: OrderedDict[Hashable, deque[Call]] = OrderedDict()  # the next one first
        self._door: deque[Call] = deque()

    def join(self, call: Call) -> None:
        """Take a call in, or let it wait at the door."""
        self._door.append(call)
        self._let_in()

    def leave(self, call: Call) -> bool:
        """Take a call out that nobody waits for any more; say whether it was still waiting."""
        if call in self._door:
            self._door.remove(call)
            self._let_in()  # it may have stood in the way
            return True
        calls = self._groups.get(call.group, deque())
        if call not in calls:
            return False
        calls.remove(call)
        self.size -= call.waiting
        if not calls:
            del self._groups[call.group]
        self._let_in()
        return True

    def outside(self, call: Call) -> bool:
        """Whether a call still waits at the door."""
        return call in self._door

    def next_batch(self, most: int) -> Batch | None:
        """Take the next batch of at most so many queries out of the line."""
        if not self._groups:
            return None
        group, calls = self._groups.popitem(last=False)
        share = max(1, most // len(calls))
        counts = dict.fromkeys(calls, 0)
        room = most
        for limit in (share, most):  # first everybody's share, then what is left of the room
            for call in calls:
                more = min(call.waiting - counts[call], limit, room)
                counts[call] += more
                room -= more
        batch = Batch([])
        for call, count in counts.items():
            if count:
                batch.pieces.append((call, range(call.taken, call.taken + count)))
                call.taken += count
                self.size -= count
        waiting = [call for call in calls if call.waiting]
        if waiting:  # behind the other groups, and those who got nothing in front
            waiting.sort(key=lambda call: counts[call] > 0)
            self._groups[group] = deque(waiting)
        self._let_in()
        return batch

    def waits_on(self, loop: AbstractEventLoop) -> bool:
        """Whether a search on this event loop stands in the line or at the door."""
        inside = any(calls[0].way.loop is loop for calls in self._groups.values())
        return inside or any(call.way.loop is loop for call in self._door)

    def empty(self) -> list[Call]:
        """Send everybody away, those at the door too."""
        sent_off = [call for calls in self._groups.values() for call in calls] + list(self._door)
        self._groups.clear()
        self._door.clear()
        self.size = 0
        return sent_off

    def _let_in(self) -> None:
        while self._door and (
            not self.size or self.size + len(self._door[0].queries) <= self.capacity
        ):
            call = self._door.popleft()
            self._groups.setdefault(call.group, deque()).append(call)
            self.size += len(call.queries)

    def check(self) -> None:
        """Assert what must hold between any two calls."""
        waiting = [call.waiting for calls in self._groups.values() for call in calls]
        assert self.size == sum(waiting)
        assert all(waiting), "a call without queries stands in the line"
        assert all(self._groups.values()), "a group without calls stands in the line"
        assert self.size <= self.capacity or len(waiting) == 1
