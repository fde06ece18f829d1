"""How approximate indexes of a datastore are made and asked; checked, and saved with them."""

from dataclasses import dataclass
from math import isqrt
from typing import Any, ClassVar, Protocol

import numpy as np

from ralmspec_plugins.errors import ConfigError, InputError
from ralmspec_plugins.knn.datastore import Ids

STORAGES = {"float32": None, "float16": "QT_fp16", "8bit": "QT_8bit"}
_POINTS_PER_LIST = 39  # below this FAISS warns that k-means has too little to learn from
_POINTS_OF_PQ = 256  # a byte's worth of centres for each piece
_LONGEST_CODE = 64  # bytes, as in Khandelwal et al. (PAPERS 6.1)
_REFINED = 1024  # quantised candidates that are measured exactly at no great cost


class Recipe(Protocol):
    """The settings of an index: those it is built with, and those it is asked with."""

    name: ClassVar[str]
    tuned: ClassVar[tuple[str, ...]]  # the settings that may change after it was built

    def learns_from(self, entries: int) -> Ids:
        """Choose the keys that the index learns from, ascending; none if it learns nothing."""
        ...

    def make(self, faiss: Any, dimension: int, entries: int) -> Any:
        """Make an untrained, empty index."""
        ...

    def tune(self, index: Any) -> None:
        """Set what a built index is asked with."""
        ...

    def tuning(self, index: Any) -> int:
        """Give what a built index is asked with now."""
        ...

    def candidates(self, k: int) -> int:
        """Say how many entries are measured exactly, unless told otherwise."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class HnswRecipe:
    """A navigable graph over all keys.

    `storage`: "float16" holds the keys as the datastore does, so nothing is lost;
    "float32" is twice as large and a little faster; "8bit" is half as large and rough.
    """

    name: ClassVar[str] = "hnsw"
    tuned: ClassVar[tuple[str, ...]] = ("search_list",)

    links: int = 32  # FAISS's own
    build_list: int = 40  # FAISS's own
    storage: str = "float16"
    search_list: int = 64  # k, where that is larger

    def __post_init__(self) -> None:
        """Refuse settings that make no graph."""
        _at_least_one(self, "links", "build_list", "search_list")
        if self.storage not in STORAGES:
            raise ConfigError(f"storage must be one of {', '.join(STORAGES)}, got {self.storage!r}")

    def learns_from(self, entries: int) -> Ids:
        """Learn the range of each dimension where numbers are cut to 8 bits."""
        return _sample(entries, 65_536 if self.storage == "8bit" else 0, seed=0)

    def make(self, faiss: Any, dimension: int, entries: int) -> Any:
        """Make an empty graph."""
        kind = STORAGES[self.storage]
        if kind is None:
            index = faiss.IndexHNSWFlat(dimension, self.links, faiss.METRIC_L2)
        else:
            quantised = getattr(faiss.ScalarQuantizer, kind)
            index = faiss.IndexHNSWSQ(dimension, quantised, self.links, faiss.METRIC_L2)
        index.hnsw.efConstruction = self.build_list
        return index

    def tune(self, index: Any) -> None:
        """Set how many candidates a search keeps."""
        index.hnsw.efSearch = self.search_list

    def tuning(self, index: Any) -> int:
        """Give how many candidates a search keeps."""
        return int(index.hnsw.efSearch)

    def candidates(self, k: int) -> int:
        """Measure what is found, since the graph knows the keys."""
        return k


@dataclass(frozen=True, slots=True, kw_only=True)
class IvfPqRecipe:
    """Lists of product-quantised keys around centres, of which the nearest `probes` are searched.

    The smallest index, and the roughest: the candidates should be measured exactly.
    """

    name: ClassVar[str] = "ivfpq"
    tuned: ClassVar[tuple[str, ...]] = ("probes",)

    lists: int | None = None  # None: 4 sqrt(entries), as FAISS's guidelines advise
    pieces: int | None = None  # bytes of a key; must divide the dimension; None: 64 at the most
    sample: int = 131_072  # keys that it learns from
    seed: int = 0  # of their choice
    probes: int = 32  # as in Khandelwal et al. (PAPERS 6.1)

    def __post_init__(self) -> None:
        """Refuse settings that search nothing."""
        _at_least_one(self, "lists", "pieces", "sample", "probes")

    def learns_from(self, entries: int) -> Ids:
        """Learn centres and codes from a sample."""
        return _sample(entries, self.sample, self.seed)

    def make(self, faiss: Any, dimension: int, entries: int) -> Any:
        """Make empty lists.

        Raises:
            ConfigError: the pieces do not divide the dimension.
            InputError: there are too few keys to learn from.
        """
        learned = min(entries, self.sample)
        if learned < _POINTS_OF_PQ:
            raise InputError(
                f"product quantisation needs at least {_POINTS_OF_PQ} keys to learn from, got "
                f"{learned}; use hnsw or exact"
            )
        pieces = self.pieces or next(
            size for size in range(min(dimension, _LONGEST_CODE), 0, -1) if dimension % size == 0
        )
        if dimension % pieces:
            raise ConfigError(f"pieces must divide the dimension {dimension}, got {pieces}")
        lists = self.lists or max(1, min(4 * isqrt(entries), learned // _POINTS_PER_LIST))
        centres = faiss.IndexFlat(dimension, faiss.METRIC_L2)
        index = faiss.IndexIVFPQ(
            centres, dimension, min(lists, learned), pieces, 8, faiss.METRIC_L2
        )
        index.cp.min_points_per_centroid = 1  # else FAISS warns on stderr
        index.pq.cp.min_points_per_centroid = 1
        return index

    def tune(self, index: Any) -> None:
        """Set how many lists a search looks through."""
        index.nprobe = min(self.probes, index.nlist)

    def tuning(self, index: Any) -> int:
        """Give how many lists a search looks through."""
        return int(index.nprobe)

    def candidates(self, k: int) -> int:
        """Measure more than k where k is small, since quantised keys look alike."""
        return max(k, min(16 * k, _REFINED))


RECIPES: dict[str, type[HnswRecipe] | type[IvfPqRecipe]] = {
    HnswRecipe.name: HnswRecipe,
    IvfPqRecipe.name: IvfPqRecipe,
}


def _sample(entries: int, most: int, seed: int) -> Ids:
    count = min(entries, most)
    chosen = np.random.default_rng(seed).choice(entries, count, replace=False)
    return np.sort(chosen).astype(np.int64)


def _at_least_one(recipe: Any, *names: str) -> None:
    for name in names:
        value = getattr(recipe, name)
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int) or value < 1
        ):
            raise ConfigError(f"{name} must be a whole number of at least 1, got {value!r}")
