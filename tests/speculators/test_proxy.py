"""Stand-in rankings: by the formula, in an order that nothing but scores and ids decides."""

import math
from collections import Counter

import numpy as np
import pytest

from ralmspec_plugins.speculators import Bm25ProxyTable, EmbeddingProxyTable
from ralmspec_plugins.types import Hit, Passage, Query

TEXTS = ["red fox", "red red whale in the sea", "green frog", "blue whale"]
K1, B = 0.9, 0.4


def hit(number: int, text: str) -> Hit:
    return Hit(Passage(f"p{number}", text), 1.0)


def bm25(query: str, texts: list[str], at: int) -> float:
    """Score a text, with all texts as the corpus."""
    words = [Counter(text.split()) for text in texts]
    average = sum(each.total() for each in words) / len(words)
    score = 0.0
    for word in query.split():
        holding = sum(word in each for each in words)
        weight = math.log(1 + (len(words) - holding + 0.5) / (holding + 0.5))
        norm = K1 * (1 - B + B * words[at].total() / average)
        score += weight * words[at][word] / (words[at][word] + norm)
    return score


@pytest.mark.parametrize("query", ["red", "red whale", "whale whale frog", "sea"])
def test_words_are_scored_by_bm25(query: str) -> None:
    """Over the whole pool, also where only some of its slots are ranked."""
    table = Bm25ProxyTable()
    for slot, text in enumerate(TEXTS):
        table.put(slot, hit(slot, text))
    expected = {slot: bm25(query, TEXTS, slot) for slot in range(len(TEXTS))}

    assert expected == pytest.approx(dict(table.rank(Query(query), range(4), 4)))
    best = sorted((1, 2, 3), key=lambda slot: (-expected[slot], f"p{slot}"))
    assert best[:2] == [slot for slot, _ in table.rank(Query(query), (3, 2, 1), 2)]


def test_a_replaced_passage_leaves_no_words() -> None:
    """Scores after it are those of a pool that never held it."""
    table = Bm25ProxyTable()
    table.put(0, hit(9, "red red red whale"))
    for slot, text in enumerate(TEXTS):
        table.put(slot, hit(slot, text))
    expected = {slot: bm25("red whale", TEXTS, slot) for slot in range(len(TEXTS))}

    assert expected == pytest.approx(dict(table.rank(Query("red whale"), range(4), 4)))


def test_embeddings_are_ranked_by_inner_product() -> None:
    """Ties by passage id, whatever the slot; slots may be far apart, and be written again."""
    vectors = {"p0": (1.0, 0.0), "p1": (0.0, 2.0), "p2": (0.5, 0.5), "p3": (0.5, 0.5)}
    table = EmbeddingProxyTable(
        lambda query: np.array(query.encoding), lambda hit: vectors[hit.passage.id]
    )
    for slot, number in ((0, 3), (1, 1), (64, 2), (200, 0), (2, 3), (0, 1)):
        table.put(slot, hit(number, ""))
    slots = (0, 2, 64, 200)

    assert [(200, 1.0), (64, 0.5), (2, 0.5)] == table.rank(Query("", (1.0, 0.0)), slots, 3)
    assert [(0, 2.0), (64, 0.5)] == table.rank(Query("", (0.0, 1.0)), slots, 2)
