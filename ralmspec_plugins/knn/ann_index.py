"""Approximate indexes of a datastore's keys: built in bounded memory, saved and opened.

`index.faiss` is in FAISS's own format; `index.json` has the recipe, the
datastore, and the digest of the other file. Nothing is pickled.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ralmspec_plugins.errors import ConfigError, IndexFileError
from ralmspec_plugins.knn.datastore import Datastore
from ralmspec_plugins.knn.search import widen
from ralmspec_plugins.retrieval.faiss_ann import AnnIndex, Hnsw, IndexRecipe, IvfPq, faiss_library
from ralmspec_plugins.retrieval.ranking import Metric, Vectors
from ralmspec_plugins.retrieval.storage.format import (
    RecordKind,
    Verify,
    check_file,
    check_target,
    check_verify,
    file_record,
    opened_whole,
    read_record,
    write_folder,
)

_REFINED = 1024  # quantised candidates that are measured exactly at low cost
_KEYS_AT_ONCE = 16_384


@dataclass(frozen=True, slots=True, kw_only=True)
class HnswRecipe(Hnsw):
    """A graph over all keys, by default in half precision, as in the datastore, without loss.

    "float32" is twice as large and a little faster.
    """

    storage: str = "float16"


@dataclass(frozen=True, slots=True, kw_only=True)
class IvfPqRecipe(IvfPq):
    """Lists of product-quantised keys. The candidates should be measured exactly."""

    probes: int = 32  # as in Khandelwal et al. 2020
    pieces: int | None = None
    sample: int | None = 131_072

    def candidates(self, k: int) -> int:
        """Return more than k candidates for a small k, since quantised keys are similar."""
        return max(k, min(self.refine * k, _REFINED))


KEY_RECIPES: dict[str, type[HnswRecipe] | type[IvfPqRecipe]] = {
    HnswRecipe.name: HnswRecipe,
    IvfPqRecipe.name: IvfPqRecipe,
}


def build_index(datastore: Datastore, recipe: IndexRecipe, *, threads: int = 1) -> AnnIndex:
    """Build an index of a datastore's keys, with some thousands of them in memory at a time.

    Args:
        datastore: the datastore to search.
        recipe: `HnswRecipe(...)` or `IvfPqRecipe(...)`.
        threads: with one, equal datastores give equal indexes, byte for byte; more are
            faster, and the graph depends on their timing.

    Raises:
        ConfigError: threads are below 1, or the recipe does not fit the dimension.
        InputError: too few entries for the recipe.
        MissingExtraError: FAISS is not installed.
    """
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise ConfigError(f"build_threads must be a whole number of at least 1, got {threads!r}")
    shape = len(datastore), datastore.about.dimension

    def rows(chosen: Any) -> Vectors:
        halves = np.ascontiguousarray(datastore.keys[chosen])
        keys = np.empty(halves.shape, dtype=np.float32)
        widen(halves, keys)
        return keys

    with _openmp_threads(faiss_library(), threads):
        return AnnIndex.build(
            recipe, rows, shape, Metric.L2, datastore.signature, rows_at_once=_KEYS_AT_ONCE
        )


@contextmanager
def _openmp_threads(faiss: Any, threads: int) -> Iterator[None]:
    """Set the number of FAISS threads for calls of this thread."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


_INDEX = "index.faiss"
_ABOUT = "index.json"
_AGAIN = "remove it, and build it again"
_KIND = RecordKind(
    missing=f"is no search index: it has no {_ABOUT}; make one with open_search(..., index=folder)",
    file=_ABOUT,
    format="ralmspec-knn-index",
    version=1,
    again=_AGAIN,
)


def check_place(path: str | os.PathLike[str]) -> None:
    """Check the target of `save_index` before the index is built.

    Raises:
        IndexFileError: the target exists, and is not a search index.
    """
    check_target(Path(path).resolve(), kind="search index", mark=_ABOUT)


def is_saved(path: str | os.PathLike[str]) -> bool:
    """Return whether there is an index in this folder, whole or damaged."""
    return (Path(path) / _ABOUT).exists()


def save_index(built: AnnIndex, path: str | os.PathLike[str]) -> None:
    """Save an index, replacing one that is already there.

    It is best saved inside the datastore's folder, so that they are moved together.

    Raises:
        IndexFileError: the target exists, and is not a search index.
    """
    write_folder(Path(path).resolve(), partial(_write, built), check_place)


def _write(built: AnnIndex, folder: Path) -> None:
    with (folder / _INDEX).open("wb") as opened:
        built.write_to(opened.write)
        opened.flush()
        os.fsync(opened.fileno())
    about = {
        "format": _KIND.format,
        "version": _KIND.version,
        "recipe": built.recipe.name,
        "settings": asdict(built.recipe),
        "digest": built.digest,
        "datastore": built.source,
        "file": file_record(folder / _INDEX),
    }
    (folder / _ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def open_index(
    path: str | os.PathLike[str], datastore: Datastore, verify: Verify = "sizes"
) -> AnnIndex:
    """Open a saved index of this datastore.

    Args:
        path: its folder.
        datastore: the datastore to search; the index must have been built for this content.
        verify: "sizes" compares the file's length; "digests" reads the file, and detects
            a changed byte.

    Raises:
        ConfigError: `verify` is unknown.
        IndexFileError: it is missing, damaged, of another version, or of another datastore.
        MissingExtraError: FAISS is not installed.
    """
    check_verify(verify)
    folder = Path(path)
    return opened_whole(folder, lambda real: _open_once(real, datastore, verify))


def _open_once(folder: Path, datastore: Datastore, verify: Verify) -> AnnIndex:
    about = read_record(folder, _KIND)
    try:
        recipe = KEY_RECIPES[about["recipe"]](**about["settings"])
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
    made = recipe, str(digest), datastore.signature
    shape = len(datastore), datastore.about.dimension
    return AnnIndex.read(folder / _INDEX, made, shape, _AGAIN)
