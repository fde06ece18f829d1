"""Datastores for searches, with ties and duplicates, and what is nearest by the slowest way."""

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from ralmspec_plugins.knn.datastore import Datastore
from ralmspec_plugins.knn.search import Neighbours
from ralmspec_plugins.retrieval.ranking import Vectors
from ralmspec_plugins.types import Query

KINDS = ["spread", "grid", "copies", "far"]


def invented_store(seed: int, entries: int, dimension: int, kind: str = "spread") -> Datastore:
    """Invent keys, tokens and documents.

    Kinds: "spread" without ties; "grid" of few different numbers, so full of ties;
    "copies" of a few keys; "far" from the origin and near each other, where a product
    of floats loses most of a distance.
    """
    dice = np.random.default_rng(seed)
    if kind == "grid":
        keys = dice.integers(-1, 2, (entries, dimension)).astype(np.float64)
    elif kind == "copies":
        some = dice.standard_normal((max(1, entries // 20), dimension))
        keys = some[dice.integers(0, len(some), entries)]
    elif kind == "far":
        keys = 500.0 + dice.integers(0, 5, (entries, dimension)) / 2
    else:
        keys = dice.standard_normal((entries, dimension))
    ends = np.unique(np.append(dice.integers(1, entries + 1, entries // 10), entries))
    return Datastore.of(keys, dice.integers(0, 50, entries), ends)


def invented_hidden(seed: int, store: Datastore) -> Vectors:
    """Invent a hidden state near some entry, or that entry's own key."""
    dice = np.random.default_rng(seed)
    key = store.keys[dice.integers(0, len(store))].astype(np.float32)
    noise = dice.standard_normal(len(key), dtype=np.float32)
    return key + noise * np.float32(dice.choice([0.0, 0.3]))


def asking(hidden: Vectors) -> Query:
    """Ask with a hidden state."""
    return Query("", hidden, key=hidden.tobytes())


def nearest_by_hand(
    store: Datastore, hidden: Vectors, k: int, among: NDArray[np.int64] | None = None
) -> Neighbours:
    """Measure each entry by itself in float64, and sort by distance and id."""
    wide = hidden.astype(np.float64)
    measured = []
    for entry in range(len(store)) if among is None else among.tolist():
        difference = store.keys[entry].astype(np.float64) - wide
        measured.append((float((difference * difference).sum()), entry))
    best = sorted(measured)[:k]
    ids = np.array([entry for _, entry in best], dtype=np.int64)
    return Neighbours(ids, store.values[ids], np.array([distance for distance, _ in best]))


stores = st.builds(
    invented_store,
    seed=st.integers(0, 2**32),
    entries=st.integers(1, 1500),
    dimension=st.integers(1, 24),
    kind=st.sampled_from(KINDS),
)
