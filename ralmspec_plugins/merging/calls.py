"""A caller's search while it waits and is searched, and the batches that it is searched in."""

from asyncio import AbstractEventLoop
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
    exactly this call. When a search that it shared with others fails, it is
    searched once more, whole and with fewer others. Where nothing can be
    searched any more it is `disturbed`: its caller then searches alone, as
    without anybody else.
    """

    group: Hashable  # calls of one group may be merged
    way: Way
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
class Piece:
    """A part of a call in a batch, at one of the call's tries."""

    call: Call
    places: range
    tries: int

    @property
    def stale(self) -> bool:
        """Whether the call was restarted meanwhile, or has ended."""
        return self.tries != self.call.tries or self.call.ended


@dataclass(eq=False, slots=True)
class Batch:
    """The queries of one search: a piece of each of some calls of a group."""

    pieces: list[Piece]
    given: bool = False  # its outcome, to its callers

    @property
    def calls(self) -> list[Call]:
        """The calls that it serves."""
        return [piece.call for piece in self.pieces]

    @property
    def way(self) -> Way:
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

    def let_go(self) -> list[Call]:
        """Have each caller search alone; list the calls that this disturbed."""
        self.given = True
        disturbed = [piece.call for piece in self.pieces if not piece.stale]
        for call in disturbed:
            call.disturbed = True
        return disturbed
