"""The local cache: what it takes in, what it lets go, and that it ranks as a search does."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ralmspec_plugins.errors import ConfigError, InputError
from ralmspec_plugins.knn import cache as cache_module
from ralmspec_plugins.knn.cache import NeighbourCache
from ralmspec_plugins.knn.datastore import Datastore
from ralmspec_plugins.knn.search import ExactSearch, Neighbours
from ralmspec_plugins.types import Hit, Passage, Query
from tests.knn.neighbour_worlds import (
    asking,
    invented_hidden,
    invented_store,
    nearest_by_hand,
    stores,
)


def found(store: Datastore, *ids: int) -> Neighbours:
    """Say that a search found these entries, in this order."""
    entries = np.array(ids, dtype=np.int64)
    return Neighbours(entries, store.values[entries], np.arange(len(ids), dtype=np.float64))


def hits_of(*ids: int) -> list[Hit]:
    """Say the same in hits, of a datastore that may have no such entries."""
    return [Hit(Passage(str(entry), ""), 0.0) for entry in ids]


def anything(store: Datastore) -> Query:
    return asking(invented_hidden(0, store))


def held(cache: NeighbourCache) -> set[int]:
    """Give the entries in a cache, which guesses with all it has."""
    guess = cache.guess(asking(np.zeros(cache._datastore.about.dimension, dtype=np.float32)))
    return set() if guess is None else set(guess.ids.tolist())


def test_what_follows_a_neighbour_is_guessed() -> None:
    """Two documents, entries 0-4 and 5-9, and n = 3: 3 brings 4 alone, 5 brings 6, 7 and 8."""
    store = Datastore.of(np.eye(10), range(10), [5, 10])
    cache = NeighbourCache(store, k=10, following=3)
    cache.learn(anything(store), found(store, 3, 5))

    assert {3, 4, 5, 6, 7, 8} == held(cache)
    assert 6 == cache.size


def test_only_the_nearest_are_followed_where_so_many_are_asked_for() -> None:
    """With `followed=1` the first neighbour's next entries come in, the second comes alone."""
    store = Datastore.of(np.eye(10), range(10))
    cache = NeighbourCache(store, k=10, following=2, followed=1)
    cache.learn(anything(store), found(store, 6, 1))

    assert {6, 7, 8, 1} == held(cache)


def test_an_empty_cache_guesses_nothing() -> None:
    """No guess is `None`, before anything was learned and after it was forgotten."""
    store = invented_store(1, 50, 4)
    cache = NeighbourCache(store, k=3)
    query = anything(store)

    assert cache.guess(query) is None
    cache.learn(query, found(store, 1))
    assert cache.guess(query) is not None
    cache.clear()
    assert cache.guess(query) is None
    cache.check()


def test_the_oldest_make_room() -> None:
    """Capacity 4: a fifth entry takes the place of the one that was farthest in the first search.

    Whether it is taken in at once or with the others makes no difference.
    """
    store = Datastore.of(np.eye(10), range(10))
    caches = [NeighbourCache(store, k=10, following=0, capacity=4) for _ in range(2)]
    for ids in ((0, 1), (2, 3), (4,)):
        for cache in caches:
            cache.learn(anything(store), found(store, *ids))
        held(caches[0])

    assert {0, 2, 3, 4} == held(caches[0]) == held(caches[1])


def test_what_a_search_found_is_in_the_cache_afterwards() -> None:
    """An old entry that is found again stays, and is the newest then."""
    store = Datastore.of(np.eye(10), range(10))
    cache = NeighbourCache(store, k=10, following=0, capacity=4)
    cache.learn(anything(store), found(store, 0, 1, 2, 3))
    cache.learn(anything(store), found(store, 3, 8))

    assert {3, 8, 0, 1} == held(cache)
    cache.learn(anything(store), found(store, 9))
    assert {9, 3, 8, 0} == held(cache)
    cache.check()


def test_what_nobody_asks_for_is_not_taken_in() -> None:
    """Nothing is read for 256 searches without a guess, and the last ones count when it comes."""
    store = Datastore.of(np.eye(10), range(10))
    cache = NeighbourCache(store, k=10, following=0, capacity=3)
    for turn in range(256):
        cache.learn(anything(store), found(store, turn % 10))

    assert 0 == cache._size
    assert {3, 4, 5} == held(cache)
    assert 0 == len(cache._waiting)


def test_no_search_is_lost_however_many_wait() -> None:
    """Of 1,000 searches of one neighbour each all are in the cache, since there is room."""
    store = invented_store(1, 1000, 4)
    cache = NeighbourCache(store, k=1000, following=0)
    for entry in range(1000):
        cache.learn(anything(store), found(store, entry))

    assert set(range(1000)) == held(cache)
    cache.check()


def test_what_another_datastore_has_is_refused_at_once() -> None:
    """And nothing is lost of what this one has."""
    store = Datastore.of(np.eye(10), range(10))
    cache = NeighbourCache(store, k=10, following=0)
    cache.learn(anything(store), found(store, 1, 2))
    with pytest.raises(InputError, match="neighbours 3 to 10 were found, and this cache's"):
        cache.learn(anything(store), tuple(hits_of(3, 10)))

    assert {1, 2} == held(cache)


def test_a_search_larger_than_the_cache_brings_the_nearest() -> None:
    """Of five neighbours in a cache of three, the two farthest are left out."""
    store = Datastore.of(np.eye(10), range(10))
    cache = NeighbourCache(store, k=10, following=10, capacity=3)
    cache.learn(anything(store), found(store, 9, 5, 7, 0, 1))

    assert {9, 5, 7} == held(cache)


@settings(max_examples=100, deadline=None)
@given(
    store=stores,
    waiting=st.sampled_from([1, 2, 3, 256]),
    searches=st.lists(st.tuples(st.integers(0, 2**32), st.booleans()), min_size=1, max_size=8),
    k=st.integers(1, 40),
    following=st.integers(0, 12),
    capacity=st.integers(1, 300),
)
def test_it_holds_what_a_naive_one_holds(
    store: Datastore,
    waiting: int,
    searches: list[tuple[int, bool]],
    k: int,
    following: int,
    capacity: int,
) -> None:
    """What was brought last is there, whether there were guesses between the searches or not.

    However many searches may wait. And the guess is that of a sort of all distances, ties by id.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache_module, "_WAITING", waiting)
        check_naively(store, searches, k, following, capacity)


def check_naively(
    store: Datastore,
    searches: list[tuple[int, bool]],
    k: int,
    following: int,
    capacity: int,
) -> None:
    search = ExactSearch(store, k=k)
    cache = NeighbourCache(store, k=k, following=following, capacity=capacity)
    newest: dict[int, None] = {}  # in the order in which they were last brought, the oldest first
    for seed, guesses in searches:
        hidden = invented_hidden(seed, store)
        if newest and guesses:
            among = np.array(sorted(newest), dtype=np.int64)
            assert nearest_by_hand(store, hidden, k, among) == cache.guess(asking(hidden))
        [truth] = search.search([asking(hidden)])
        cache.learn(asking(hidden), truth)
        _learn_naively(newest, store, truth, following, capacity)

        assert not guesses or set(newest) == set(cache._ids[: cache.size].tolist())
        cache.check()
    assert set(newest) == set(cache._ids[: cache.size].tolist())


def _learn_naively(
    newest: dict[int, None], store: Datastore, truth: Neighbours, following: int, capacity: int
) -> None:
    ids = truth.ids.tolist()[:capacity]
    behind: set[int] = set()
    for entry in ids[: (capacity - len(ids)) // max(1, following)]:
        end = next(end for end in store.document_ends.tolist() if entry < end)
        behind.update(range(entry + 1, min(entry + 1 + following, end)))
    for entry in reversed([*ids, *sorted(behind - set(ids))]):
        newest.pop(entry, None)
        newest[entry] = None
    while len(newest) > capacity:
        del newest[next(iter(newest))]


@settings(max_examples=40, deadline=None)
@given(store=stores, seed=st.integers(0, 2**32), k=st.integers(1, 50))
def test_a_guess_with_all_neighbours_at_hand_is_the_truth(
    store: Datastore, seed: int, k: int
) -> None:
    """Where the cache holds the true neighbours, the guess equals the search, to the bit."""
    search = ExactSearch(store, k=k)
    query = asking(invented_hidden(seed, store))
    [truth] = search.search([query])
    cache = NeighbourCache(store, k=k, following=5)
    cache.learn(query, truth)
    for other in range(3):
        query_between = asking(invented_hidden(seed + other, store))
        cache.learn(query_between, search.search([query_between])[0])

    assert truth == cache.guess(query)


def test_hits_of_another_kind_are_learned_too() -> None:
    """A tuple of hits teaches what the arrays that it was made of teach."""
    store = invented_store(4, 60, 4)
    caches = NeighbourCache(store, k=9), NeighbourCache(store, k=9)
    query = anything(store)
    hits = found(store, 5, 40, 17)
    caches[0].learn(query, hits)
    caches[1].learn(query, tuple(hits))

    assert caches[0].guess(query) == caches[1].guess(query)


def test_threads_may_share_it() -> None:
    """Learning and guessing at once leave it sound, and each guess a ranking of entries."""
    store = invented_store(6, 2000, 8)
    search = ExactSearch(store, k=20)
    cache = NeighbourCache(store, k=20, capacity=300)
    queries = [asking(invented_hidden(seed, store)) for seed in range(40)]
    truths = search.search(queries)
    cache.learn(queries[0], truths[0])

    def work(number: int) -> Neighbours | None:
        cache.learn(queries[number], truths[number])
        return cache.guess(queries[number])

    with ThreadPoolExecutor(4) as threads:
        guesses = list(threads.map(work, range(40)))
    cache.check()
    for query, guess in zip(queries, guesses, strict=True):
        assert guess is not None
        assert nearest_by_hand(store, query.encoding, 20, np.sort(guess.ids)) == guess


def test_a_query_without_a_hidden_state_is_refused() -> None:
    """As by a search; the engine takes it as no guess."""
    cache = NeighbourCache(invented_store(4, 60, 4), k=9)
    with pytest.raises(InputError, match="this query has none"):
        cache.guess(Query("what"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda store: NeighbourCache(store, k=0), "k must be"),
        (lambda store: NeighbourCache(store, following=-1), "following must be at least 0"),
        (lambda store: NeighbourCache(store, followed=-1), "followed must be at least 0"),
        (lambda store: NeighbourCache(store, capacity=0), "capacity must be at least 1"),
    ],
)
def test_settings_without_meaning_are_refused(
    make: Callable[[Datastore], NeighbourCache], message: str
) -> None:
    """A number out of range is an error that names the setting and what it was."""
    with pytest.raises(ConfigError, match=message):
        make(invented_store(4, 60, 4))
