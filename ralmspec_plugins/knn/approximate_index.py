"""Build an approximate index of a datastore's keys, in bounded memory and always the same."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.knn.approximate_recipes import Recipe
from ralmspec_plugins.knn.datastore import Datastore
from ralmspec_plugins.knn.search_widening import widen
from ralmspec_plugins.retrieval.faiss_queries import index_digest
from ralmspec_plugins.retrieval.optional import optional
from ralmspec_plugins.retrieval.ranking import Vectors

_KEYS_AT_ONCE = 16_384


@dataclass(frozen=True, slots=True, eq=False)
class BuiltIndex:
    """An index over a datastore's keys; its entry n is the datastore's."""

    index: Any
    recipe: Recipe
    digest: str  # of the index as it was built: two graphs over the same keys may differ
    datastore: str  # the signature of the one that it belongs to

    def tuned(self, recipe: Recipe) -> Self:
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


def build_index(datastore: Datastore, recipe: Recipe, *, threads: int = 1) -> BuiltIndex:
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
