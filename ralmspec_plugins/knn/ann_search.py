"""Approximate search of a datastore with FAISS: an HNSW graph, or lists of quantised keys."""

import os
from collections.abc import Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ralmspec_plugins.errors import ConfigError, IndexFileError
from ralmspec_plugins.knn.ann_index import (
    HnswRecipe,
    IvfPqRecipe,
    build_index,
    check_place,
    is_saved,
    open_index,
    save_index,
)
from ralmspec_plugins.knn.datastore import Datastore, Ids
from ralmspec_plugins.knn.search import Neighbours, encode_no_text, hidden_states, nearest_of
from ralmspec_plugins.retrieval.faiss_ann import AnnIndex
from ralmspec_plugins.retrieval.ranking import Metric, Vectors, exact_scores
from ralmspec_plugins.retrieval.storage.corpus import check_k
from ralmspec_plugins.types import Query


class ApproximateSearch:
    """Finds near entries fast, but not always the nearest; the result is independent of the batch.

    By default the candidates of the index are measured again with the datastore's own keys,
    and ordered exactly: distances are then those of an exact search.
    A wider search may start with other neighbours, and is not supported.
    """

    exact = False
    pure = True
    inline_encode = True

    def __init__(
        self, datastore: Datastore, built: AnnIndex, *, k: int = 1024, rerank: int | None = None
    ) -> None:
        """Create a search of a datastore by its index.

        Args:
            datastore: the keys and the tokens.
            built: from `build_index`, or `open_index`.
            k: the number of neighbours of a query; fewer if the index finds fewer.
            rerank: the number of candidates that are measured exactly, to select the best k;
                with 0 the index's own distances are used. By default k for HNSW; for IVF-PQ
                `refine` times k (16 k) up to 1024, and k beyond that.

        Raises:
            ConfigError: k is below 1, or rerank is between 0 and k.
            IndexFileError: the index belongs to another datastore.
            MissingExtraError: FAISS is not installed.
        """
        self.k = check_k(k)
        recipe = built.recipe
        if built.source != datastore.signature:
            raise IndexFileError(
                f"this {recipe.name} index was built for another datastore; build one for this: "
                "build_index(datastore, recipe)"
            )
        if rerank is None:
            rerank = recipe.candidates(k)
        if isinstance(rerank, bool) or not isinstance(rerank, int) or (rerank < k and rerank != 0):
            raise ConfigError(f"rerank must be 0, or at least k = {k}, got {rerank!r}")
        self.datastore = datastore
        self.built = built
        self.rerank = rerank
        self.size = len(datastore)
        self._count = min(rerank or k, self.size)

    @property
    def signature(self) -> Hashable:
        """A key of index, content and settings; it changes when the index is tuned."""
        recipe = self.built.recipe
        return (
            f"knn-{recipe.name}",
            (self.k, self.rerank, recipe.tuning(self.built.index)),
            self.built.digest,
            self.datastore.signature,
        )

    def encode(self, text: str) -> Query:
        """Raise an error: the queries are the model's hidden states.

        Raises:
            InputError: always.
        """
        return encode_no_text(text)

    def search(self, queries: Sequence[Query]) -> list[Neighbours]:
        """Return near entries of each query.

        Raises:
            InputError: a query without hidden state, of another dimension, or with NaN.
        """
        if not queries:
            return []
        hidden = hidden_states(queries, self.datastore.about.dimension)
        found = self.built.nearest(hidden, self._count)
        return [self._ranked(*one) for one in zip(hidden, *found, strict=True)]

    def _ranked(self, hidden: Vectors, distances: Vectors, found: Ids) -> Neighbours:
        there = found >= 0  # FAISS pads missing results with -1
        ids = found[there]
        if self.rerank:
            scores = exact_scores(self.datastore.keys[ids], hidden, Metric.L2)
        else:
            scores = -distances[there].astype(np.float64)
        return nearest_of(ids, self.datastore.values[ids], scores, self.k)


def hnsw_search(datastore: Datastore, **settings: Any) -> ApproximateSearch:
    """Search along an HNSW graph; see `approximate_search`, and `HnswRecipe` for settings."""
    return approximate_search(datastore, HnswRecipe, **settings)


def ivfpq_search(datastore: Datastore, **settings: Any) -> ApproximateSearch:
    """Search in lists of quantised keys; see `approximate_search`, and `IvfPqRecipe`."""
    return approximate_search(datastore, IvfPqRecipe, **settings)


def approximate_search(
    datastore: Datastore,
    kind: type[HnswRecipe] | type[IvfPqRecipe],
    *,
    k: int = 1024,
    rerank: int | None = None,
    index: str | os.PathLike[str] | None = None,
    build_threads: int = 1,
    **settings: Any,
) -> ApproximateSearch:
    """Open a datastore's index, or build it.

    Args:
        datastore: the datastore to search.
        kind: the kind of index.
        k: as for `ApproximateSearch`.
        rerank: as for `ApproximateSearch`.
        index: the folder of the index: opened if it exists, else built and saved, ideally
            inside the datastore's folder. By default the index is built in memory.
        build_threads: as for `build_index`.
        settings: the recipe's; they must equal those of a saved index.

    Raises:
        ConfigError: a setting is out of range, or the saved index was built with another.
        IndexFileError: the saved index is damaged, or belongs to another datastore.
        MissingExtraError: FAISS is not installed.
    """
    check_k(k)
    recipe: HnswRecipe | IvfPqRecipe = kind(**settings)
    if index is not None and is_saved(index):
        built = _as_asked(open_index(index, datastore), recipe, settings, Path(index))
        return ApproximateSearch(datastore, built, k=k, rerank=rerank)
    if index is not None:
        check_place(index)
    built = build_index(datastore, recipe, threads=build_threads)
    search = ApproximateSearch(datastore, built, k=k, rerank=rerank)
    if index is not None:
        save_index(built, index)
    return search


def _as_asked(
    built: AnnIndex, recipe: HnswRecipe | IvfPqRecipe, settings: dict[str, Any], folder: Path
) -> AnnIndex:
    """Return an opened index with tuned settings, if its recipe is the requested one."""
    asked: Any = recipe
    if type(built.recipe) is type(recipe):
        as_built: Any = built.recipe
        asked = replace(as_built, **settings)  # other settings are kept
    try:
        return built.tuned(asked)
    except ConfigError as error:
        raise ConfigError(f"{folder}: {error}; or give another place") from error
