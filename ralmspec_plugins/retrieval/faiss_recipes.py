"""How approximate FAISS indexes are made: settings that are checked, and saved with the index."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import isqrt
from typing import Any, Protocol

from ralmspec_plugins.errors import ConfigError, InputError
from ralmspec_plugins.retrieval.dense import DenseCorpus

_POINTS_PER_LIST = 39  # below this FAISS warns that k-means has too little to learn from


class Recipe(Protocol):
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


RECIPES: dict[str, Callable[..., Recipe]] = {
    "faiss-hnsw": Hnsw,
    "faiss-ivf": Ivf,
    "faiss-ivfpq": IvfPq,
}


def _at_least_one(recipe: Recipe) -> None:
    for name, value in recipe.settings().items():
        if value is not None and value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}")


def _lists(wanted: int | None, size: int) -> int:
    return min(wanted or max(1, min(4 * isqrt(size), size // _POINTS_PER_LIST)), size)


def _probing(index: Any, probes: int) -> Any:
    index.nprobe = min(probes, index.nlist)
    index.cp.min_points_per_centroid = 1  # else FAISS warns on stderr for small corpora
    return index
