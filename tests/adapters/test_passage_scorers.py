"""Pools over hosts' stores: ranked by the store's vectors, or by words."""

import math
import random
from typing import Any

import numpy as np
import pytest

from ralmspec_plugins.adapters.batch_search import HostTable, Metric
from ralmspec_plugins.speculators.passage_cache import PassageCache
from ralmspec_plugins.testing import WordRetriever
from ralmspec_plugins.types import Hit, Passage, Query


def table(metric: Metric | None) -> HostTable:
    return HostTable(metric, lambda hit: hit.features, lambda query: query.encoding)


def hit(identity: str, vector: Any, text: str = "") -> Hit:
    return Hit(Passage(identity, text), None, vector)


def by_hand(metric: str, query: np.ndarray, vectors: dict[str, np.ndarray]) -> list[str]:
    def score(vector: np.ndarray) -> float:
        if metric == "l2":
            return -float(((vector - query) ** 2).sum())
        product = float(vector @ query)
        return product if metric == "ip" else product / float(np.linalg.norm(vector))

    return sorted(vectors, key=lambda identity: (-score(vectors[identity]), identity))


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_ranks_as_the_metric_says(metric: Metric) -> None:
    """The best k by hand, in order, whatever was put over what."""
    draw = np.random.default_rng(3)
    vectors: dict[int, tuple[str, np.ndarray]] = {}
    ranked = table(metric)
    for number in range(200):
        slot = random.Random(number).randrange(80)
        vectors[slot] = f"p{number}", draw.standard_normal(8)
        ranked.put(slot, hit(vectors[slot][0], vectors[slot][1].tolist()))
    slots = sorted(vectors)
    for _ in range(20):
        query = draw.standard_normal(8)
        found = ranked.rank(Query("", query), slots, 5)

        assert [vectors[slot][0] for slot, _ in found] == by_hand(
            metric, query, dict(vectors.values())
        )[:5]


def test_ties_stand_by_id_also_at_the_cut() -> None:
    """Of equal ones, the first ids are given, however many there are."""
    ranked = table("ip")
    for slot, identity in enumerate("dbcae"):
        ranked.put(slot, hit(identity, [1.0, 0.0]))
    found = ranked.rank(Query("", [2.0, 0.0]), range(5), 2)

    assert [(3, 2.0), (1, 2.0)] == found


def test_a_zero_vector_has_no_cosine() -> None:
    """It ranks with 0, as hosts have it."""
    ranked = table("cosine")
    ranked.put(0, hit("zero", [0.0, 0.0]))
    ranked.put(1, hit("against", [-1.0, 0.0]))

    assert [slot for slot, _ in ranked.rank(Query("", [1.0, 0.0]), range(2), 2)] == [0, 1]


@pytest.mark.parametrize("vector", [None, [1.0], [np.nan, 1.0]])
def test_without_vectors_it_ranks_by_words(vector: Any) -> None:
    """One passage without a usable vector, and all are ranked by their words from then on."""
    ranked = table("ip")
    ranked.put(0, hit("far", [9.0, 9.0], "blue whale"))
    ranked.put(1, hit("near", vector, "red fox"))
    ranked.put(2, hit("late", [9.0, 9.0], "grey fox"))

    assert ranked.rank(Query("red fox", [1.0, 1.0]), range(3), 1)[0][0] == 1


def test_a_query_without_a_vector_is_ranked_by_words() -> None:
    """A question that was never embedded is guessed all the same."""
    ranked = table("ip")
    ranked.put(0, hit("a", [9.0, 9.0], "blue whale"))
    ranked.put(1, hit("b", [1.0, 1.0], "red fox"))

    assert ranked.rank(Query("red fox"), range(2), 1)[0][0] == 1


def test_guesses_carry_no_scores() -> None:
    """Hosts' retrievers give no scores, so a right guess has none either."""

    class Host(WordRetriever):
        def table(self, capacity: int) -> Any:
            return table("ip")

    pool = PassageCache(Host(["a"]))
    pool.learn(Query("q"), (hit("a", [1.0]),))
    guess = pool.guess(Query("q", [1.0]))

    assert guess == (Hit(Passage("a", "")),)


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_scores_are_made_of_the_metrics_values(metric: Metric) -> None:
    """A cosine, a product, a squared distance: worked out by hand for (3, 4) and (0, 2).

    Their product is 8, their norms are 5 and 2, and they lie (3, 2) apart.
    """
    expected = {"cosine": 0.8, "ip": 8.0, "l2": 13.0}[metric]
    passage = Hit(Passage("p", "text"), None, [3.0, 4.0])
    table = HostTable(metric, lambda hit: hit.features, lambda query: query.encoding, lambda x: x)
    table.put(0, passage)
    [(_, score)] = table.rank(Query("q", [0.0, 2.0]), [0], 1)
    table.put(1, Hit(Passage("q", "text"), None, None))
    by_words = table.rank(Query("text", [0.0, 2.0]), [0, 1], 2)

    assert table.scored
    assert score == pytest.approx(expected)
    assert all(math.isnan(score) for _, score in by_words)
