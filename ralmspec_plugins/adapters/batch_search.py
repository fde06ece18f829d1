"""Native batch search of vector stores: the adapter protocol, and a registry of adapters.

Hosts' own batch methods do not batch (they run single calls in threads, if they
exist), so each store has a small adapter for exactly known classes and
settings. All other retrievers are searched through the host, query by query.
"""

import logging
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final, Generic, Literal, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from ralmspec_plugins.adapters.fingerprint import overridden, patched, qualified_name
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.speculators.proxy import Bm25ProxyTable
from ralmspec_plugins.types import Hit, Query

# Ranks cached passages by the host's vectors if they are known, and by words otherwise.


Metric: TypeAlias = Literal["cosine", "ip", "l2"]
Floats: TypeAlias = NDArray[np.float64]
# Converts the metric's value (a cosine, a product, or a squared distance) to the host's score.
ScoreOf: TypeAlias = Callable[[float], float]
_TINY: Final = 1e-300  # the cosine of a zero vector is 0, as in hosts, not NaN


class HostTable:
    """The passage table of a host's store.

    It ranks with the store's metric as long as every passage and the query have a
    vector; after the first one without, it ranks by words. A wrong ranking
    (such as of ties) costs a guess, and never changes the answer.

    If the host's conversion of scores is known, guesses have such scores, correct up to the
    last bits: components that read scores after a retriever receive sensible values. Ranked
    by words, scores are NaN.
    """

    def __init__(
        self,
        metric: Metric | None,
        vector_of: Callable[[Hit], Any],
        query_vector_of: Callable[[Query], Any],
        score_of: ScoreOf | None = None,
        kept: Callable[[Hit], Hit] | None = None,
    ) -> None:
        """Create an empty table.

        Args:
            metric: the store's metric; `None`: rank by words.
            vector_of: returns a passage's vector, or `None`.
            query_vector_of: returns a query's vector, or `None`.
            score_of: converts to the host's scores; `None`: there is no known conversion.
            kept: returns the part of a hit that is cached; `None`: the whole hit.
        """
        if kept is not None:
            self.kept = kept
        self.scored = score_of is not None
        self._score_of = score_of
        self._metric = metric
        self._vector_of = vector_of
        self._query_vector_of = query_vector_of
        self._hits: dict[int, Hit] = {}
        self._vectors: Floats = np.zeros((0, 0))
        self._squares: Floats = np.zeros(0)
        self._words: Bm25ProxyTable | None = None

    def put(self, slot: int, hit: Hit) -> None:
        """Store a passage in a slot, replacing the previous one."""
        self._hits[slot] = hit
        if self._words is not None:
            self._words.put(slot, hit)
        elif self._metric is None or not self._keep(slot, self._vector_of(hit)):
            self._by_words()

    def rank(self, query: Query, slots: Sequence[int], k: int) -> list[tuple[int, float]]:
        """Return the best k of these slots, best first, ties by passage id."""
        vector = None if self._words is not None else self._query_vector_of(query)
        if vector is None:
            ranked = self._by_words().rank(query, slots, k)
            return [(slot, math.nan) for slot, _ in ranked] if self.scored else ranked
        asked: Floats = np.asarray(vector, dtype=np.float64)
        scores = self._scores(asked, np.asarray(slots))
        best = np.argsort(-scores, kind="stable")[: k + 1]  # one more, to detect a tie at the end
        if len(best) > k and scores[best[k - 1]] == scores[best[k]]:
            best = np.flatnonzero(scores >= scores[best[k]])
        found = [(slots[at], float(scores[at])) for at in best.tolist()]
        ranked = sorted(found, key=lambda pair: (-pair[1], self._hits[pair[0]].passage.id))[:k]
        if self._score_of is None:
            return ranked
        return [(slot, self._shown(score, asked, self._score_of)) for slot, score in ranked]

    def _shown(self, score: float, query: Floats, score_of: ScoreOf) -> float:
        """Convert a ranking score, which omits the query's norm, to the host's score."""
        square = float(query @ query)
        if self._metric == "l2":
            return score_of(max(square - score, 0.0))
        if self._metric == "cosine":
            return score_of(score / math.sqrt(max(square, _TINY)))
        return score_of(score)

    def _keep(self, slot: int, vector: Any) -> bool:
        """Store a vector; return whether it is one."""
        if vector is None:
            return False
        row: Floats = np.asarray(vector, dtype=np.float64)
        if row.ndim != 1 or (len(self._vectors) and row.shape != self._vectors.shape[1:]):
            return False
        if not np.isfinite(row).all():
            return False
        if slot >= len(self._vectors):
            grown = np.zeros((max(64, 2 * slot), len(row)))
            squares = np.zeros(len(grown))
            if len(self._vectors):
                grown[: len(self._vectors)] = self._vectors
                squares[: len(self._squares)] = self._squares
            self._vectors, self._squares = grown, squares
        self._vectors[slot] = row
        self._squares[slot] = row @ row
        return True

    def _scores(self, query: Floats, slots: NDArray[np.int64]) -> Floats:
        products: Floats = self._vectors[slots] @ query
        if self._metric == "ip":
            return products
        if self._metric == "l2":
            return 2 * products - self._squares[slots]
        return products / np.sqrt(np.maximum(self._squares[slots], _TINY))

    def _by_words(self) -> Bm25ProxyTable:
        """Switch to ranking by words, and return the table."""
        if self._words is None:
            self._words = Bm25ProxyTable()
            for slot, hit in self._hits.items():
                self._words.put(slot, hit)
            self._vectors, self._squares = np.zeros((0, 0)), np.zeros(0)
        return self._words


_log = logging.getLogger(__name__)

Vector: TypeAlias = Any  # as returned by the embedder: a list of floats, or an array [dim]


@dataclass(frozen=True, slots=True)
class Scored:
    """A document found by a batch search.

    `document` is the host's object, possibly the store's own: it must be copied before it
    becomes a hit. `vector` is the document's, if the store returns it
    cheaply: passage caches rank with it. `score` equals, to the bit, that of the host's
    single search; `None` if it is not available.
    """

    document: Any
    vector: Vector | None = None
    score: float | None = None


class BatchSearch(Protocol):
    """Searches many query vectors in one call, with the settings of one retriever.

    The documents are exactly those of the retriever's own single calls: order,
    content, metadata, ids. They may be the store's own objects; callers copy them.

    `name`: the store, for logs and the exactness table.
    `exact`: by construction a query's result does not depend on the batch; other adapters
    are used with `batch="probed"` only.
    `wide`: the first k of a wider search are exactly the search for k.
    `metric`: the metric of the documents' vectors, for passage caches; `None` if unknown.
    `k`: the number of documents by the retriever's settings.

    An adapter whose store has an asynchronous batch call also has `asearch`, with
    the same arguments; otherwise `search` runs in a thread. An adapter with a known
    conversion of scores also has `score_of`: guesses then have such scores.
    """

    @property
    def name(self) -> str:
        """The name of the store."""
        ...

    @property
    def exact(self) -> bool:
        """Whether a query's result is independent of its batch by construction."""
        ...

    @property
    def wide(self) -> bool:
        """Whether the first k of a wider search are exactly the search for k."""
        ...

    @property
    def metric(self) -> Metric | None:
        """The metric of the vectors, for passage caches."""
        ...

    @property
    def k(self) -> int:
        """The number of documents by the retriever's settings."""
        ...

    def search(self, vectors: Sequence[Vector], k: int) -> list[list[Scored]]:
        """Return the best k documents of each query vector, best first."""
        ...


_repeated: ContextVar[list[int] | None] = ContextVar("ralmspec_repeated", default=None)


@contextmanager
def counting_repeats() -> Iterator[list[int]]:
    """Collect the sizes of the calls of a store that `note_repeat` records in the body."""
    sizes: list[int] = []
    token = _repeated.set(sizes)
    try:
        yield sizes
    finally:
        _repeated.reset(token)


def note_repeat(queries: int) -> None:
    """Count a further call of a store for queries of the same batch, so that ties show."""
    sizes = _repeated.get()
    if sizes is not None:
        sizes.append(queries)


SearchT = TypeVar("SearchT")
Factory: TypeAlias = Callable[[Any], SearchT | None]


class Registry(Generic[SearchT]):
    """Maps store classes to factories of batch searches, for one host. Thread-safe.

    Sources are registered factories, those of the integration, and
    entry points of other packages, in this order.
    """

    def __init__(self, group: str, own: Mapping[str, str]) -> None:
        """Create a registry; factories are loaded on demand.

        Args:
            group: the group of entry points of other packages.
            own: "module:function", by the qualified names of the stores' classes.
        """
        self._group = group
        self._own = own
        self._lock = threading.RLock()
        self._factories: dict[str, Factory[SearchT] | None] = {}  # None: the class has none

    def register(self, class_name: str, factory: Factory[SearchT]) -> None:
        """Register the factory of batch searches for a store class.

        Args:
            class_name: "package.module.ClassName", so that no store has to be imported.
                Subclasses are excluded: they may change anything.
            factory: returns the batch search of a retriever, or `None` for unsupported
                settings, which are searched through the host.

        Raises:
            ConfigError: the name is not qualified.
        """
        if "." not in class_name.strip("."):
            raise ConfigError(
                f"class_name must be a qualified name such as 'package.module.ClassName', "
                f"got {class_name!r}"
            )
        with self._lock:
            self._factories[class_name] = factory

    def search_of(self, retriever: Any, store: object) -> SearchT | None:
        """Return the batch search that equals a retriever's own search, or `None`.

        The result is `None`, too, if methods of the retriever or its
        store are replaced: their effect is unknown.

        Args:
            retriever: the host's retriever, as the store's factory expects it.
            store: the vector store that it searches.
        """
        if any(overridden(one) or patched(type(one)) for one in (retriever, store)):
            return None
        name = qualified_name(type(store))
        factory = self._factory_of(name)
        if factory is None:
            return None
        try:
            return factory(retriever)
        except Exception:  # noqa: BLE001 the host's own search is the fallback
            _log.warning("the batch search of %s failed; it is not used again", name, exc_info=True)
            with self._lock:
                self._factories[name] = None
            return None

    def _factory_of(self, name: str) -> Factory[SearchT] | None:
        with self._lock:
            if name not in self._factories:
                loaded = map(self._loaded, self._sources(name))
                self._factories[name] = next(filter(None, loaded), None)
            return self._factories[name]

    def _sources(self, name: str) -> list[EntryPoint]:
        """Return the sources of a batch search for a class, the integration first."""
        own = [EntryPoint(name, self._own[name], self._group)] if name in self._own else []
        return [*own, *entry_points(group=self._group, name=name)]

    def _loaded(self, source: EntryPoint) -> Factory[SearchT] | None:
        try:
            factory: Factory[SearchT] = source.load()
        except Exception:  # noqa: BLE001 as above
            _log.warning("%s cannot be loaded; it is ignored", source, exc_info=True)
            return None
        return factory
