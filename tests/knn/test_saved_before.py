"""A datastore in `saved/`, written before the modules moved, still opens and searches."""

from pathlib import Path

import numpy as np

from ralmspec_plugins.knn import Datastore, open_search
from ralmspec_plugins.types import Query

SAVED = Path(__file__).parent / "saved" / "datastore"


def test_a_datastore_of_before_opens() -> None:
    """Its entries are counted as then, and each key is its own nearest neighbour."""
    store = Datastore.open(SAVED)
    keys = np.load(SAVED / "keys.npy")
    search = open_search("exact", store, k=1)
    queries = [Query("", key.astype(np.float32), key=at) for at, key in enumerate(keys)]
    distances = [hits[0].distances[0] for hits in map(search.search, ([q] for q in queries))]

    assert len(store) == len(keys) > 0
    assert max(distances) < 1e-6
