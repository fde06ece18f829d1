"""How approximate indexes of a datastore are made and asked; checked, and saved with them."""

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from math import isqrt
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from ralmspec_plugins.errors import ConfigError, IndexFileError, InputError
from ralmspec_plugins.knn.datastore import Datastore, Ids
from ralmspec_plugins.knn.search import widen
from ralmspec_plugins.retrieval.faiss_ann import index_digest, write_to
from ralmspec_plugins.retrieval.optional import optional
from ralmspec_plugins.retrieval.ranking import Vectors
from ralmspec_plugins.retrieval.storage.files import atomic_replace
from ralmspec_plugins.retrieval.storage.format import (
    RecordKind,
    Verify,
    check_file,
    check_target,
    check_verify,
    file_record,
    opened_whole,
    read_record,
    removed_afterwards,
)

STORAGES = {"float32": None, "float16": "QT_fp16", "8bit": "QT_8bit"}
_POINTS_PER_LIST = 39  # below this FAISS warns that k-means has too little to learn from
_POINTS_OF_PQ = 256  # a byte's worth of centres for each piece
_LONGEST_CODE = 64  # bytes, as in Khandelwal et al. (PAPERS 6.1)
_REFINED = 1024  # quantised candidates that are measured exactly at no great cost


class KeyIndexRecipe(Protocol):
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


# Build an approximate index of a datastore's keys, in bounded memory and always the same.


_KEYS_AT_ONCE = 16_384


@dataclass(frozen=True, slots=True, eq=False)
class BuiltIndex:
    """An index over a datastore's keys; its entry n is the datastore's."""

    index: Any
    recipe: KeyIndexRecipe
    digest: str  # of the index as it was built: two graphs over the same keys may differ
    datastore: str  # the signature of the one that it belongs to

    def tuned(self, recipe: KeyIndexRecipe) -> Self:
        """Ask this index as a recipe says from now on, also in searches that have it already.

        Raises:
            ConfigError: it was built otherwise than the recipe says.
        """
        if type(recipe) is not type(self.recipe):
            raise ConfigError(
                f"this is an {self.recipe.name} index, and {recipe.name} was asked for; build one"
            )
        asked: Any = recipe
        for field in fields(asked):
            was, wanted = getattr(self.recipe, field.name), getattr(asked, field.name)
            if field.name not in recipe.tuned and was != wanted:
                raise ConfigError(
                    f"this index was built with {field.name} = {was!r}, and {wanted!r} was asked "
                    f"for; only {', '.join(recipe.tuned)} can be changed"
                )
        recipe.tune(self.index)
        return replace(self, recipe=recipe)


def faiss_library() -> Any:
    """Import FAISS.

    Raises:
        MissingExtraError: it is not installed.
    """
    return optional("faiss", "faiss", "faiss-cpu")


def build_index(datastore: Datastore, recipe: KeyIndexRecipe, *, threads: int = 1) -> BuiltIndex:
    """Build an index of a datastore's keys, with some thousands of them in memory at a time.

    Args:
        datastore: what is to be searched.
        recipe: `HnswRecipe(...)` or `IvfPqRecipe(...)`.
        threads: with one, the same datastore gives the same index, byte for byte; more are
            faster, and what a graph comes to depends on their race.

    Raises:
        ConfigError: threads below 1, or a recipe that does not fit the dimension.
        InputError: too few entries for the recipe.
        MissingExtraError: FAISS is not installed.
    """
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise ConfigError(f"build_threads must be a whole number of at least 1, got {threads!r}")
    faiss, entries, keys = faiss_library(), len(datastore), datastore.keys
    index = recipe.make(faiss, datastore.about.dimension, entries)
    with _openmp_threads(faiss, threads):
        chosen = recipe.learns_from(entries)
        if len(chosen):
            index.train(_widened(keys[chosen]))
        for start in range(0, entries, _KEYS_AT_ONCE):
            index.add(_widened(keys[start : start + _KEYS_AT_ONCE]))
    digest = index_digest(faiss, index)  # before it is tuned, which is no part of it
    return BuiltIndex(index, recipe, digest, datastore.signature).tuned(recipe)


def _widened(halves: NDArray[np.float16]) -> Vectors:
    keys = np.empty(halves.shape, dtype=np.float32)
    widen(np.ascontiguousarray(halves), keys)
    return keys


@contextmanager
def _openmp_threads(faiss: Any, threads: int) -> Iterator[None]:
    """Let FAISS use so many threads for what this thread asks of it."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


# Save an approximate index as a folder, whole or not at all, and open it for its datastore.
#
# `index.faiss` is FAISS's own format; `index.json` says how it was built, for which
# datastore, and what the other file must be. Nothing is ever pickled.


_INDEX = "index.faiss"
_ABOUT = "index.json"
_AGAIN = "remove it, and build it again"
_KIND = RecordKind(
    missing=f"is no search index: it has no {_ABOUT}",
    file=_ABOUT,
    format="ralmspec-knn-index",
    version=1,
    again=_AGAIN,
)


def check_place(path: str | os.PathLike[str]) -> None:
    """Refuse a place that `save_index` would refuse, before an hour of building.

    Raises:
        IndexFileError: something that is not a search index is in the way.
    """
    check_target(Path(path).resolve(), kind="search index", mark=_ABOUT)


def is_saved(path: str | os.PathLike[str]) -> bool:
    """Say whether there is an index in this folder, whole or damaged."""
    return (Path(path) / _ABOUT).exists()


def save_index(built: BuiltIndex, path: str | os.PathLike[str]) -> None:
    """Save an index, replacing one that is already there.

    Its place is best a folder inside the datastore's, so that they go together.

    Raises:
        IndexFileError: something that is not a search index is in the way.
    """
    recipe: Any = built.recipe
    target = Path(path).resolve()
    check_place(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f".{target.name}.new-{secrets.token_hex(8)}")
    with removed_afterwards(fresh):
        fresh.mkdir(mode=0o700)
        with (fresh / _INDEX).open("wb") as opened:
            write_to(faiss_library(), built.index, opened.write)
            opened.flush()
            os.fsync(opened.fileno())
        about = {
            "format": _KIND.format,
            "version": _KIND.version,
            "recipe": built.recipe.name,
            "settings": asdict(recipe),
            "digest": built.digest,
            "datastore": built.datastore,
            "file": file_record(fresh / _INDEX),
        }
        (fresh / _ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        atomic_replace(target, fresh)


def open_index(
    path: str | os.PathLike[str], datastore: Datastore, verify: Verify = "sizes"
) -> BuiltIndex:
    """Open a saved index of this datastore.

    Args:
        path: its folder.
        datastore: what is searched; the index must have been built for just this content.
        verify: "sizes" compares the file's length; "digests" reads it once more, and so finds
            a changed byte.

    Raises:
        ConfigError: another word for `verify`.
        IndexFileError: it is missing, damaged, of another version, or of another datastore.
        MissingExtraError: FAISS is not installed.
    """
    check_verify(verify)
    folder = Path(path)
    return opened_whole(folder, lambda: _open_once(folder, datastore, verify))


def _open_once(folder: Path, datastore: Datastore, verify: Verify) -> BuiltIndex:
    about = read_record(folder, _KIND)
    try:
        recipe = RECIPES[about["recipe"]](**about["settings"])
        digest, belongs_to, file = about["digest"], about["datastore"], about["file"]
        written = {"bytes": int(file["bytes"]), "sha256": str(file["sha256"])}
    except (KeyError, TypeError, ValueError) as error:
        raise IndexFileError(f"{folder / _ABOUT} is damaged ({error!r}); {_AGAIN}") from error
    if belongs_to != datastore.signature:
        raise IndexFileError(
            f"{folder} is an index of another datastore, or of this one before it was built "
            f"again; {_AGAIN}"
        )
    check_file(folder / _INDEX, written, verify, _AGAIN)
    index = _read(folder / _INDEX, datastore)
    return BuiltIndex(index, recipe, digest, belongs_to).tuned(recipe)


def _read(file: Path, datastore: Datastore) -> Any:
    try:
        index = faiss_library().read_index(str(file))
    except RuntimeError as error:
        raise IndexFileError(f"{file} cannot be read ({error}); {_AGAIN}") from error
    if (index.ntotal, index.d) != datastore.keys.shape:
        raise IndexFileError(
            f"{file} holds {index.ntotal} keys of dimension {index.d}, the datastore "
            f"{len(datastore)} of {datastore.about.dimension}; {_AGAIN}"
        )
    return index
