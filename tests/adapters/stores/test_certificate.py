"""The certificate: what it lets pass is every kernel's ranking, and it lets most pass."""

from collections.abc import Callable

import numpy as np
import pytest

from ralmspec_plugins.adapters.stores.certificate import (
    MARGIN,
    Candidates,
    is_clear_of_ties,
    tie_margin,
)
from ralmspec_plugins.retrieval.ranking import Metric, Vectors

Kernel = Callable[[Vectors, Vectors], Vectors]


def forwards(rows: Vectors, query: Vectors) -> Vectors:
    """Add the products one after the other, in float32."""
    total = np.zeros(len(rows), dtype=np.float32)
    for at in range(len(query)):
        total += rows[:, at] * query[at]
    return total


def backwards(rows: Vectors, query: Vectors) -> Vectors:
    """Add them in the other order."""
    return forwards(rows[:, ::-1], query[::-1])


def blas(rows: Vectors, query: Vectors) -> Vectors:
    """Let BLAS multiply."""
    return rows @ query


def l2(dot: Kernel) -> Kernel:
    """Make distances (negated) of products, as FAISS does for many queries."""

    def kernel(rows: Vectors, query: Vectors) -> Vectors:
        return 2 * dot(rows, query) - dot_of_self(rows) - np.float32(query @ query)

    return kernel


def differences(rows: Vectors, query: Vectors) -> Vectors:
    """Make distances (negated) of differences, as FAISS does for one."""
    return -(((rows - query) ** 2).astype(np.float32)).sum(axis=1)


def dot_of_self(rows: Vectors) -> Vectors:
    squares: Vectors = (rows * rows).sum(axis=1)
    return squares


KERNELS: dict[Metric, list[Kernel]] = {
    Metric.IP: [forwards, backwards, blas],
    Metric.L2: [l2(forwards), l2(backwards), l2(blas), differences],
}


def world(seed: int, scale: float) -> tuple[Vectors, Vectors]:
    """Make 400 rows in steps that kernels can just tell apart, and a query."""
    random = np.random.default_rng(seed)
    base = random.standard_normal((40, 96)).astype(np.float32)
    steps = random.choice([0.0, 1e-7, 1e-6, 1e-5, 1e-3], size=(400, 1))
    noise = random.standard_normal((400, 96))
    rows = (np.repeat(base, 10, axis=0) + steps * noise).astype(np.float32)
    return (rows * np.float32(scale)), base[0] * np.float32(scale * 0.7)


@pytest.mark.parametrize("metric", [Metric.IP, Metric.L2])
def test_what_is_certain_is_so_in_every_kernel(metric: Metric) -> None:
    """Over near ties of all sizes: a certain ranking is the same by four ways to add."""
    certain_ones = doubtful_ones = differing = 0
    for seed in range(120):
        rows, query = world(seed, [1.0, 30.0, 1e-3][seed % 3])
        for first in KERNELS[metric]:
            scores = first(rows, query)
            for k in (1, 4):
                order = np.argsort(-scores, kind="stable")[: k + MARGIN]
                largest = float(np.linalg.norm(rows, axis=1).max())
                found = Candidates(
                    rows[order],
                    float(scores[order[-1]]),
                    largest if metric is Metric.IP else None,
                )
                others = [
                    np.argsort(-kernel(rows, query), kind="stable")[:k].tolist()
                    for kernel in KERNELS[metric]
                ]
                same = all(other == order[:k].tolist() for other in others)
                differing += not same
                if is_clear_of_ties(query, found, k, metric):
                    certain_ones += 1
                    assert same
                else:
                    doubtful_ones += 1

    assert differing > 20
    assert min(certain_ones, doubtful_ones) > 20


def test_clear_rankings_are_certain() -> None:
    """Rows a hundredth apart leave no doubt; so speculation keeps its batches."""
    rows = np.eye(20, dtype=np.float32) * (1 + np.arange(20, dtype=np.float32)[:, None] / 100)
    query = np.ones(20, dtype=np.float32)
    best = np.argsort(-(rows @ query))[:10]
    found = Candidates(rows[best], float((rows @ query)[best[-1]]), 1.2)

    assert is_clear_of_ties(query, found, 4, Metric.IP)


@pytest.mark.parametrize(
    "found",
    [
        Candidates(np.ones((3, 4), dtype=np.float32), None),
        Candidates(np.array([[1.0, 0, 0, 0], [np.nan, 0, 0, 0]], dtype=np.float32), None),
        Candidates(np.array([[1.0, 0, 0, 0], [0.5, 0, 0, 0]], dtype=np.float32), 0.4, None),
        Candidates(np.array([[1.0, 0, 0, 0], [0.5, 0, 0, 0]], dtype=np.float32), 0.4, 1e9),
        Candidates(np.empty((0, 4), dtype=np.float32), 1.0, 1.0),
    ],
    ids=["duplicates", "NaN", "unknown norms", "huge norms left out", "nothing found"],
)
def test_doubtful_cases(found: Candidates) -> None:
    """Duplicates, NaN, and rows left out of which too little is known: not certain."""
    assert not is_clear_of_ties(np.ones(4, dtype=np.float32), found, 2, Metric.IP)


def test_equal_vectors_are_certain_where_the_host_orders_them_by_position() -> None:
    """Ascending positions only, and no vector that is merely near."""
    rows = np.array([[1.0, 0], [0.5, 0], [0.5, 0], [0.2, 0]], dtype=np.float32)
    near = rows.copy()
    near[2] = np.nextafter(near[1], np.float32(0), dtype=np.float32)
    query = np.ones(2, dtype=np.float32)

    def certain(rows: Vectors, positions: list[int]) -> bool:
        found = Candidates(rows, None)
        return is_clear_of_ties(query, found, 3, Metric.L2, positions=np.array(positions))

    assert not is_clear_of_ties(query, Candidates(rows, None), 3, Metric.L2)
    assert certain(rows, [9, 3, 7, 1])
    assert not certain(rows, [9, 7, 3, 1])
    assert not certain(near, [9, 3, 7, 1])


def test_equal_vectors_after_the_last_row_are_in_order_too() -> None:
    """Another kernel may rank one far behind that the host returns; one nearly equal as well."""
    rows = np.array([[1.0, 0], *[[0.5, 0]] * 4, [0.2, 0], [0.2, 0]], dtype=np.float32)
    near = rows.copy()
    near[4] = np.nextafter(near[3], np.float32(0), dtype=np.float32)
    query = np.ones(2, dtype=np.float32)

    def certain(rows: Vectors, positions: list[int]) -> bool:
        found = Candidates(rows, None)
        return is_clear_of_ties(query, found, 2, Metric.L2, positions=np.array(positions))

    assert certain(rows, [9, 3, 5, 7, 8, 2, 1])
    assert not certain(rows, [9, 3, 5, 7, 4, 1, 2])
    assert not certain(near, [9, 3, 5, 7, 8, 1, 2])


def test_a_score_at_the_threshold_is_doubtful() -> None:
    """Kernels may come to lie on both sides of a threshold that a score touches."""
    rows = np.array([[1.0, 0.0], [0.5, 0.0]], dtype=np.float32)
    query = np.array([1.0, 0.0], dtype=np.float32)
    found = Candidates(rows, None)

    assert is_clear_of_ties(query, found, 2, Metric.IP, threshold=0.7)
    assert not is_clear_of_ties(query, found, 2, Metric.IP, threshold=0.5)


def test_rows_beyond_reach_never_come_first() -> None:
    """A row of a larger norm than `tie_margin` is farther in any kernel, its error included."""
    random = np.random.default_rng(5)
    for _ in range(200):
        query = random.standard_normal(64).astype(np.float32) * np.float32(random.choice([1, 50]))
        near = query * np.float32(1 + random.choice([0, 1e-6, 0.01, 0.5]))
        last = differences(near[None], query)[0]
        norm = float(np.linalg.norm(query.astype(np.float64)))
        far = random.standard_normal(64).astype(np.float32)
        if random.random() < 0.5:
            far = query.copy()  # the same direction: the nearest that a long row can be
        far *= np.float32(tie_margin(norm, float(last)) * 1.0001 / np.linalg.norm(far))
        scores = [kernel(far[None], query)[0] for kernel in KERNELS[Metric.L2]]
        own = [kernel(near[None], query)[0] for kernel in KERNELS[Metric.L2]]

        assert max(scores) < min(own)
