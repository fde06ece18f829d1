"""FAISS batches that are to the bit what single searches give, whatever the rows."""

from collections.abc import Iterator
from itertools import pairwise

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from ralmspec_plugins.adapters.stores.faiss import alike_search, flat_search, orders_equals


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(request.param)
    yield request.param
    faiss.omp_set_num_threads(before)


def awkward(rows: int, dimension: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Make rows of which a quarter repeat others, some in their last bit only, and queries."""
    random = np.random.default_rng(rows + dimension)
    table = random.standard_normal((rows, dimension)).astype(np.float32)
    quarter = rows // 4
    table[quarter : 2 * quarter] = table[:quarter]
    table[2 * quarter : 3 * quarter : 2] = np.nextafter(table[:quarter:2], np.float32(9))
    queries = random.standard_normal((24, dimension)).astype(np.float32)
    queries[:8] = table[:8]
    return table, queries


@pytest.mark.parametrize("kind", [faiss.IndexFlatL2, faiss.IndexFlatIP])
@pytest.mark.parametrize(
    ("rows", "dimension"), [(40, 3), (400, 8), (400, 33), (400, 384), (600, 7000), (10_400, 24)]
)
@pytest.mark.parametrize("width", [1, 10, 120])
@pytest.mark.usefixtures("threads")
def test_each_query_is_as_if_alone(kind: type, rows: int, dimension: int, width: int) -> None:
    """Rows, ties and the bits of scores, also where a single query is split or uses BLAS."""
    table, queries = awkward(rows, dimension)
    index = kind(dimension)
    index.add(table)
    singles = [index.search(queries[at : at + 1], width) for at in range(len(queries))]
    expected = [
        (positions[0][positions[0] >= 0].tolist(), scores[0][positions[0] >= 0].tobytes())
        for scores, positions in singles
    ]
    found = alike_search(index, queries, width)

    assert expected == [(own.tolist(), scores.tobytes()) for own, scores in found]


@pytest.mark.parametrize("rows", [400, 10_400])
@pytest.mark.parametrize("dimension", [3, 33, 384])
@pytest.mark.parametrize("kind", [faiss.IndexFlatL2, faiss.IndexFlatIP, faiss.IndexFlat])
def test_a_wide_search_starts_with_the_narrow_one_where_equals_are_ordered(
    kind: type, rows: int, dimension: int, threads: int
) -> None:
    """Over rows of which a quarter repeat others: for distances by the sequential kernel."""
    table, queries = awkward(rows, dimension)
    index = kind(dimension)
    index.add(table)
    ordered = orders_equals(index, 60)

    assert ordered == (kind is not faiss.IndexFlatIP and not (rows > 10_000 and threads > 1))
    assert not orders_equals(index, 100)
    narrow = [own.tolist() for own, _ in alike_search(index, queries, 6)]
    wide = [own.tolist() for own, _ in alike_search(index, queries, 60)]
    if ordered:
        assert narrow == [own[:6] for own in wide]
        assert any(a + rows // 4 == b for own in narrow for a, b in pairwise(own))


def test_an_empty_index_has_nothing() -> None:
    """Nothing is found, for each query."""
    found = alike_search(faiss.IndexFlatL2(4), np.zeros((2, 4), dtype=np.float32), 3)

    assert [own.tolist() for own, _ in found] == [[], []]


def test_rows_written_anew_count_in_the_error_bound() -> None:
    """As many other rows, of other lengths: the largest norm is read again."""
    index, stamp = faiss.IndexFlatIP(8), object()
    table = np.random.default_rng(5).standard_normal((40, 8)).astype(np.float32)
    norms = []
    for rows in (table, 3 * table):
        index.reset()
        index.add(rows)
        norms.append(flat_search(index, table[:1], 4, stamp)[0].largest_norm)
    index.remove_ids(np.array([3]))
    index.add(30 * table[3:4])
    norms.append(flat_search(index, table[:1], 4, stamp)[0].largest_norm)
    lengths = np.linalg.norm(table.astype(np.float64), axis=1)

    assert norms == pytest.approx([lengths.max(), 3 * lengths.max(), 30 * lengths[3]])
