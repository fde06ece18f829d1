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
    """Gives near entries fast, and now and then not the nearest. The same ones in any batch.

    By default what the index finds is measured again with the datastore's own keys,
    exactly, and ordered as everywhere: distances are then those of an exact search.
    A wider search may start with other neighbours, so there is none.
    """

    exact = False
    pure = True
    inline_encode = True

    def __init__(
        self, datastore: Datastore, built: AnnIndex, *, k: int = 1024, rerank: int | None = None
    ) -> None:
        """Search a datastore by an index that belongs to it.

        Args:
            datastore: has the keys and the tokens.
            built: from `build_index`, or `open_index`.
            k: how many neighbours a query gets; fewer where the index does not find so many.
            rerank: how many of the index's entries are measured exactly, to take the best k of;
                0 takes the index's own distances for true. By default k for HNSW; for IVF-PQ
                `refine` times k (16 k) while that is no more than 1024, and k from there on.

        Raises:
            ConfigError: k below 1, or rerank between 0 and k.
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
        """Name index, content and settings; it changes when the index is tuned."""
        recipe = self.built.recipe
        return (
            f"knn-{recipe.name}",
            (self.k, self.rerank, recipe.tuning(self.built.index)),
            self.built.digest,
            self.datastore.signature,
        )

    def encode(self, text: str) -> Query:
        """Refuse a text: the model's hidden states are the queries.

        Raises:
            InputError: always.
        """
        return encode_no_text(text)

    def search(self, queries: Sequence[Query]) -> list[Neighbours]:
        """Find near entries of each query.

        Raises:
            InputError: a query without hidden state, of another dimension, or with NaN.
        """
        if not queries:
            return []
        hidden = hidden_states(queries, self.datastore.about.dimension)
        found = self.built.nearest(hidden, self._count)
        return [self._ranked(*one) for one in zip(hidden, *found, strict=True)]

    def _ranked(self, hidden: Vectors, distances: Vectors, found: Ids) -> Neighbours:
        there = found >= 0  # FAISS pads with -1 where it found fewer
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
        datastore: what is searched.
        kind: of which index.
        k: as for `ApproximateSearch`.
        rerank: as for `ApproximateSearch`.
        index: the folder of the index: opened if it is there, else built and saved. Its place is
            best inside the datastore's folder. Without one it is built in memory, each time.
        build_threads: as for `build_index`.
        settings: the recipe's; those that an index was built with must be those of the saved one.

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
    """Tune an opened index; refuse one that was built otherwise than was asked for."""
    asked: Any = recipe
    if type(built.recipe) is type(recipe):
        as_built: Any = built.recipe
        asked = replace(as_built, **settings)  # what was not asked for stays
    try:
        return built.tuned(asked)
    except ConfigError as error:
        raise ConfigError(f"{folder}: {error}; or give another place") from error
