"""Approximate dense search with FAISS: HNSW and IVF indexes, in batches that change nothing."""

import hashlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import isqrt
from statistics import median_low
from typing import Any, Protocol, Self, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from ralmspec_plugins.errors import ConfigError, IndexFileError, InputError
from ralmspec_plugins.retrieval.artifacts import IndexArtifacts
from ralmspec_plugins.retrieval.dense import DenseCorpus, DenseTable
from ralmspec_plugins.retrieval.encoders import Encoder
from ralmspec_plugins.retrieval.optional import optional
from ralmspec_plugins.retrieval.ranking import IntArray, Metric, Vectors
from ralmspec_plugins.retrieval.storage.corpus import check_k
from ralmspec_plugins.types import Hits, Passage, Query

# Of several ways to the same result, take the one that was measured to be the fastest.


ResultT = TypeVar("ResultT")

_TRIALS = 3  # of each way before one is preferred: one cold or disturbed run must not decide
_RECENT = 5  # measurements of a way that are kept
_AGAIN = 50  # works after which another way is tried once more: load and machine change


class Autotuner:
    """Learns, for each size of work, which way takes the least time. Thread-safe.

    Sizes are taken together by powers of two (2, 3 to 4, 5 to 8, ...). All ways must
    give the same result: which one is taken depends on the clock.

    >>> ways = Autotuner()
    >>> {ways.do(2, {"once": lambda: 4, "twice": lambda: 2 + 2}) for _ in range(20)}
    {4}
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        """Start with nothing measured."""
        self._clock = clock
        self._measured: dict[tuple[int, str], deque[float]] = {}
        self._works: dict[int, int] = {}
        self._lock = threading.Lock()

    def do(self, size: int, ways: Mapping[str, Callable[[], ResultT]]) -> ResultT:
        """Do a work of this size in one of these ways, and measure it."""
        group = (size - 1).bit_length()
        with self._lock:
            works = self._works[group] = self._works.get(group, 0) + 1
            name = self._choice(group, list(ways), works)
        started = self._clock()
        result = ways[name]()
        seconds = self._clock() - started
        with self._lock:
            measured = self._measured.setdefault((group, name), deque(maxlen=_RECENT))
            measured.append(seconds / size)
        return result

    def best(self, size: int) -> str | None:
        """Give the way that is the fastest so far for works of this size."""
        with self._lock:
            return self._best((size - 1).bit_length())

    def _best(self, group: int) -> str | None:
        seconds = {way: median_low(m) for (of, way), m in self._measured.items() if of == group}
        return min(seconds, key=seconds.__getitem__) if seconds else None

    def _choice(self, group: int, names: list[str], works: int) -> str:
        """Try each way in turn, then take the best, now and then another one."""
        if works <= _TRIALS * len(names):
            return names[(works - 1) % len(names)]
        if works % _AGAIN == 0:
            return names[works // _AGAIN % len(names)]
        return self._best(group) or names[0]


# Ask an HNSW or IVF index for a batch of queries, so that the batch changes nothing.
#
# HNSW goes through its graph once a query anyway, and IVF's nearest lists are asked
# for one query at a time (FAISS would take a matrix product for many, with other last
# bits, so other lists). Whether several queries are then searched by one call, one
# after the other, or on several threads, is decided by what each way was measured to
# take.


RankedT = TypeVar("RankedT")
Nearest: TypeAlias = tuple[Vectors, IntArray]  # FAISS's scores and rows, -1 where it found fewer
Rank: TypeAlias = Callable[[Vectors, Vectors, IntArray], RankedT]  # of one query, and its own


class IndexQueries:
    """Finds an index's nearest rows, each query's independent of its batch. Thread-safe."""

    def __init__(self, faiss: Any, index: Any) -> None:
        """Ask this index."""
        self.index = index
        self.ways = Autotuner()
        self._faiss = faiss
        self._by_lists = isinstance(index, faiss.IndexIVF)
        self._by_graph = isinstance(index, faiss.IndexHNSW)
        self._threads = ThreadPoolExecutor(
            os.cpu_count() or 1, thread_name_prefix="faiss-approximate"
        )

    def ranked(self, queries: Vectors, count: int, rank: Rank[RankedT]) -> list[RankedT]:
        """Find `count` rows for each query and rank them, in the way that is fastest.

        Args:
            queries: one a row.
            count: rows to find for each.
            rank: makes of a query, FAISS's scores and its rows what is wanted; called on
                several threads at once where that is faster.
        """
        if len(queries) == 1:
            return self.at_once(queries, count, rank)
        ways = {"batch": self.at_once, "singly": self.singly, "threads": self.on_threads}
        return self.ways.do(
            len(queries), {name: partial(way, queries, count, rank) for name, way in ways.items()}
        )

    def nearest(self, queries: Vectors, count: int) -> Nearest:
        """Search by one call.  # [queries, count], both.

        Along a graph with a list of candidates that is at least as long as what is looked
        for: FAISS would stop sooner, and of 1,024 with a list of 64 find half.
        """
        if self._by_graph:
            candidates = max(self.index.hnsw.efSearch, count)
            longer = self._faiss.SearchParametersHNSW(efSearch=candidates)
            return _pair(self.index.search(queries, count, params=longer))
        if not self._by_lists:
            return _pair(self.index.search(queries, count))
        probes = self.index.nprobe
        near = [self.index.quantizer.search(query[None], probes) for query in queries]
        far = np.concatenate([distances for distances, _ in near])
        lists = np.concatenate([numbers for _, numbers in near])
        return _pair(self.index.search_preassigned(queries, count, lists, far))

    def at_once(self, queries: Vectors, count: int, rank: Rank[RankedT]) -> list[RankedT]:
        """Search by one call, then rank."""
        return list(map(rank, queries, *self.nearest(queries, count)))

    def singly(self, queries: Vectors, count: int, rank: Rank[RankedT]) -> list[RankedT]:
        """Search and rank one after the other."""
        return [self._one(query, count, rank) for query in queries]

    def on_threads(self, queries: Vectors, count: int, rank: Rank[RankedT]) -> list[RankedT]:
        """Search and rank on several threads, one query each at a time."""
        return list(self._threads.map(lambda query: self._one(query, count, rank), queries))

    def _one(self, query: Vectors, count: int, rank: Rank[RankedT]) -> RankedT:
        return self.at_once(query[None], count, rank)[0]


def _pair(found: Any) -> Nearest:
    scores, rows = found
    return scores, rows


def write_to(faiss: Any, index: Any, write: Callable[[bytes], Any]) -> None:
    """Write an index piece by piece, so that there is no second one in memory."""
    faiss.write_index(index, faiss.PyCallbackIOWriter(write))


def index_digest(faiss: Any, index: Any) -> str:
    """Digest an index: two graphs over the same vectors may answer differently."""
    digest = hashlib.sha256()
    write_to(faiss, index, digest.update)
    return digest.hexdigest()[:32]


# How approximate FAISS indexes are made: settings that are checked, and saved with the index.


_POINTS_PER_LIST = 39  # below this FAISS warns that k-means has too little to learn from


class IndexRecipe(Protocol):
    """The settings of an approximate index, and how to make it."""

    @property
    def name(self) -> str:
        """What the table of backends calls it."""
        ...

    def settings(self) -> dict[str, int | None]:
        """Give the settings by name."""
        ...

    def candidates(self, k: int) -> int:
        """Say how many rows the index is asked for, where k hits are wanted."""
        ...

    def make(self, faiss: Any, corpus: DenseCorpus, kind: int) -> Any:
        """Make an untrained, empty index for a corpus."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Hnsw:
    """A navigable graph. Defaults: FAISS's own, but a search list of 64 for recall 0.99."""

    links: int = 32
    build_list: int = 40
    search_list: int = 64

    def __post_init__(self) -> None:
        """Refuse settings that make no graph."""
        _at_least_one(self)

    @property
    def name(self) -> str:
        """What the table of backends calls it."""
        return "faiss-hnsw"

    def settings(self) -> dict[str, int | None]:
        """Give the settings by name."""
        return asdict(self)

    def candidates(self, k: int) -> int:
        """Ask for the hits themselves, since the index knows the vectors."""
        return k

    def make(self, faiss: Any, corpus: DenseCorpus, kind: int) -> Any:
        """Make an empty graph."""
        index = faiss.IndexHNSWFlat(corpus.dimension, self.links, kind)
        index.hnsw.efConstruction = self.build_list
        index.hnsw.efSearch = self.search_list
        return index


@dataclass(frozen=True, slots=True, kw_only=True)
class Ivf:
    """Lists around cluster centres, of which the nearest `probes` are searched."""

    lists: int | None = None  # None: 4 sqrt(passages), as FAISS's guidelines advise
    probes: int = 8

    def __post_init__(self) -> None:
        """Refuse settings that search nothing."""
        _at_least_one(self)

    @property
    def name(self) -> str:
        """What the table of backends calls it."""
        return "faiss-ivf"

    def settings(self) -> dict[str, int | None]:
        """Give the settings by name."""
        return asdict(self)

    def candidates(self, k: int) -> int:
        """Ask for the hits themselves, since the index knows the vectors."""
        return k

    def make(self, faiss: Any, corpus: DenseCorpus, kind: int) -> Any:
        """Make empty lists."""
        centres = faiss.IndexFlat(corpus.dimension, kind)
        lists = _lists(self.lists, corpus.size)
        return _probing(faiss.IndexIVFFlat(centres, corpus.dimension, lists, kind), self.probes)


@dataclass(frozen=True, slots=True, kw_only=True)
class IvfPq:
    """Lists of product-quantised vectors: the smallest index, and the roughest.

    Quantised, near passages look alike: so the index is asked for `refine` times k
    rows, and the best k by their exact scores are the hits (FAISS's own IndexRefine
    calls it `k_factor`). That is a setting of the index, the same in every search.
    """

    lists: int | None = None
    probes: int = 8
    pieces: int = 16  # a vector is stored in as many bytes; must divide the dimension
    refine: int = 16  # on MiniLM vectors, k = 4: recall 0.92 for 0.14 ms; 1: 0.49 for 0.10 ms

    def __post_init__(self) -> None:
        """Refuse settings that search nothing."""
        _at_least_one(self)

    @property
    def name(self) -> str:
        """What the table of backends calls it."""
        return "faiss-ivfpq"

    def settings(self) -> dict[str, int | None]:
        """Give the settings by name."""
        return asdict(self)

    def candidates(self, k: int) -> int:
        """Ask for more than the hits, to choose from by exact scores."""
        return k * self.refine

    def make(self, faiss: Any, corpus: DenseCorpus, kind: int) -> Any:
        """Make empty lists."""
        if corpus.dimension % self.pieces:
            raise ConfigError(
                f"pieces must divide the dimension {corpus.dimension}, got {self.pieces}"
            )
        if corpus.size < 256:
            raise InputError(
                f"product quantisation needs at least 256 passages to learn from, got "
                f"{corpus.size}; use Ivf or Hnsw"
            )
        centres = faiss.IndexFlat(corpus.dimension, kind)
        lists = _lists(self.lists, corpus.size)
        index = faiss.IndexIVFPQ(centres, corpus.dimension, lists, self.pieces, 8, kind)
        index.pq.cp.min_points_per_centroid = 1
        return _probing(index, self.probes)


RECIPES: dict[str, Callable[..., IndexRecipe]] = {
    "faiss-hnsw": Hnsw,
    "faiss-ivf": Ivf,
    "faiss-ivfpq": IvfPq,
}


def _at_least_one(recipe: IndexRecipe) -> None:
    for name, value in recipe.settings().items():
        if value is not None and value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}")


def _lists(wanted: int | None, size: int) -> int:
    return min(wanted or max(1, min(4 * isqrt(size), size // _POINTS_PER_LIST)), size)


def _probing(index: Any, probes: int) -> Any:
    index.nprobe = min(probes, index.nlist)
    index.cp.min_points_per_centroid = 1  # else FAISS warns on stderr for small corpora
    return index


def _faiss() -> Any:
    return optional("faiss", "faiss", "faiss-cpu")


class FaissApproximate:
    """Search in an HNSW or IVF index: fast, and now and then not the best passages.

    What is verified comes from a search with this k and these settings. A wider
    search may start with other hits, so there is none (this is no `WideRetriever`).
    What the index returns is scored exactly and ordered as everywhere.
    A query's hits do not depend on its batch (see `IndexQueries`).
    """

    exact = False
    pure = True

    def __init__(
        self,
        corpus: DenseCorpus,
        index: Any,
        recipe: IndexRecipe,
        *,
        k: int = 1,
        digest: str | None = None,
    ) -> None:
        """Search an index that holds exactly the corpus's vectors, in order.

        Args:
            corpus: the passages and their vectors.
            index: FAISS's index of them.
            recipe: how it was made.
            k: how many passages a query gets.
            digest: the index's, where storage knows it already.

        Raises:
            IndexFileError: the index holds something else.
        """
        self._faiss = _faiss()
        if (index.ntotal, index.d) != corpus.vectors.shape:
            raise IndexFileError(
                f"the FAISS index holds {index.ntotal} vectors of dimension {index.d}, the corpus "
                f"{corpus.size} of {corpus.dimension}; build it again"
            )
        self.corpus = corpus
        self.index = index
        self.recipe = recipe
        self.k = check_k(k)
        self.size = corpus.size
        self.inline_encode = corpus.inline_encode
        self.queries = IndexQueries(self._faiss, index)
        self._digest = digest or index_digest(self._faiss, index)
        self._count = min(recipe.candidates(k), self.size)
        self.signature: Hashable = (recipe.name, k, self._count, self._digest, *corpus.identity)

    @classmethod
    def build(
        cls,
        passages: Sequence[Passage],
        encoder: Encoder | None = None,
        *,
        recipe: IndexRecipe | None = None,
        vectors: NDArray[np.float32] | None = None,
        k: int = 1,
        metric: str = Metric.IP,
    ) -> Self:
        """Encode the passages, unless their vectors are given, and index them."""
        faiss = _faiss()
        corpus = DenseCorpus.encoded(passages, encoder, metric, vectors)
        kind = faiss.METRIC_L2 if corpus.metric is Metric.L2 else faiss.METRIC_INNER_PRODUCT
        recipe = recipe or Hnsw()
        index = recipe.make(faiss, corpus, kind)
        index.train(corpus.vectors)
        index.add(corpus.vectors)
        return cls(corpus, index, recipe, k=k)

    def encode(self, text: str) -> Query:
        """Encode one query, alone in its pass."""
        return self.corpus.encode(text)

    def search(self, queries: Sequence[Query]) -> list[Hits]:
        """Find k good passages of each query, in the way that is fastest for so many."""
        if not queries:
            return []
        return self.queries.ranked(self.corpus.matrix(queries), self._count, self._ranked)

    def _ranked(self, query: Vectors, _: Vectors, rows: IntArray) -> Hits:
        return self.corpus.ranked(rows[rows >= 0], query, self.k)

    def table(self, capacity: int) -> DenseTable:
        """Make an empty table for a pool, which may find better passages than the index."""
        return self.corpus.table(capacity)

    def parts(self) -> IndexArtifacts:
        """Give what must be saved."""
        parts = IndexArtifacts.of_dense(
            self.recipe.name,
            self.corpus,
            self.k,
            recipe=self.recipe.settings(),
            index_digest=self._digest,
        )
        return replace(parts, written={"index.faiss": partial(write_to, self._faiss, self.index)})

    @classmethod
    def from_parts(cls, parts: IndexArtifacts, encoder: Encoder | None, k: int) -> Self:
        """Make the retriever again from what was saved.

        Raises:
            IndexFileError: the saved index cannot be read.
        """
        file = parts.file("index.faiss")
        try:
            index = _faiss().read_index(str(file))
        except RuntimeError as error:
            raise IndexFileError(
                f"index.faiss cannot be read ({error}); build the knowledge base again"
            ) from error
        recipe = RECIPES[parts.backend](**parts.setting("recipe"))
        digest = parts.setting("index_digest")
        return cls(parts.dense(encoder), index, recipe, k=k, digest=digest)
