"""A workload that asks for the number of each step, and guessers that are right at some steps."""

import zlib
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from ralmspec_plugins import Hit, Hits, Passage, Query, Request
from ralmspec_plugins.protocols import Progress

Numbers: TypeAlias = tuple[str, ...]


class Numbering:
    """Asks for the number of each step, and writes what it is given.

    With its number a query has a digest of all that was written, so that one behind a wrong guess
    is another query, as in a real text.
    """

    inline_query = True
    reads_scores = False

    def __init__(self, steps: int) -> None:
        """Create a workload of so many steps."""
        self._steps = steps

    def start(self, request: Request) -> Numbers:
        """Return the empty state."""
        return ()

    def query(self, state: Numbers) -> str | None:
        """Return the number of the step, and a digest of the text."""
        if len(state) >= self._steps:
            return None
        return f"{len(state)} {zlib.crc32(self.text(state).encode())}"

    def extend(self, state: Numbers, hits: Hits, progress: Progress) -> Numbers:
        """Append the passage's id."""
        return (*state, hits[0].passage.id)

    def text(self, state: Numbers) -> str:
        """Return the ids."""
        return ",".join(state)

    def settled(self, state: Numbers) -> str:
        """Return all ids."""
        return self.text(state)

    def query_key(self, state: Numbers) -> Hashable:
        """Return the state."""
        return state

    def extend_key(self, state: Numbers, hits: Hits) -> Hashable:
        """Return the state and the hits."""
        return state, hits

    def release(self, state: Numbers) -> None:
        """Do nothing."""


class NumberStore:
    """Finds the passage with the number; encodes in a worker."""

    inline_encode = False
    encode_lanes = 8
    signature = "numbers"

    def encode(self, text: str) -> Query:
        """Return the query."""
        return Query(text)

    def search(self, queries: Sequence[Query]) -> list[Hits]:
        """Return each query's passage."""
        return [(Hit(Passage(query.text, ""), None),) for query in queries]


@dataclass(frozen=True)
class Guesser:
    """Is right at some steps."""

    by_text: bool
    right: Callable[[int], bool]
    inline: bool = True

    def guess(self, query: Query) -> Hits:
        """Return the passage, or another one."""
        found = query.text if self.right(int(query.text.split()[0])) else "another"
        return (Hit(Passage(found, ""), None),)

    def learn(self, query: Query, hits: Hits) -> None:
        """Do nothing."""
