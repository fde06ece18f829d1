"""KNN-LM written out plainly, to hold the real one against."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ralmspec_plugins.knn.datastore import Datastore
from ralmspec_plugins.knn.search import Neighbours


def dense_mixture(
    log_probs: NDArray[np.floating],
    neighbours: Neighbours,
    weight: float,
    temperature: float,
) -> NDArray[np.float64]:
    """Mix the probabilities themselves over the whole vocabulary, a neighbour at a time."""
    nearest = min(neighbours.distances)
    weights = [math.exp((nearest - one) / temperature) for one in neighbours.distances]
    mixed = (1 - weight) * np.exp(log_probs.astype(np.float64))
    for value, one in zip(neighbours.values, weights, strict=True):
        mixed[value] += weight * one / math.fsum(weights)
    return mixed


def nearest(store: Datastore, hidden: NDArray[np.float32], k: int) -> Neighbours:
    """Rank every entry by exact squared distance, ties by id."""
    return ranked(store, hidden, np.arange(len(store)), k)


def ranked(
    store: Datastore, hidden: NDArray[np.float32], ids: NDArray[np.int64], k: int
) -> Neighbours:
    """Rank these entries, ids ascending, by squared distance."""
    gaps = store.keys[ids].astype(np.float64) - hidden.astype(np.float64)
    distances = np.array([math.fsum(row) for row in np.square(gaps)])
    order = np.argsort(distances, kind="stable")[:k]
    chosen = ids[order]
    return Neighbours(chosen, store.values[chosen], distances[order])


def following(store: Datastore, ids: Sequence[int], n: int) -> set[int]:
    """Give the ids behind these, one at a time, up to their document's end."""
    behind: set[int] = set()
    for one in ids:
        end = next(int(end) for end in store.document_ends if one < end)
        behind.update(range(one + 1, min(one + n + 1, end)))
    return behind
