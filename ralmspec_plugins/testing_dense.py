"""What every exact dense retriever must keep to, on vectors that are hard to rank.

Public, like `testing_contracts`: subclass it and say how yours is made of vectors.

    class TestMine(DenseContract):
        metric = "l2"

        def make_of_vectors(self, passages, vectors, k):
            return MyRetriever(passages, vectors, k=k)
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ralmspec_plugins.records import Passage, Query
from ralmspec_plugins.retrieval.ranking import LARGEST_NORM, exact_scores, metric_of
from ralmspec_plugins.retrieval.vectors import normalised
from ralmspec_plugins.testing_contracts import plain_hits

Vectors = NDArray[np.float32]

_DIMENSION = 48
_DUPLICATES = 5000


class DenseContract:
    """The true best k by exact scores, ties by id, however badly a fast kernel can tell them."""

    metric = "ip"

    def make_of_vectors(self, passages: Sequence[Passage], vectors: Vectors, k: int) -> Any:
        """Make the retriever under test over these vectors, one row a passage."""
        raise NotImplementedError("say in make_of_vectors() how your retriever is made")

    def holds(self, vectors: Vectors, asked: Vectors, k: int) -> None:
        """Check one corpus: each query alone, all in a batch, and wider than k."""
        if self.metric == "cosine":
            vectors, asked = normalised(vectors), normalised(asked)
        order = np.random.default_rng(9).permutation(len(vectors))
        ids = [f"p{place:06d}" for place in order]
        retriever = self.make_of_vectors([Passage(name, "") for name in ids], vectors, k)
        queries = [Query(str(number), vector) for number, vector in enumerate(asked)]
        for width in (k, min(3 * k, len(ids))):
            expected = []
            for vector in asked:
                scores = exact_scores(vectors, vector, metric_of(self.metric))
                best = np.lexsort((order, -scores))[:width]
                expected.append([(ids[row], scores[row]) for row in best])
            found = retriever.search_wide(queries, width)
            singly = [retriever.search_wide([query], width)[0] for query in queries]

            assert expected == [plain_hits(hits) for hits in found]
            assert expected == [plain_hits(hits) for hits in singly]

    def test_near_ties_of_float32_are_ranked_by_the_truth(self) -> None:
        """5,000 rows that differ by one last bit in one place, among others."""
        self._near_ties(2.0**-23)

    def test_near_ties_of_half_precision_are_ranked_by_the_truth(self) -> None:
        """5,000 rows that half precision makes one, among others."""
        self._near_ties(2.0**-12)

    def _near_ties(self, gap: float) -> None:
        dice = np.random.default_rng(3)
        base = dice.standard_normal(_DIMENSION, dtype=np.float32)
        near = np.repeat(base[None], _DUPLICATES, axis=0)
        places = dice.integers(0, _DIMENSION, _DUPLICATES)
        near[np.arange(_DUPLICATES), places] *= np.float32(1 + gap)
        others = dice.standard_normal((7000, _DIMENSION), dtype=np.float32)
        vectors = np.concatenate([others, near])[dice.permutation(7000 + _DUPLICATES)]
        self.holds(vectors, np.concatenate([base[None], others[:3] + 0.1]), 30)

    def test_planted_duplicates_come_in_order_of_id(self) -> None:
        """5,000 equal rows in random places; two thirds of what is asked for are ties."""
        dice = np.random.default_rng(4)
        one = dice.standard_normal((1, _DIMENSION), dtype=np.float32)
        others = dice.standard_normal((6000, _DIMENSION), dtype=np.float32)
        vectors = np.concatenate([others, np.repeat(one, _DUPLICATES, axis=0)])
        self.holds(vectors[dice.permutation(len(vectors))], np.concatenate([one, others[:2]]), 300)

    def test_zero_vectors_have_their_place(self) -> None:
        """Rows of zeros among others, and a query of zeros, for which all may be ties."""
        dice = np.random.default_rng(5)
        vectors = dice.standard_normal((500, _DIMENSION), dtype=np.float32)
        vectors[::3] = 0
        asked = np.concatenate([np.zeros((1, _DIMENSION), dtype=np.float32), vectors[1:3]])
        self.holds(vectors, asked, 40)

    def test_any_length_of_vector_is_ranked(self) -> None:
        """Lengths from the smallest to the largest that is accepted, in one corpus."""
        dice = np.random.default_rng(6)
        vectors = normalised(dice.standard_normal((600, 4), dtype=np.float32))
        lengths = np.array([1e-30, 1e-8, 1.0, 1e6, LARGEST_NORM / 16], dtype=np.float32)
        vectors *= lengths[np.arange(600) % 5][:, None]
        self.holds(vectors, vectors[:5] / np.float32(8), 20)

    def test_one_dimension_is_enough(self) -> None:
        """Numbers of few values, so that nearly all are ties."""
        dice = np.random.default_rng(7)
        vectors = dice.integers(-3, 4, (3000, 1)).astype(np.float32)
        self.holds(vectors, np.array([[2], [-1], [0]], dtype=np.float32), 50)

    def test_k_beyond_the_vectors_returns_all(self) -> None:
        """Three rows, ten asked for."""
        vectors = np.eye(3, dtype=np.float32)
        self.holds(vectors, vectors[:2], 10)
