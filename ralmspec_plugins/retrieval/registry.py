"""The table of backends by name, each imported on first use.

| name | ranking | needs the extra |
|---|---|---|
| numpy-flat | exact, dense | none |
| torch-flat | exact, dense, also on a GPU | hf |
| faiss-flat | exact, dense | faiss |
| faiss-hnsw, faiss-ivf, faiss-ivfpq | approximate, dense | faiss |
| bm25s | exact, sparse | bm25 |
| lucene | exact, sparse, by Lucene itself | lucene |
"""

import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from ralmspec_plugins.errors import ConfigError, IndexFileError, MissingExtraError
from ralmspec_plugins.protocols import PassageTable
from ralmspec_plugins.retrieval.artifacts import IndexArtifacts
from ralmspec_plugins.retrieval.encoders import Encoder, HashingEncoder, encoder_from
from ralmspec_plugins.retrieval.storage.corpus import check_k
from ralmspec_plugins.retrieval.storage.files import DAMAGE, PASSAGE_FILES, PassageFile, open_array
from ralmspec_plugins.retrieval.storage.format import (
    FORMAT,
    OWN,
    VERSION,
    RecordKind,
    Verify,
    check_file,
    check_verify,
    opened_whole,
    plain_name,
    read_record,
)
from ralmspec_plugins.types import Hits, Passage, Query

# Reads a saved knowledge base, and checks it before use.


_KIND = RecordKind(
    missing=(
        "is not a saved knowledge base: it has no kb.json; create one with save(retriever, path), "
        "or on the command line with: ralmspec index INPUT OUTPUT"
    ),
    file="kb.json",
    format=FORMAT,
    version=VERSION,
    again="build the knowledge base again",
)


def read(path: str | os.PathLike[str], verify: Verify = "digests") -> IndexArtifacts:
    """Return the checked artifacts of a folder; passages and arrays are memory-mapped.

    A backend's own files are checked, too, and returned as paths.

    Args:
        path: the folder.
        verify: "digests" reads every file once and compares its SHA-256; "sizes" only
            compares the files' lengths, and so opens an index of any size immediately, but
            does not detect a changed byte.

    Raises:
        ConfigError: `verify` is unknown.
        IndexFileError: it is missing, damaged, or in another format.
    """
    check_verify(verify)
    folder = Path(path)
    return opened_whole(folder, lambda real: _read_once(real, verify))


def _read_once(folder: Path, verify: Verify) -> IndexArtifacts:
    manifest = _manifest(folder)
    for name, expected in manifest["files"].items():
        _check_file(folder, name, expected, verify)
    passages = PassageFile.open(folder, manifest["passages"])
    arrays, files = {}, {}
    for name, entry in manifest["files"].items():
        if name in PASSAGE_FILES:
            continue
        if name.endswith(".npy") and entry.get("kind") != OWN:
            arrays[name.removesuffix(".npy")] = open_array(folder / name)
        else:
            files[name] = folder / name
    return IndexArtifacts(manifest["backend"], manifest["settings"], passages, arrays, files)


def _manifest(folder: Path) -> dict[str, Any]:
    manifest = read_record(folder, _KIND)
    kinds = {"backend": str, "settings": dict, "files": dict, "passages": int}
    wrong = [name for name, kind in kinds.items() if not isinstance(manifest.get(name), kind)]
    wrong = wrong or [name for name in PASSAGE_FILES if name not in manifest["files"]]
    if wrong:
        raise IndexFileError(
            f"{folder / _KIND.file} is damaged ({', '.join(wrong)} missing or wrong); {_KIND.again}"
        )
    return manifest


def _check_file(folder: Path, name: str, expected: Any, verify: Verify) -> None:
    if not plain_name(name) or not isinstance(expected, Mapping):
        raise IndexFileError(f"{folder / _KIND.file} names an invalid file {name!r}; {_KIND.again}")
    check_file(folder / name, expected, verify, _KIND.again)


class KnowledgeBase(Protocol):
    """The protocol of backends; exact ones have `search_wide`, too."""

    exact: bool
    pure: bool
    inline_encode: bool
    k: int
    size: int
    signature: Hashable

    def encode(self, text: str) -> Query:
        """Encode one query, in a batch of one."""
        ...

    def search(self, queries: Sequence[Query]) -> list[Hits]:
        """Return the best k passages of each query."""
        ...

    def table(self, capacity: int) -> PassageTable:
        """Return an empty table for a passage cache."""
        ...

    def parts(self) -> IndexArtifacts:
        """Return the artifacts to save."""
        ...


_HERE = "ralmspec_plugins.retrieval"
BACKENDS = {
    "numpy-flat": (f"{_HERE}.numpy_flat", "NumpyFlat"),
    "torch-flat": (f"{_HERE}.torch_flat", "TorchFlat"),
    "faiss-flat": (f"{_HERE}.faiss_flat", "FaissFlat"),
    "faiss-hnsw": (f"{_HERE}.faiss_ann", "FaissApproximate"),
    "faiss-ivf": (f"{_HERE}.faiss_ann", "FaissApproximate"),
    "faiss-ivfpq": (f"{_HERE}.faiss_ann", "FaissApproximate"),
    "bm25s": (f"{_HERE}.bm25", "Bm25Retriever"),
    "lucene": (f"{_HERE}.lucene", "LuceneRetriever"),
}


def open_retriever(
    name: str, passages: Sequence[Passage], encoder: Encoder | None = None, **settings: Any
) -> KnowledgeBase:
    """Return a retriever of passages by its backend's name.

    Args:
        name: one of `BACKENDS`.
        passages: the knowledge base.
        encoder: converts texts to vectors; `HashingEncoder()` by default. Sparse ones need none.
        settings: the arguments of the backend's `build` (`k`, `metric`, `vectors`, `k1`, ...),
            for approximate ones also of the recipe (`search_list`, `probes`, ...).

    Raises:
        ConfigError: the backend is unknown; the message lists the known ones.
        MissingExtraError: the backend's library is not installed.
    """
    backend = backend_of(name)
    if needs_encoder(name) and encoder is None and settings.get("vectors") is None:
        encoder = HashingEncoder()
    built: KnowledgeBase = backend.build(passages, encoder, **_with_recipe(name, settings))
    return built


def load(
    path: str | os.PathLike[str],
    encoder: Encoder | None = None,
    k: int | None = None,
    *,
    verify: Verify = "digests",
    encoder_device: str | None = None,
) -> KnowledgeBase:
    """Load a saved knowledge base.

    Args:
        path: its folder.
        encoder: the one it was built with; created from its saved settings by default.
        k: the number of passages of a query; as saved by default.
        verify: "digests" reads every file once and compares its SHA-256 (about a second per
            gigabyte); "sizes" compares only the files' lengths, for huge indexes.
        encoder_device: the device of an encoder that is created from its saved settings.

    Raises:
        ConfigError: there is no such device, or a setting is out of range.
        IndexFileError: the folder is missing, damaged or foreign, or the encoder differs.
        InputError: its encoder cannot be created here.
        MissingExtraError: its backend's library is not installed.
    """
    check_verify(verify)
    folder = Path(path)
    make = partial(encoder_from, device=encoder_device)
    return opened_whole(folder, lambda real: _load_once(real, encoder, k, verify, make))


def _load_once(
    folder: Path,
    encoder: Encoder | None,
    k: int | None,
    verify: Verify,
    make: Callable[[Mapping[str, Any]], Encoder],
) -> KnowledgeBase:
    parts = _read_once(folder, verify)
    if parts.backend not in BACKENDS:
        raise IndexFileError(
            f"{folder} was saved by the unknown backend {parts.backend!r}; known are "
            f"{', '.join(BACKENDS)}"
        )
    if k is not None:
        check_k(k)
    if encoder is None and parts.settings.get("encoder_settings"):
        encoder = make(parts.settings["encoder_settings"])
    backend = backend_of(parts.backend)
    try:
        loaded: KnowledgeBase = backend.from_parts(
            parts, encoder, check_k(parts.setting("k")) if k is None else k
        )
    except (IndexFileError, MissingExtraError):
        raise
    except DAMAGE as error:
        raise IndexFileError(
            f"{folder} is damaged: {_KIND.file} and the files that it names do not fit "
            f"({type(error).__name__}: {error}); {_KIND.again}"
        ) from error
    return loaded


def needs_encoder(name: str) -> bool:
    """Return whether a backend searches vectors; sparse ones search words.

    Raises:
        ConfigError: the backend is unknown; the message lists the known ones.
    """
    return bool(getattr(backend_of(name), "needs_encoder", True))


def backend_of(name: str) -> Any:
    """Return a backend's class.

    Raises:
        ConfigError: the name is unknown; the message lists the known ones.
    """
    if name not in BACKENDS:
        raise ConfigError(f"unknown backend {name!r}; known are {', '.join(BACKENDS)}")
    module, kind = BACKENDS[name]
    return getattr(import_module(module), kind)


def _with_recipe(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    if "Approximate" not in BACKENDS[name][1] or "recipe" in settings:
        return settings
    recipes = import_module(f"{_HERE}.faiss_ann").RECIPES
    own = {field.name for field in fields(recipes[name])}
    recipe = recipes[name](**{key: value for key, value in settings.items() if key in own})
    rest = {key: value for key, value in settings.items() if key not in own}
    return {"recipe": recipe, **rest}
