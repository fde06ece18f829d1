"""Fakes for tests of retrieval pipelines, without a model or an index.

Public: use them to test your own workloads, retrievers and speculators.
"""

from collections.abc import Hashable, Sequence
from typing import TypeAlias

from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.types import Hit, Hits, Passage, Query, Request


class WordRetriever:
    """Ranks passages by the number of words they share with the query, ties by passage id.

    Exact, poolable, and wide: what a real retriever of this package offers.

    >>> hits = WordRetriever(["red fox", "fox"]).search([Query("red")])[0]
    >>> [hit.passage.text for hit in hits]
    ['red fox']
    """

    inline_encode = True

    def __init__(self, texts: Sequence[str], k: int = 1) -> None:
        """Create one passage of each text, with the ids `p0`, `p1`, ..."""
        self.passages = [Passage(f"p{number}", text) for number, text in enumerate(texts)]
        self.k = k
        self.signature: Hashable = ("words", tuple(texts), k)
        self.searched: list[tuple[str, ...]] = []  # the received batches

    def encode(self, text: str) -> Query:
        """Return the query of a text, without an encoding."""
        return Query(text)

    def search(self, queries: Sequence[Query]) -> list[Hits]:
        """Return the best k passages of each query."""
        return self.search_wide(queries, self.k)

    def search_wide(self, queries: Sequence[Query], width: int) -> list[Hits]:
        """Return the best `width` passages of each query."""
        self.searched.append(tuple(query.text for query in queries))
        return [self._ranked(query)[:width] for query in queries]

    def score(self, query: Query, passage: Passage) -> float:
        """Return the number of shared words."""
        return float(len(set(query.text.split()) & set(passage.text.split())))

    def table(self, capacity: int) -> "WordTable":
        """Return a passage table with the same ranking."""
        return WordTable(self, capacity)

    def _ranked(self, query: Query) -> Hits:
        hits = [Hit(passage, self.score(query, passage)) for passage in self.passages]
        return tuple(sorted(hits, key=lambda hit: (-(hit.score or 0.0), hit.passage.id)))


class WordTable:
    """Ranks cached passages as `WordRetriever` does."""

    def __init__(self, retriever: WordRetriever, capacity: int) -> None:
        """Create an empty table."""
        self._retriever = retriever
        self._passages: list[Passage | None] = [None] * capacity

    def put(self, slot: int, hit: Hit) -> None:
        """Store a passage."""
        self._passages[slot] = hit.passage

    def rank(self, query: Query, slots: Sequence[int], k: int) -> list[tuple[int, float]]:
        """Return the best k of these slots."""
        ranked = []
        for slot in slots:
            passage = self._passages[slot]
            assert passage is not None
            ranked.append((-self._retriever.score(query, passage), passage.id, slot))
        return [(slot, -score) for score, _, slot in sorted(ranked)[:k]]


Lines: TypeAlias = tuple[tuple[str, ...], tuple[str, ...]]  # words to look up, lines written


class EchoWorkload:
    """Answers each word of the prompt with the text of its best passage, one per line."""

    inline_query = True
    reads_scores = False

    def start(self, request: Request) -> Lines:
        """Return a state with all words left and no text."""
        return tuple(request.prompt.split()), ()

    def query(self, state: Lines) -> str | None:
        """Return the next word."""
        words, _ = state
        return words[0] if words else None

    def extend(self, state: Lines, hits: Hits, progress: Progress) -> Lines:
        """Append the text of the best passage."""
        words, lines = state
        return words[1:], (*lines, *(hit.passage.text for hit in hits[:1]))

    def text(self, state: Lines) -> str:
        """Return the lines."""
        return "\n".join(state[1])

    def settled(self, state: Lines) -> str:
        """Return all of the text."""
        return self.text(state)

    def query_key(self, state: Lines) -> Hashable:
        """Return the words that are left."""
        return state[0]

    def extend_key(self, state: Lines, hits: Hits) -> Hashable:
        """Return the whole state and the hits."""
        return state, hits

    def release(self, state: Lines) -> None:
        """Do nothing: no memory is used."""
