"""Proxy rankings for passage caches over retrievers whose metric is unknown.

A proxy decides only which passages are guessed, never what is verified: a bad
one lowers the acceptance rate, and never changes the answer.
"""

import math
import re
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ralmspec_plugins.types import Hit, Query

Vector: TypeAlias = NDArray[np.float64]

_WORD = re.compile(r"\w+")
_K1, _B = 0.9, 0.4  # Anserini's defaults


class ProxyTable(Protocol):
    """A `PassageTable` whose scores are not those of the search (`scored` is false)."""

    scored: bool

    def put(self, slot: int, hit: Hit) -> None:
        """Store a passage in a slot, replacing the previous one."""
        ...

    def rank(self, query: Query, slots: Sequence[int], k: int) -> list[tuple[int, float]]:
        """Return the best k of these slots, best first."""
        ...


class Bm25ProxyTable:
    """Ranks by BM25 of the query's text, with the cached passages as the corpus."""

    scored = False
    by_text = True

    def __init__(self) -> None:
        """Create an empty table."""
        self._hits: dict[int, Hit] = {}
        self._words: dict[int, Counter[str]] = {}
        self._holding: dict[str, set[int]] = {}  # word -> slots
        self._total = 0  # words in the cache

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
        """Return the best k by BM25, ties by passage id."""
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


class FallbackTable:
    """Ranks the passages of a retriever with an unknown metric by its earlier queries.

    If queries are encoded as vectors, the passages found by the nearest earlier queries come
    first, in their order. Otherwise passages are ranked by BM25. Nothing is indexed
    before the first guess.
    """

    scored = False
    _QUERIES = 256  # maximum number of earlier queries

    def __init__(self) -> None:
        """Create an empty table."""
        self._words = Bm25ProxyTable()
        self._unindexed: dict[int, Hit] = {}
        self._ids: dict[int, str] = {}
        self._found: deque[tuple[Vector, tuple[str, ...]]] = deque(maxlen=self._QUERIES)

    def put(self, slot: int, hit: Hit) -> None:
        """Store a passage in a slot."""
        self._ids[slot] = hit.passage.id
        self._unindexed[slot] = hit

    def learn(self, query: Query, hits: Sequence[Hit]) -> None:
        """Record which passages a query found."""
        vector = _vector(query)
        if vector is not None:
            self._found.append((vector, tuple(hit.passage.id for hit in hits)))

    def rank(self, query: Query, slots: Sequence[int], k: int) -> list[tuple[int, float]]:
        """Return the best k; their scores have no meaning."""
        vector = _vector(query)
        if vector is not None and self._found:
            return self._by_vectors(vector, slots, k)
        for slot, hit in self._unindexed.items():
            self._words.put(slot, hit)
        self._unindexed.clear()
        return self._words.rank(query, slots, k)

    def _by_vectors(self, vector: Vector, slots: Sequence[int], k: int) -> list[tuple[int, float]]:
        slot_of = {self._ids[slot]: slot for slot in slots}
        near = [
            float(former @ vector) if former.shape == vector.shape else -math.inf
            for former, _ in self._found
        ]
        best: dict[int, float] = {}
        for at in sorted(range(len(near)), key=lambda at: (-near[at], -at)):
            for identity in self._found[at][1]:
                if identity in slot_of:
                    best.setdefault(slot_of[identity], near[at])
            if len(best) >= k:
                break
        for slot in slots:  # cached, but found by no recorded query
            best.setdefault(slot, -math.inf)
        return list(best.items())[:k]


def _vector(query: Query) -> Vector | None:
    """Return a query's encoding, normalised, if it is a vector."""
    encoding = query.encoding
    if isinstance(encoding, np.ndarray):
        if encoding.ndim != 1 or encoding.dtype.kind not in "fiu":
            return None
    elif not isinstance(encoding, list | tuple) or not (
        encoding and all(isinstance(number, float | int) for number in encoding)
    ):
        return None
    vector = np.asarray(encoding, dtype=np.float64)
    return vector / (float(np.linalg.norm(vector)) or 1.0)


class EmbeddingProxyTable:
    """Ranks by the inner product of embeddings that the caller provides cheaply."""

    scored = False

    def __init__(
        self, embed_query: Callable[[Query], ArrayLike], embedding_of: Callable[[Hit], ArrayLike]
    ) -> None:
        """Create an empty table.

        Args:
            embed_query: returns a query's vector, ideally from its existing encoding.
            embedding_of: returns a passage's vector, ideally from its metadata or a look-up.
        """
        self._embed_query = embed_query
        self._embedding_of = embedding_of
        self._ids: dict[int, str] = {}
        self._vectors = np.zeros((0, 0), dtype=np.float32)

    def put(self, slot: int, hit: Hit) -> None:
        """Store a passage's vector."""
        vector = np.asarray(self._embedding_of(hit), dtype=np.float32)
        if slot >= len(self._vectors):
            grown = np.zeros((max(64, 2 * slot), len(vector)), dtype=np.float32)
            if len(self._vectors):
                grown[: len(self._vectors)] = self._vectors
            self._vectors = grown
        self._vectors[slot] = vector
        self._ids[slot] = hit.passage.id

    def rank(self, query: Query, slots: Sequence[int], k: int) -> list[tuple[int, float]]:
        """Return the best k by inner product, ties by passage id."""
        chosen = list(slots)
        vector = np.asarray(self._embed_query(query), dtype=np.float32)
        scores = (self._vectors[chosen] @ vector).tolist()
        found = sorted(
            zip(chosen, scores, strict=True), key=lambda pair: (-pair[1], self._ids[pair[0]])
        )
        return found[:k]
