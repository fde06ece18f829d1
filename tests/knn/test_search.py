"""Exact search gives the true neighbours, to the bit, however it is asked."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ralmspec_plugins.errors import ConfigError, InputError
from ralmspec_plugins.knn.datastore import Datastore
from ralmspec_plugins.knn.search import ExactSearch, Keys, widen
from ralmspec_plugins.types import Query
from tests.knn.neighbour_worlds import (
    KINDS,
    asking,
    invented_hidden,
    invented_store,
    nearest_by_hand,
    stores,
)
from tests.selection import covering


@settings(max_examples=60, deadline=None)
@given(
    store=stores,
    seeds=st.lists(st.integers(0, 2**32), min_size=1, max_size=6),
    k=st.one_of(st.integers(1, 12), st.integers(13, 1600)),
    held=st.floats(0, 1),
    together=st.integers(1, 6),
)
def test_the_neighbours_are_the_true_ones(
    store: Datastore, seeds: list[int], k: int, held: float, together: int
) -> None:
    """Ids, values and distances are those of a sort of all distances, ties by id.

    Whatever the batch, and however many of the keys are held in float32.
    """
    search = ExactSearch(store, k=k, memory_bytes=int(held * 4 * store.keys.size))
    hidden = [invented_hidden(seed, store) for seed in seeds]
    queries = [asking(state) for state in hidden]
    expected = [nearest_by_hand(store, state, k) for state in hidden]
    found = []
    for start in range(0, len(queries), together):
        found += search.search(queries[start : start + together])

    assert expected == found


@pytest.mark.parametrize(("kind", "threads"), covering(KINDS, [None, 2]))
def test_a_scan_of_many_blocks_finds_the_true_ones(kind: str, threads: int | None) -> None:
    """Bars that rise from block to block, on threads too, let no true neighbour go."""
    if threads:
        pytest.importorskip("threadpoolctl")
    store = invented_store(3, 20_000, 6, kind)
    hidden = [invented_hidden(seed, store) for seed in range(3)]
    expected = {k: [nearest_by_hand(store, state, k) for state in hidden] for k in (1, 8, 1024)}
    for memory_bytes in (2**31, 100_000):
        search = ExactSearch(store, memory_bytes=memory_bytes, threads=threads)
        for k, truths in expected.items():
            assert truths == search.search_wide([asking(state) for state in hidden], k)


def test_a_wider_search_starts_with_the_plain_one() -> None:
    """The first k of a wide search are the k of the search, so one can serve as both."""
    store = invented_store(5, 3000, 4, "grid")
    search = ExactSearch(store, k=30)
    query = asking(invented_hidden(1, store))

    assert search.search([query])[0] == search.search_wide([query], 500)[0][:30]


def test_a_batch_of_more_queries_than_are_scanned_at_once() -> None:
    """150 queries in one call get what each would get alone."""
    store = invented_store(6, 300, 5)
    search = ExactSearch(store, k=7)
    queries = [asking(invented_hidden(seed, store)) for seed in range(150)]

    assert [search.search([query])[0] for query in queries] == search.search(queries)
    assert [] == search.search([])


def test_keys_are_searched_where_they_are(tmp_path: Path) -> None:
    """Without memory, only a small buffer is widened at a time, of a mapped file."""
    store = invented_store(7, 5000, 64)
    np.save(tmp_path / "keys.npy", store.keys)
    mapped = np.load(tmp_path / "keys.npy", mmap_mode="r")
    on_disk = Datastore(mapped, store.values, store.document_ends, store.about, store.signature)
    search = ExactSearch(on_disk, k=100, memory_bytes=0)
    queries = [asking(invented_hidden(seed, store)) for seed in range(4)]

    assert ExactSearch(store, k=100).search(queries) == search.search(queries)
    assert search.keys.rows_at_once * 64 * 4 <= 1 << 20
    assert 0 == len(search.keys.vectors._held)


def test_the_bound_holds_for_what_the_scan_computes() -> None:
    """Far from the origin, 2 x.q - |x|^2 in float32 is off, but never by more than it is said."""
    store = invented_store(8, 500, 32, "far")
    keys = Keys(store)
    hidden = invented_hidden(1, store)
    fast = 2 * (keys.vectors[:500] @ hidden) - keys.squares
    exact = keys.exact(np.arange(500), hidden) + float(hidden.astype(np.float64) @ hidden)
    off = np.abs(fast - exact).max()

    assert off > 0.01
    assert off <= keys.error(hidden)


def test_each_thread_has_a_buffer_of_its_own() -> None:
    """What one thread has had widened stays as it is while another asks for other rows."""
    store = invented_store(10, 50, 3)
    rows = Keys(store, memory_bytes=0).vectors
    mine = rows[0:20]
    with ThreadPoolExecutor(1) as other:
        theirs = other.submit(lambda: rows[20:40]).result()

    assert np.array_equal(store.keys[:20].astype(np.float32), mine)
    assert np.array_equal(store.keys[20:40].astype(np.float32), theirs)


def test_all_halves_are_widened_exactly() -> None:
    """Each of the 63,488 finite halves becomes the same number, and keeps its sign."""
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    halves = np.ascontiguousarray(halves[np.isfinite(halves)])
    out = np.empty(len(halves), dtype=np.float32)
    widen(halves, out)

    assert halves.astype(np.float32).tobytes() == out.tobytes()


def test_a_thread_without_subnormal_numbers_widens_exactly_too() -> None:
    """torch can have a thread take tiny numbers for 0; widening does not depend on it."""
    torch = pytest.importorskip("torch")
    halves = np.arange(2**10, dtype=np.uint16).view(np.float16)
    out = np.empty(len(halves), dtype=np.float32)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot")
    try:
        widen(halves, out)
    finally:
        torch.set_flush_denormal(False)

    assert halves.astype(np.float32).tobytes() == out.tobytes()


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (Query("what"), "this query has none"),
        (asking(np.zeros(3, dtype=np.float32)), r"shape \(3,\), but the datastore's keys have 4"),
        (asking(np.full(4, np.nan, dtype=np.float32)), "NaN, infinite or huge"),
        (asking(np.full(4, 1e18, dtype=np.float32)), "NaN, infinite or huge"),
    ],
)
def test_what_cannot_be_searched_is_refused(query: Query, message: str) -> None:
    """A query without a usable hidden state is an error that says what it has."""
    search = ExactSearch(invented_store(9, 20, 4), k=2)
    with pytest.raises(InputError, match=message):
        search.search([query])


def test_a_text_is_refused() -> None:
    """There is nothing that would encode a text."""
    search = ExactSearch(invented_store(9, 20, 4), k=2)
    with pytest.raises(InputError, match="not with texts, got 'what'"):
        search.encode("what")


@pytest.mark.parametrize(
    ("settings_given", "message"),
    [
        ({"k": 0}, "k must be"),
        ({"memory_bytes": -1}, "memory_bytes must be"),
        ({"threads": 0}, "threads must be"),
    ],
)
def test_settings_without_meaning_are_refused(settings_given: dict[str, int], message: str) -> None:
    """No k, no thread, or less than no memory is an error that names the setting."""
    with pytest.raises(ConfigError, match=message):
        ExactSearch(invented_store(9, 20, 4), **settings_given)


def test_signatures_tell_what_answers_depend_on() -> None:
    """k and content count; memory and threads, which change no bit, do not."""
    store, other = invented_store(1, 50, 3), invented_store(2, 50, 3)
    signature = ExactSearch(store, k=4).signature

    assert signature == ExactSearch(store, k=4, memory_bytes=0).signature
    assert signature != ExactSearch(store, k=5).signature
    assert signature != ExactSearch(other, k=4).signature
