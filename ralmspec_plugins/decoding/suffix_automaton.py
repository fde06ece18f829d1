"""A suffix automaton that grows token by token, counts occurrences, and can be truncated."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Final, NamedTuple

from ralmspec_plugins.errors import ConfigError

START: Final = 0  # the state of the empty sequence
_CLIMB: Final = 32  # suffixes that are counted per token, longest first: keeps its cost O(1)


_PLACES: Final = itemgetter(2, 3)  # a follower's number of occurrences, and the last one


class Follower(NamedTuple):
    """A token that follows a state: the state after it, how often, and where it did last."""

    token: int
    state: int
    places: int  # occurrences
    recent: int  # the last of them, as the number of tokens up to its end


@dataclass(slots=True)
class _Change:
    """The changes that one token made, so that they can be undone."""

    last: int
    added: list[int]  # states that received a transition
    climbed: list[tuple[int, int]]  # states with a raised count, and their former `recent`
    clone: int | None = None
    of: int = START  # the state that was cloned
    redirected: list[int] = field(default_factory=list)  # states whose transition led to `of`


class SuffixAutomaton:
    """All occurrences of all substrings of a token sequence, in O(1) amortised time per token.

    A state represents the substrings that end at the same positions; its link leads to
    their longest suffix with more occurrences. So `repeated()`, the longest suffix
    of the sequence that also occurs earlier, is one look-up, and the tokens that followed
    it are that state's transitions.

    An appended token is counted as an occurrence for its 32 longest suffixes with distinct
    states; shorter ones are then undercounted.

    `truncate` removes appended tokens one by one and restores the state before them.

    >>> automaton = SuffixAutomaton([1, 2, 3, 1, 2, 4, 1, 2])
    >>> state, length = automaton.repeated()
    >>> length, [(one.token, one.places) for one in automaton.followers(state)]
    (2, [(4, 1), (3, 1)])
    """

    def __init__(self, tokens: Iterable[int] = ()) -> None:
        """Create an automaton of a sequence that cannot be truncated."""
        self._next: list[dict[int, int]] = [{}]
        self._link: list[int] = [-1]
        self._length: list[int] = [0]
        self._count: list[int] = [0]
        self._recent: list[int] = [0]
        self._last = START
        self._tokens: list[int] = []
        self._changes: list[_Change] = []
        for token in tokens:
            self._add(token, None)
        self.fixed = len(self._tokens)  # tokens that cannot be removed
        self._count_places()

    def __len__(self) -> int:
        """Return the number of tokens."""
        return len(self._tokens)

    def append(self, token: int) -> None:
        """Append a token, which `truncate` can remove."""
        change = _Change(self._last, [], [])
        self._add(token, change)
        self._changes.append(change)
        place, count, recent, state = len(self._tokens), self._count, self._recent, self._last
        for _ in range(_CLIMB):
            if state <= START:
                return
            change.climbed.append((state, recent[state]))
            count[state] += 1
            recent[state] = place
            state = self._link[state]

    def truncate(self, length: int) -> None:
        """Remove all tokens but the first `length`.

        Raises:
            ConfigError: some tokens to remove belong to the initial sequence.
        """
        if length < self.fixed:
            raise ConfigError(f"the first {self.fixed} tokens stay, cannot truncate to {length}")
        while len(self._tokens) > length:
            self._take_back(self._changes.pop())

    def repeated(self) -> tuple[int, int]:
        """Return the state and the length of the longest suffix that also occurs earlier."""
        if self._last == START:
            return START, 0
        state = self._link[self._last]
        return state, self._length[state]

    def shorter(self, state: int) -> tuple[int, int]:
        """Return the state and the length of a state's longest suffix with more occurrences."""
        assert state != START
        link = self._link[state]
        return link, self._length[link]

    def find(self, tokens: Iterable[int]) -> tuple[int, int]:
        """Return the state and the length of the longest suffix of `tokens` that occurs here.

        >>> automaton = SuffixAutomaton([1, 2, 3, 4])
        >>> automaton.find([9, 2, 3])[1], automaton.find([1, 2, 9])[1]
        (2, 0)
        """
        state, length = START, 0
        for token in tokens:
            while state != START and token not in self._next[state]:
                state = self._link[state]
                length = self._length[state]
            if token in self._next[state]:
                state, length = self._next[state][token], length + 1
        return state, length

    def followers(self, state: int) -> list[Follower]:
        """Return the tokens that follow a state: the most frequent first, then the most recent."""
        count, recent = self._count, self._recent
        found = [
            Follower(token, to, count[to], recent[to]) for token, to in self._next[state].items()
        ]
        if len(found) > 1:
            found.sort(key=_PLACES, reverse=True)
        return found

    def single_way(self, state: int, most: int) -> tuple[list[int], int]:
        """Return the only continuation of a state, until it branches, and the state after it.

        >>> SuffixAutomaton([1, 2, 3, 4]).single_way(1, 2)
        ([2, 3], 3)
        """
        next_states, tokens = self._next, list[int]()
        while len(tokens) < most and len(next_states[state]) == 1:
            [(token, behind)] = next_states[state].items()
            if token < 0:  # a separator of two sequences
                break
            tokens.append(token)
            state = behind
        return tokens, state

    def check(self) -> None:
        """Assert the invariants that hold between calls (for tests)."""
        anew = SuffixAutomaton(self._tokens[: self.fixed])
        for token in self._tokens[self.fixed :]:
            anew.append(token)
        assert self._next == anew._next
        assert self._link == anew._link
        assert self._length == anew._length
        assert self._count == anew._count
        assert self._recent == anew._recent
        assert self._last == anew._last

    def _add(self, token: int, change: _Change | None) -> None:
        following, link = self._next, self._link
        self._tokens.append(token)
        current = self._new_state(len(self._tokens), {}, 0, 0)
        state = self._last
        while state != -1 and token not in following[state]:
            following[state][token] = current
            if change is not None:
                change.added.append(state)
            state = link[state]
        if state != -1:
            found = following[state][token]
            exactly = self._length[found] == self._length[state] + 1
            link[current] = found if exactly else self._split(state, token, change)
        self._last = current

    def _split(self, state: int, token: int, change: _Change | None) -> int:
        """Move the substrings of a state with the token to a state of their own; return it."""
        found = self._next[state][token]
        length, following = self._length[state] + 1, dict(self._next[found])
        clone = self._new_state(length, following, self._count[found], self._recent[found])
        self._link[clone], self._link[found] = self._link[found], clone
        redirected = []
        while state != -1 and self._next[state].get(token) == found:
            self._next[state][token] = clone
            redirected.append(state)
            state = self._link[state]
        if change is not None:
            change.clone, change.of, change.redirected = clone, found, redirected
        return clone

    def _new_state(self, length: int, following: dict[int, int], count: int, recent: int) -> int:
        self._next.append(following)
        self._link.append(START)
        self._length.append(length)
        self._count.append(count)
        self._recent.append(recent)
        return len(self._next) - 1

    def _count_places(self) -> None:
        """Count the occurrences of all states at once: each includes those of its link children."""
        count, recent, length = self._count, self._recent, self._length
        state = START
        for place, token in enumerate(self._tokens, 1):
            state = self._next[state][token]  # the state of the whole prefix
            count[state], recent[state] = 1, place
        for state in sorted(range(1, len(length)), key=length.__getitem__, reverse=True):
            link = self._link[state]
            if link != START:
                count[link] += count[state]
                recent[link] = max(recent[link], recent[state])

    def _take_back(self, change: _Change) -> None:
        token = self._tokens.pop()
        for state, recent in change.climbed:
            self._count[state] -= 1
            self._recent[state] = recent
        for state in change.added:
            del self._next[state][token]
        if change.clone is not None:
            self._link[change.of] = self._link[change.clone]
            for state in change.redirected:
                self._next[state][token] = change.of
        states = len(self._next) - 1 - (change.clone is not None)
        for column in (self._next, self._link, self._length, self._count, self._recent):
            del column[states:]
        self._last = change.last
