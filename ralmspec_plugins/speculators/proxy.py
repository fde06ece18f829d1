"""Stand-in rankings for pools over retrievers whose metric is not known.

A proxy decides only which passages are guessed, never what is verified: a bad
one costs hits, not truth.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from ralmspec_plugins.types import Hit, Query

_WORD = re.compile(r"\w+")
_K1, _B = 0.9, 0.4  # Anserini's defaults


class ProxyTable(Protocol):
    """A `PassageTable` whose scores are its own, and so never shown (`scored` is false)."""

    scored: bool

    def put(self, slot: int, hit: Hit) -> None:
        """Remember a passage under a slot number, over whatever was there."""
        ...

    def rank(self, query: Query, slots: Sequence[int], k: int) -> list[tuple[int, float]]:
        """Give the best k of these slots, best first."""
        ...


class Bm25ProxyTable:
    """Ranks by BM25 between the query's text and the pool's, with the pool as the corpus."""

    scored = False

    def __init__(self) -> None:
        """Start empty; grows with the pool."""
        self._hits: dict[int, Hit] = {}
        self._words: dict[int, Counter[str]] = {}
        self._holding: dict[str, set[int]] = {}  # word -> slots
        self._total = 0  # words in the pool

    def put(self, slot: int, hit: Hit) -> None:
        """Index a passage's words."""
        self._remove(slot)
        words = Counter(_WORD.findall(f"{hit.passage.title} {hit.passage.text}".lower()))
        self._hits[slot] = hit
        self._words[slot] = words
        self._total += words.total()
        for word in words:
            self._holding.setdefault(word, set()).add(slot)

    def _remove(self, slot: int) -> None:
        old = self._words.pop(slot, Counter())
        self._total -= old.total()
        for word in old:
            holding = self._holding[word]
            holding.discard(slot)
            if not holding:
                del self._holding[word]

    def rank(self, query: Query, slots: Sequence[int], k: int) -> list[tuple[int, float]]:
        """Give the best k by BM25, ties by passage id."""
        scores = dict.fromkeys(slots, 0.0)
        count = len(self._words)
        average = self._total / count if count else 0.0
        for word in _WORD.findall(query.text.lower()):
            holding = self._holding.get(word, set())
            idf = math.log(1 + (count - len(holding) + 0.5) / (len(holding) + 0.5))
            for slot in holding:
                if slot in scores:
                    words = self._words[slot]
                    norm = _K1 * (1 - _B + _B * words.total() / average)
                    scores[slot] += idf * words[word] / (words[word] + norm)
        ranked = sorted(scores.items(), key=lambda pair: (-pair[1], self._hits[pair[0]].passage.id))
        return ranked[:k]


class EmbeddingProxyTable:
    """Ranks by the inner product of embeddings that the caller can give cheaply."""

    scored = False

    def __init__(
        self, embed_query: Callable[[Query], ArrayLike], embedding_of: Callable[[Hit], ArrayLike]
    ) -> None:
        """Start empty.

        Args:
            embed_query: gives a query's vector, best from an encoding already made.
            embedding_of: gives a passage's, best from its metadata or a look-up.
        """
        self._embed_query = embed_query
        self._embedding_of = embedding_of
        self._ids: dict[int, str] = {}
        self._vectors = np.zeros((0, 0), dtype=np.float32)

    def put(self, slot: int, hit: Hit) -> None:
        """Remember a passage's vector."""
        vector = np.asarray(self._embedding_of(hit), dtype=np.float32)
        if slot >= len(self._vectors):
            grown = np.zeros((max(64, 2 * slot), len(vector)), dtype=np.float32)
            if len(self._vectors):
                grown[: len(self._vectors)] = self._vectors
            self._vectors = grown
        self._vectors[slot] = vector
        self._ids[slot] = hit.passage.id

    def rank(self, query: Query, slots: Sequence[int], k: int) -> list[tuple[int, float]]:
        """Give the best k by inner product, ties by passage id."""
        chosen = list(slots)
        vector = np.asarray(self._embed_query(query), dtype=np.float32)
        scores = (self._vectors[chosen] @ vector).tolist()
        found = sorted(
            zip(chosen, scores, strict=True), key=lambda pair: (-pair[1], self._ids[pair[0]])
        )
        return found[:k]
