"""Save an approximate index as a folder, whole or not at all, and open it for its datastore.

`index.faiss` is FAISS's own format; `index.json` says how it was built, for which
datastore, and what the other file must be. Nothing is ever pickled.
"""

import json
import os
import secrets
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ralmspec_plugins.errors import IndexFileError
from ralmspec_plugins.knn.approximate_index import BuiltIndex, faiss_library
from ralmspec_plugins.knn.approximate_recipes import RECIPES
from ralmspec_plugins.knn.datastore import Datastore
from ralmspec_plugins.retrieval.faiss_queries import write_to
from ralmspec_plugins.retrieval.recorded import (
    RecordKind,
    Verify,
    check_file,
    check_verify,
    file_record,
    read_record,
)
from ralmspec_plugins.retrieval.replacing import atomic_replace
from ralmspec_plugins.retrieval.storage import check_target, removed_afterwards

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
