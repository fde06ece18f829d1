"""Workloads and stores that wait or compute for a given time, and follow from what they are given.

What waits is labelled so: the time is a model's or a store's on another machine.
"""

import hashlib
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.testing import WordRetriever
from ralmspec_plugins.testing.fakes import WordTable
from ralmspec_plugins.types import Hit, Hits, Passage, Query
from ralmspec_plugins.workloads import TextState, TextWorkload

SLICE_S: Final = 0.005  # after which a model that waits notices that it is not needed
WORDS: Final = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron")
_MATRIX: Final = np.random.default_rng(0).standard_normal((192, 192))


def digest(*seen: object) -> int:
    """Return a number that only depends on its arguments."""
    return int.from_bytes(
        hashlib.blake2b("\0".join(map(str, seen)).encode(), digest_size=6).digest()
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How long a segment takes.

    Args:
        wait_s: seconds that are waited.
        products: products of two matrices that are computed.
        stops: whether a segment that is not needed stops before its end.
    """

    wait_s: float = 0.0
    products: int = 0
    stops: bool = True

    def spend(self, progress: Progress) -> None:
        """Take the time of one segment.

        Raises:
            Cancelled: it is no longer needed, and stops.
        """
        end_s = time.perf_counter() + self.wait_s
        while (left_s := end_s - time.perf_counter()) > 0:
            time.sleep(min(SLICE_S, left_s) if self.stops else left_s)
            if self.stops:
                progress.check()
        for _ in range(self.products):
            _MATRIX @ _MATRIX
            if self.stops:
                progress.check()


class Looking(TextWorkload[TextState]):
    """Asks about a word of the prompt, then about what it has read, for so many steps."""

    def __init__(self, steps: int, pace: Pace, *, drifting: bool = False) -> None:
        """Create a workload.

        Args:
            steps: searches of a request.
            pace: of its segments.
            drifting: whether the question depends on what was read last; else each word of the
                prompt is looked up, again and again.
        """
        self._steps, self._pace, self._drifting = steps, pace, drifting

    def query(self, state: TextState) -> str | None:
        """Return the next question, or `None` after the last step."""
        lines = state.text.splitlines()
        if len(lines) >= self._steps:
            return None
        if self._drifting and lines:
            return f"{lines[-1]} {len(lines)}"
        words = state.request.prompt.split()
        return f"{words[len(lines) % len(words)]} {len(lines)}"

    def extend(self, state: TextState, hits: Hits, progress: Progress) -> TextState:
        """Append the words of the best passage, turned by a die."""
        self._pace.spend(progress)
        words = hits[0].passage.text.split() if hits else ["nothing"]
        turn = digest(state.text, *words) % len(words)
        return state.append(" ".join(words[turn:] + words[:turn])[:60].strip() + "\n")


class FarStore:
    """A `WordRetriever` that waits, with an encoder that waits; any number at once."""

    inline_encode = False
    encode_lanes = 8

    def __init__(
        self, texts: Sequence[str], *, search_s: float, encode_s: float = 0.0, k: int = 1
    ) -> None:
        """Put passages of these texts into a store so far away."""
        self._store = WordRetriever(texts, k)
        self._search_s, self._encode_s = search_s, encode_s
        self.k = k
        self.signature: Hashable = ("far", self._store.signature, search_s, encode_s)

    def encode(self, text: str) -> Query:
        """Return the query of a text, after the time of its encoding."""
        if self._encode_s:
            time.sleep(self._encode_s)
        return self._store.encode(text)

    def search(self, queries: Sequence[Query]) -> list[Hits]:
        """Return the best k passages of each query, after one round trip."""
        return self.search_wide(queries, self.k)

    def search_wide(self, queries: Sequence[Query], width: int) -> list[Hits]:
        """Return the best `width` passages of each query, after one round trip."""
        time.sleep(self._search_s)
        return self._store.search_wide(queries, width)

    def table(self, capacity: int) -> WordTable:
        """Return a passage table with the same ranking."""
        return self._store.table(capacity)


class WrongGuesses:
    """Guesses a passage that is nowhere in the store."""

    inline = True

    def guess(self, query: Query) -> Hits:
        """Return what no search finds."""
        return (Hit(Passage("none", "nothing of the kind"), 0.0),)

    def learn(self, query: Query, hits: Hits) -> None:
        """Do nothing."""


def article_texts(count: int, *, repeated: int = 1) -> list[str]:
    """Return texts of eight words, of which each stands there so many times."""
    different = [
        " ".join(f"{WORDS[(n + at) % 8]}{digest(n, at) % 40}" for at in range(8))
        for n in range(count // repeated)
    ]
    return [text for text in different for _ in range(repeated)]
