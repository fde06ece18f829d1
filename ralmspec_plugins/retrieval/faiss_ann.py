"""Approximate search with FAISS: HNSW, IVF and IVF-PQ indexes, of passages and of KNN-LM's keys.

A query's result does not depend on its batch: HNSW searches its graph once per
query, and IVF's nearest lists are computed for one query at a time (FAISS would use
a matrix product for many, with other last bits, so other lists). FAISS divides a
batch's queries among its own threads; single calls in other threads
were measured without a gain (benchmarks/batch_curves.py).
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from math import isqrt
from pathlib import Path
from typing import Any, ClassVar, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ralmspec_plugins.errors import ConfigError, IndexFileError, InputError
from ralmspec_plugins.retrieval.artifacts import IndexArtifacts
from ralmspec_plugins.retrieval.dense import DenseCorpus, DenseRetriever
from ralmspec_plugins.retrieval.encoders import Encoder
from ralmspec_plugins.retrieval.optional import optional
from ralmspec_plugins.retrieval.ranking import IntArray, Metric, Vectors
from ralmspec_plugins.retrieval.storage.corpus import check_k
from ralmspec_plugins.types import Hits, Passage, Query

# The settings of an index, which are checked, and saved with it.


STORAGES = {"float32": None, "float16": "QT_fp16", "8bit": "QT_8bit"}
_POINTS_PER_LIST = 39  # below this FAISS warns of too few points for k-means
_POINTS_OF_PQ = 256  # centres for each piece: one byte
_POINTS_OF_8BIT = 65_536  # for learning each dimension's range
_INT = 2**31  # FAISS keeps settings in 32 bits
_LONGEST_CODE = 64  # bytes, as in Khandelwal et al. 2020


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexRecipe:
    """The settings of an index, for building and for searching.

    Attributes:
        name: of the kind of index.
        tunable: the settings that may change after it was built.
    """

    name: ClassVar[str]
    tunable: ClassVar[tuple[str, ...]]

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ConfigError: a value is below its minimum, or not a whole number.
        """
        for field in fields(self):
            value, least = getattr(self, field.name), 0 if field.name == "seed" else 1
            if field.name == "storage" or (value is None and field.name in _MAY_BE_NONE):
                continue
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not whole or not least <= value < _INT:
                raise ConfigError(
                    f"{field.name} must be a whole number of at least {least}, got {value!r}"
                )

    def candidates(self, k: int) -> int:
        """Return the number of rows requested from the index for k hits."""
        return k

    def learns_from(self, size: int) -> IntArray | None:
        """Return the rows for training, ascending; `None` for all of them."""
        return None

    def make(self, faiss: Any, dimension: int, size: int, kind: int) -> Any:
        """Return an untrained, empty index.

        Args:
            faiss: the library.
            dimension: of the vectors.
            size: the final number of vectors.
            kind: FAISS's number of the metric.

        Raises:
            ConfigError: a setting does not fit the dimension.
            InputError: there are too few vectors for training.
        """
        raise NotImplementedError

    def tune(self, index: Any) -> None:
        """Set the search parameters of a built index."""
        raise NotImplementedError

    def tuning(self, index: Any) -> int:
        """Return the current search parameter of a built index."""
        raise NotImplementedError


_MAY_BE_NONE = ("lists", "pieces", "sample")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hnsw(IndexRecipe):
    """A navigable graph. Defaults: FAISS's own, but a search list of 64 for recall 0.99.

    `storage`: "float32" stores the vectors unchanged, "float16" in half the memory,
    "8bit" in a quarter, with a lower precision.
    """

    name: ClassVar[str] = "hnsw"
    tunable: ClassVar[tuple[str, ...]] = ("search_list",)

    links: int = 32
    build_list: int = 40
    storage: str = "float32"
    search_list: int = 64  # at least the number of requested rows

    def __post_init__(self) -> None:
        """Check the settings."""
        IndexRecipe.__post_init__(self)
        if self.storage not in STORAGES:
            raise ConfigError(f"storage must be one of {', '.join(STORAGES)}, got {self.storage!r}")

    def learns_from(self, size: int) -> IntArray | None:
        """Return a sample for the ranges of 8-bit numbers, else no rows."""
        return _sample(size, _POINTS_OF_8BIT if self.storage == "8bit" else 0, seed=0)

    def make(self, faiss: Any, dimension: int, size: int, kind: int) -> Any:
        """Return an empty graph."""
        storage = STORAGES[self.storage]
        if storage is None:
            index = faiss.IndexHNSWFlat(dimension, self.links, kind)
        else:
            quantised = getattr(faiss.ScalarQuantizer, storage)
            index = faiss.IndexHNSWSQ(dimension, quantised, self.links, kind)
        index.hnsw.efConstruction = self.build_list
        return index

    def tune(self, index: Any) -> None:
        """Set the number of candidates of a search."""
        index.hnsw.efSearch = self.search_list

    def tuning(self, index: Any) -> int:
        """Return the number of candidates of a search."""
        return int(index.hnsw.efSearch)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ivf(IndexRecipe):
    """Lists around cluster centres, of which the nearest `probes` are searched."""

    name: ClassVar[str] = "ivf"
    tunable: ClassVar[tuple[str, ...]] = ("probes",)

    lists: int | None = None  # None: 4 sqrt(vectors), as FAISS's guidelines advise
    probes: int = 8

    def make(self, faiss: Any, dimension: int, size: int, kind: int) -> Any:
        """Return empty lists."""
        return self._lists(faiss, faiss.IndexIVFFlat, dimension, (size, size), kind)

    def _lists(
        self, faiss: Any, make: Any, dimension: int, sizes: tuple[int, int], *settings: int
    ) -> Any:
        """Return lists for a number of vectors and of training vectors."""
        size, learned = sizes
        most = max(1, min(4 * isqrt(size), learned // _POINTS_PER_LIST))
        lists = min(self.lists or most, learned)
        index = make(faiss.IndexFlat(dimension, settings[-1]), dimension, lists, *settings)
        index.cp.min_points_per_centroid = 1  # else FAISS warns on stderr for few vectors
        return index

    def tune(self, index: Any) -> None:
        """Set the number of lists that a search reads."""
        index.nprobe = min(self.probes, index.nlist)

    def tuning(self, index: Any) -> int:
        """Return the number of lists that a search reads."""
        return int(index.nprobe)


@dataclass(frozen=True, slots=True, kw_only=True)
class IvfPq(Ivf):
    """Lists of product-quantised vectors: the smallest index, with the lowest precision.

    Quantised vectors that are near are similar: so `refine` times k
    rows are requested, and the best k by their exact scores are the hits (`k_factor` of FAISS's
    IndexRefine). That is a setting of the index, equal for all searches.
    """

    name: ClassVar[str] = "ivfpq"
    tunable: ClassVar[tuple[str, ...]] = ("probes", "refine")

    pieces: int | None = 16  # bytes of a vector; must divide the dimension; None: 64 at the most
    refine: int = 16  # on MiniLM vectors, k = 4: recall 0.92 for 0.14 ms; 1: 0.49 for 0.10 ms
    sample: int | None = None  # training vectors; None: all
    seed: int = 0  # of the sample

    def candidates(self, k: int) -> int:
        """Return more candidates than hits, to select by exact scores."""
        return k * self.refine

    def learns_from(self, size: int) -> IntArray | None:
        """Return the sample for centres and codes."""
        return None if self.sample is None else _sample(size, self.sample, self.seed)

    def make(self, faiss: Any, dimension: int, size: int, kind: int) -> Any:
        """Return empty lists."""
        pieces = self.pieces or next(
            length for length in range(min(dimension, _LONGEST_CODE), 0, -1)
            if dimension % length == 0
        )  # fmt: skip
        if dimension % pieces:
            raise ConfigError(f"pieces must divide the dimension {dimension}, got {pieces}")
        learned = min(size, self.sample or size)
        if learned < _POINTS_OF_PQ:
            raise InputError(
                f"product quantisation needs at least {_POINTS_OF_PQ} vectors to learn from, got "
                f"{learned}; use HNSW, or an exact search"
            )
        index = self._lists(faiss, faiss.IndexIVFPQ, dimension, (size, learned), pieces, 8, kind)
        index.pq.cp.min_points_per_centroid = 1
        return index


RECIPES: dict[str, type[IndexRecipe]] = {
    "faiss-hnsw": Hnsw,
    "faiss-ivf": Ivf,
    "faiss-ivfpq": IvfPq,
}


def _sample(size: int, most: int, seed: int) -> IntArray:
    chosen = np.random.default_rng(seed).choice(size, min(size, most), replace=False)
    return np.sort(chosen).astype(np.int64)


# A FAISS index with its recipe and source.


Nearest: TypeAlias = tuple[Vectors, IntArray]  # FAISS's scores and rows, -1 if it found fewer


def faiss_library() -> Any:
    """Import FAISS.

    Raises:
        MissingExtraError: it is not installed.
    """
    return optional("faiss", "faiss", "faiss-cpu")


@dataclass(frozen=True, slots=True, eq=False)
class AnnIndex:
    """An approximate index of vectors, in the order of rows. Thread-safe.

    Attributes:
        index: the FAISS index.
        recipe: its settings.
        digest: of the built index: two graphs of the same vectors may differ.
        source: the key of the indexed content.
    """

    index: Any
    recipe: IndexRecipe
    digest: str
    source: str

    @classmethod
    def build(
        cls,
        recipe: IndexRecipe,
        rows: Callable[[Any], Vectors],
        shape: tuple[int, int],
        metric: Metric,
        source: str,
        *,
        rows_at_once: int | None = None,
    ) -> Self:
        """Build an index of some vectors.

        Args:
            recipe: the settings.
            rows: returns vectors in float32 for a slice, or an array of numbers.
            shape: the number of vectors, and their dimension.
            metric: cosine is the inner product of normalised vectors.
            source: the key of the content.
            rows_at_once: the number of vectors added at a time; all by default.

        Raises:
            ConfigError: a setting does not fit the dimension.
            InputError: there are too few vectors to learn from.
        """
        faiss, (size, dimension) = faiss_library(), shape
        kind = faiss.METRIC_L2 if metric is Metric.L2 else faiss.METRIC_INNER_PRODUCT
        index = recipe.make(faiss, dimension, size, kind)
        chosen = recipe.learns_from(size)
        if chosen is None or len(chosen):
            index.train(rows(slice(0, size) if chosen is None else chosen))
        step = rows_at_once or size
        for start in range(0, size, step):
            index.add(rows(slice(start, start + step)))
        digest = hashlib.sha256()
        cls._write(index, digest.update)  # before tuning, which is not part of the digest
        return cls(index, recipe, digest.hexdigest()[:32], source).tuned(recipe)

    @classmethod
    def read(
        cls, file: Path, made: tuple[IndexRecipe, str, str], shape: tuple[int, int], again: str
    ) -> Self:
        """Read a saved index.

        Args:
            file: in FAISS's own format.
            made: the saved recipe, digest and source.
            shape: the required number and dimension of vectors.
            again: the remedy for error messages.

        Raises:
            IndexFileError: it cannot be read, or is another index.
        """
        recipe = made[0]
        try:
            index = faiss_library().read_index(str(file))
        except RuntimeError as error:
            raise IndexFileError(f"{file} cannot be read ({error}); {again}") from error
        if (index.ntotal, index.d) != shape:
            raise IndexFileError(
                f"{file} holds {index.ntotal} vectors of dimension {index.d}, and there are "
                f"{shape[0]} of {shape[1]}; {again}"
            )
        try:
            return cls(index, *made).tuned(recipe)
        except AttributeError as error:
            raise IndexFileError(f"{file} is no {recipe.name} index ({error}); {again}") from error

    def tuned(self, recipe: IndexRecipe) -> Self:
        """Return this index with the search parameters of a recipe, also for existing searches.

        Raises:
            ConfigError: it was built with other settings.
        """
        if type(recipe) is not type(self.recipe):
            raise ConfigError(
                f"this is an {self.recipe.name} index, and {recipe.name} was requested; build one"
            )
        for field in fields(recipe):
            was, wanted = getattr(self.recipe, field.name), getattr(recipe, field.name)
            if field.name not in recipe.tunable and was != wanted:
                raise ConfigError(
                    f"this index was built with {field.name} = {was!r}, and {wanted!r} was "
                    f"requested; only {', '.join(recipe.tunable)} can be changed"
                )
        recipe.tune(self.index)
        return replace(self, recipe=recipe)

    def nearest(self, queries: Vectors, count: int) -> Nearest:
        """Return `count` rows for each query, independently.  # [queries, count], both.

        A graph is searched with at least as many candidates as requested
        rows: with fewer, FAISS stops early, and finds half of 1,024 with a list of 64.
        """
        faiss, index = faiss_library(), self.index
        if isinstance(index, faiss.IndexHNSW):
            candidates = max(index.hnsw.efSearch, count)
            longer = faiss.SearchParametersHNSW(efSearch=candidates)
            scores, rows = index.search(queries, count, params=longer)
            return scores, rows
        near = [index.quantizer.search(query[None], index.nprobe) for query in queries]
        far = np.concatenate([distances for distances, _ in near])
        lists = np.concatenate([numbers for _, numbers in near])
        scores, rows = index.search_preassigned(queries, count, lists, far)
        return scores, rows

    def write_to(self, write: Callable[[bytes], Any]) -> None:
        """Write the index in pieces, without a second copy in memory."""
        self._write(self.index, write)

    @staticmethod
    def _write(index: Any, write: Callable[[bytes], Any]) -> None:
        faiss = faiss_library()
        faiss.write_index(index, faiss.PyCallbackIOWriter(write))


class FaissApproximate(DenseRetriever):
    """Searches an HNSW or IVF index: fast, but not always the best passages.

    Guesses are verified by a search with this k and these settings. A wider
    search may start with other hits, and is not supported (this is no `WideRetriever`).
    The rows of the index are scored exactly and sorted.
    """

    exact = False

    def __init__(self, corpus: DenseCorpus, index: AnnIndex, *, k: int = 1) -> None:
        """Create a retriever of an index with exactly the corpus's vectors, in order.

        Raises:
            ConfigError: k is below 1.
            IndexFileError: the index belongs to another corpus.
        """
        if index.source != corpus.print:
            raise IndexFileError(
                f"this {index.recipe.name} index was built for another corpus; build one for this"
            )
        self.index = index
        self._count = min(index.recipe.candidates(check_k(k)), corpus.size)
        recipe = index.recipe
        asked = self._count, recipe.tuning(index.index), index.digest
        super().__init__(corpus, f"faiss-{recipe.name}", k, *asked)

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
        """Return a retriever of passages, encoded unless their vectors are given."""
        faiss_library()  # checked before the encoding
        corpus = DenseCorpus.encoded(passages, encoder, metric, vectors)
        vectors = corpus.vectors
        size = corpus.size, corpus.dimension
        rows = vectors.__getitem__
        index = AnnIndex.build(recipe or Hnsw(), rows, size, corpus.metric, corpus.print)
        return cls(corpus, index, k=k)

    def search(self, queries: Sequence[Query]) -> list[Hits]:
        """Return k near passages of each query."""
        if not queries:
            return []
        corpus = self.corpus
        matrix = corpus.matrix(queries)
        _, found = self.index.nearest(matrix, self._count)
        return [
            corpus.ranked(rows[rows >= 0], query, self.k)
            for query, rows in zip(matrix, found, strict=True)
        ]

    def parts(self) -> IndexArtifacts:
        """Return the artifacts to save."""
        made = {"recipe": asdict(self.index.recipe), "index_digest": self.index.digest}
        parts = self.corpus.artifacts(self.backend, self.k, **made)
        return replace(parts, written={"index.faiss": self.index.write_to})

    @classmethod
    def from_parts(cls, parts: IndexArtifacts, encoder: Encoder | None, k: int) -> Self:
        """Return the retriever of saved artifacts.

        Raises:
            IndexFileError: the saved index cannot be read.
        """
        corpus = DenseCorpus.from_artifacts(parts, encoder)
        recipe = RECIPES[parts.backend](**parts.setting("recipe"))
        made = recipe, str(parts.setting("index_digest")), corpus.print
        size = corpus.size, corpus.dimension
        again = "build the knowledge base again"
        return cls(corpus, AnnIndex.read(parts.file("index.faiss"), made, size, again), k=k)
