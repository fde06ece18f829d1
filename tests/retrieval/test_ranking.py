"""The one ranking: rows score independently, and the certificate holds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ralmspec_plugins.errors import InputError
from ralmspec_plugins.retrieval.dense import DenseCorpus, normalised
from ralmspec_plugins.retrieval.numpy_flat import NumpyFlat
from ralmspec_plugins.retrieval.ranking import (
    IntArray,
    Metric,
    Vectors,
    best_first,
    certified_top_k,
    exact_scores,
    kernel_error,
    nominees,
)
from ralmspec_plugins.types import Passage, Query

METRICS = list(Metric)


def random_vectors(seed: int, *shape: int) -> Vectors:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dimension", [1, 2, 7, 8, 9, 127, 128, 129, 384, 1000, 9000])
def test_a_row_scores_the_same_in_any_company(metric: Metric, dimension: int) -> None:
    """Alone, among others, in any position, and from strided memory: the same bits."""
    rows, query = random_vectors(0, 60, dimension), random_vectors(1, dimension)
    scores = exact_scores(rows, query, metric)
    alone = np.array([exact_scores(row[None], query, metric)[0] for row in rows])

    assert scores.tobytes() == alone.tobytes()
    assert scores.tobytes() == exact_scores(rows[::-1], query, metric)[::-1].tobytes()
    assert scores.tobytes() == exact_scores(np.asfortranarray(rows), query, metric).tobytes()
    assert scores[::2].tobytes() == exact_scores(rows[::2], query, metric).tobytes()
    assert scores.tobytes() == exact_scores(np.tile(rows, (30, 1)), query, metric)[-60:].tobytes()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    dimension=st.integers(1, 300),
    scale=st.sampled_from([1e-30, 1e-15, 1.0, 1e8]),
    metric=st.sampled_from(METRICS),
)
def test_a_kernel_stays_within_its_stated_error(
    seed: int, dimension: int, scale: float, metric: Metric
) -> None:
    """A float32 product, and both float32 forms of L2, are within the bound of the truth."""
    rows = random_vectors(seed, 50, dimension) * np.float32(scale)
    query = random_vectors(seed + 1, dimension)
    wide, wide_query = rows.astype(np.float64), query.astype(np.float64)
    truth = exact_scores(rows, query, metric)
    norms = np.sqrt((wide * wide).sum(axis=1))
    error = kernel_error(
        metric, dimension, float(norms.max()), float(np.sqrt(wide_query @ wide_query))
    )
    if metric is Metric.L2:
        squares = (norms * norms).astype(np.float32)
        shifted = 2 * (rows @ query) - squares - wide_query @ wide_query
        direct = -((rows - query) ** 2).sum(axis=1, dtype=np.float32)

        assert np.abs(shifted - truth).max() <= error
        assert np.abs(direct - truth).max() <= error
    else:
        assert np.abs(rows @ query - truth).max() <= error


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32), k=st.integers(1, 60), error=st.sampled_from([0.0, 0.01, 3.0]))
def test_nominees_and_margins_find_the_true_top_k(seed: int, k: int, error: float) -> None:
    """However a kernel errs within its bound, both ways of nominating find the true best."""
    dice = np.random.default_rng(seed)
    truth = np.round(dice.standard_normal(50), 2)  # with many ties
    fast = (truth + dice.uniform(-error, error, 50)).astype(np.float32)
    bound = error + 1e-6
    places: IntArray = dice.permutation(50)
    expected = np.lexsort((places, -truth))[:k].tolist()

    def candidates(width: int) -> tuple[IntArray, Vectors]:
        rows = np.argsort(-fast)[:width]
        return rows, fast[rows]

    near = nominees(fast, k, bound)
    rows, scores = certified_top_k(candidates, lambda chosen: truth[chosen], places, k, bound)

    assert expected == near[best_first(truth[near], places[near], k)].tolist()
    assert expected == rows.tolist()
    assert truth[rows].tolist() == scores.tolist()


@pytest.mark.parametrize("metric", METRICS)
def test_near_ties_inside_the_kernels_error_are_ranked_by_the_truth(metric: Metric) -> None:
    """5,000 rows that float32 cannot tell apart, between many others: the exact top k, in order."""
    dice = np.random.default_rng(3)
    base = random_vectors(4, 64)
    near = np.repeat(base[None], 5000, axis=0)
    near[np.arange(5000), dice.integers(0, 64, 5000)] *= np.float32(1 + 2**-23)
    vectors = np.concatenate([random_vectors(5, 15_000, 64), near])
    vectors = normalised(vectors) if metric is Metric.COSINE else vectors
    order = dice.permutation(20_000)
    passages = [Passage(f"p{number:05d}", "") for number in range(20_000)]
    flat = NumpyFlat(DenseCorpus([passages[i] for i in order], vectors[order], None, metric), k=50)
    batch = [Query("near", base), *(Query(str(i), random_vectors(i, 64)) for i in range(6, 11))]
    truth = exact_scores(vectors, base, metric)
    expected = np.lexsort((np.arange(20_000), -truth))[:50]
    alone = flat.search(batch[:1])[0]

    assert [passages[row].id for row in expected] == [hit.passage.id for hit in alone]
    assert truth[expected].tolist() == [hit.score for hit in alone]
    assert [alone] == flat.search(batch)[:1]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    size=st.sampled_from([1, 5, 1023, 1024, 1025, 9300]),
    k=st.sampled_from([1, 3, 20, 2000]),
    metric=st.sampled_from(METRICS),
    kind=st.sampled_from(["random", "rising", "few values"]),
)
def test_the_blocked_scan_finds_what_a_full_sort_finds(
    seed: int, size: int, k: int, metric: Metric, kind: str
) -> None:
    """Tiles, bars and the worst order of rows lose nothing."""
    vectors = random_vectors(seed, size, 8)
    queries = random_vectors(seed + 1, 3, 8)
    if kind == "rising":  # each tile beats all former ones
        vectors = vectors[np.argsort(vectors @ queries[0])]
    elif kind == "few values":
        vectors = np.sign(vectors)
    corpus = DenseCorpus([Passage(f"{i:05d}", "") for i in range(size)], vectors, None, metric)
    found = NumpyFlat(corpus, k=k).search([Query(str(i), q) for i, q in enumerate(queries)])
    for query, hits in zip(queries, found, strict=True):
        truth = exact_scores(corpus.vectors, query, metric)
        expected = np.lexsort((np.arange(size), -truth))[:k]

        assert [f"{row:05d}" for row in expected] == [hit.passage.id for hit in hits]
        assert truth[expected].tolist() == [hit.score for hit in hits]


def test_vectors_that_cannot_be_ranked_are_refused() -> None:
    """NaN, infinity, wrong type or shape: refused when built, and when asked."""
    passages = [Passage("a", ""), Passage("b", "")]
    good = np.eye(2, dtype=np.float32)
    for bad in (np.nan, np.inf, 1e30):
        with pytest.raises(InputError, match="row 1"):
            DenseCorpus(passages, np.array([[0, 1], [bad, 0]], dtype=np.float32))
        with pytest.raises(InputError, match="NaN"):
            NumpyFlat(DenseCorpus(passages, good)).search([Query("q", np.array([bad, 0]))])
    with pytest.raises(InputError, match="float64"):
        DenseCorpus(passages, np.eye(2))
    with pytest.raises(InputError, match="2 passages"):
        DenseCorpus(passages, np.eye(3, dtype=np.float32))
    with pytest.raises(InputError, match="2 dimensions"):
        NumpyFlat(DenseCorpus(passages, good)).search([Query("q", np.zeros(3))])


def test_cosine_does_not_see_lengths() -> None:
    """Rows and queries are scaled to length 1, and a zero vector scores 0."""
    passages = [Passage(name, "") for name in "abc"]
    vectors = np.array([[3, 4], [0, 0.001], [0, 0]], dtype=np.float32)
    flat = NumpyFlat(DenseCorpus(passages, vectors, lambda _: [0, 9], "cosine"), k=3)
    hits = flat.search([flat.encode("up")])[0]

    assert [hit.passage.id for hit in hits] == ["b", "a", "c"]
    assert pytest.approx([1.0, 0.8, 0.0]) == [hit.score for hit in hits]


def test_hits_carry_a_view_of_their_row() -> None:
    """What a pool remembers costs no copy."""
    corpus = DenseCorpus([Passage("a", "")], np.ones((1, 2), dtype=np.float32))
    hit = NumpyFlat(corpus).search([Query("q", np.ones(2))])[0][0]

    assert np.shares_memory(hit.features, corpus.vectors)
