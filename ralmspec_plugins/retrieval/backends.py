"""The table of backends by name, each loaded only when it is asked for.

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
from collections.abc import Hashable, Sequence
from dataclasses import fields
from importlib import import_module
from typing import Any, Protocol

from ralmspec_plugins.errors import ConfigError, IndexFileError
from ralmspec_plugins.protocols import PassageTable
from ralmspec_plugins.retrieval.corpus import check_k
from ralmspec_plugins.retrieval.encoders import Encoder, HashingEncoder
from ralmspec_plugins.retrieval.loading import read
from ralmspec_plugins.retrieval.parts import Parts
from ralmspec_plugins.retrieval.recorded import Verify
from ralmspec_plugins.types import Hits, Passage, Query


class KnowledgeBase(Protocol):
    """What every backend here offers; the exact ones have `search_wide` too."""

    exact: bool
    pure: bool
    inline_encode: bool
    k: int
    size: int
    signature: Hashable

    def encode(self, text: str) -> Query:
        """Encode one query, alone in its pass."""
        ...

    def search(self, queries: Sequence[Query]) -> list[Hits]:
        """Find the best k passages of each query."""
        ...

    def table(self, capacity: int) -> PassageTable:
        """Make an empty table for a pool."""
        ...

    def parts(self) -> Parts:
        """Give what must be saved."""
        ...


_HERE = "ralmspec_plugins.retrieval"
BACKENDS = {
    "numpy-flat": (f"{_HERE}.numpy_flat", "NumpyFlat"),
    "torch-flat": (f"{_HERE}.torch_flat", "TorchFlat"),
    "faiss-flat": (f"{_HERE}.faiss_backend", "FaissFlat"),
    "faiss-hnsw": (f"{_HERE}.faiss_approximate", "FaissApproximate"),
    "faiss-ivf": (f"{_HERE}.faiss_approximate", "FaissApproximate"),
    "faiss-ivfpq": (f"{_HERE}.faiss_approximate", "FaissApproximate"),
    "bm25s": (f"{_HERE}.bm25s_backend", "Bm25Retriever"),
    "lucene": (f"{_HERE}.lucene", "LuceneRetriever"),
}


def open_retriever(
    name: str, passages: Sequence[Passage], encoder: Encoder | None = None, **settings: Any
) -> KnowledgeBase:
    """Build a retriever over passages by its backend's name.

    Args:
        name: one of `BACKENDS`.
        passages: the knowledge base.
        encoder: makes vectors of texts; `HashingEncoder()` unless given. Sparse ones need none.
        settings: what the backend's `build` takes (`k`, `metric`, `vectors`, `k1`, ...), for
            faiss-hnsw and the like also those of its recipe (`search_list`, `probes`, ...).

    Raises:
        ConfigError: an unknown backend; the message lists the known ones.
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
) -> KnowledgeBase:
    """Load a saved knowledge base.

    Args:
        path: its folder.
        encoder: the one it was built with; made anew from its saved settings unless given.
        k: how many passages a query gets; as saved unless given.
        verify: "digests" reads every file once and compares its SHA-256 (about a second a
            gigabyte); "sizes" compares the files' lengths alone, for huge indexes.

    Raises:
        IndexFileError: the folder is missing, damaged or foreign, or the encoder another one.
    """
    parts = read(path, verify)
    if parts.backend not in BACKENDS:
        raise IndexFileError(
            f"{os.fspath(path)} was saved by the unknown backend {parts.backend!r}; known are "
            f"{', '.join(BACKENDS)}"
        )
    chosen = check_k(parts.setting("k") if k is None else k)
    loaded: KnowledgeBase = backend_of(parts.backend).from_parts(parts, encoder, chosen)
    return loaded


def needs_encoder(name: str) -> bool:
    """Whether a backend searches vectors; the sparse ones search words.

    Raises:
        ConfigError: an unknown backend; the message lists the known ones.
    """
    return bool(getattr(backend_of(name), "needs_encoder", True))


def backend_of(name: str) -> Any:
    """Find a backend's class.

    Raises:
        ConfigError: there is none of that name; the message lists the known ones.
    """
    if name not in BACKENDS:
        raise ConfigError(f"unknown backend {name!r}; known are {', '.join(BACKENDS)}")
    module, kind = BACKENDS[name]
    return getattr(import_module(module), kind)


def _with_recipe(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    if "Approximate" not in BACKENDS[name][1] or "recipe" in settings:
        return settings
    recipes = import_module(f"{_HERE}.faiss_recipes").RECIPES
    own = {field.name for field in fields(recipes[name])}
    recipe = recipes[name](**{key: value for key, value in settings.items() if key in own})
    rest = {key: value for key, value in settings.items() if key not in own}
    return {"recipe": recipe, **rest}
