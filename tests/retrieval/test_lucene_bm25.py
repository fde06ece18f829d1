"""Lucene's BM25 outside of Lucene, and the table that scores a pool: no Java in here."""

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ralmspec_plugins.errors import ConfigError, InputError
from ralmspec_plugins.retrieval.lucene.bm25 import (
    LuceneTable,
    PassageTerms,
    QueryTerms,
    Statistics,
    decoded_length,
)
from ralmspec_plugins.retrieval.lucene.index import LuceneSettings, cleaned
from ralmspec_plugins.types import Hit, Passage, Query

ALPHABET = [f"w{number}" for number in range(12)]
FACTORS = Statistics(passages=50, tokens=700).length_factors(0.9, 0.4)


def hit_of(identity: str, words: list[str]) -> Hit:
    counts = Counter(words)
    factors = np.array(list(counts.values()), dtype=np.float32) * FACTORS[len(words)]
    return Hit(Passage(identity, " ".join(words)), None, PassageTerms(tuple(counts), factors))


def query_of(words: dict[str, float]) -> Query:
    weights = np.array([*words.values()], dtype=np.float32)
    return Query("asked", QueryTerms(" ".join(words), tuple(words), weights))


def expected_score(query: Query, hit: Hit) -> float:
    """Score one passage term by term, in numpy's float32 scalars, as Lucene does in Java's."""
    factors = dict(zip(hit.features.terms, hit.features.factors, strict=True))
    total = 0.0
    for term, weight in zip(query.encoding.terms, query.encoding.weights, strict=True):
        if term in factors:
            part = weight - weight / (np.float32(1) + factors[term])
            assert part.dtype == np.float32
            total += float(part)
    return float(np.float32(total))


def test_a_score_worked_by_hand() -> None:
    """One passage of 10, holding "fox" twice, of the average length.

    k1 = 1, b = 0.5, L = avgdl = 4: c = 1 / (1 * (0.5 + 0.5 * 4 / 4)) = 1.
    df = 2 of 10: idf = ln(1 + 8.5 / 2.5) = ln 4.4 = 1.48160454.
    tf = 2, qtf = 1: idf - idf / (1 + 2 * 1) = 2/3 idf = 0.98773636.
    """
    statistics = Statistics(passages=10, tokens=40)
    factors = statistics.length_factors(k1=1, b=0.5)
    terms = PassageTerms(("fox", "red"), np.array([2, 1], dtype=np.float32) * factors[4])
    table = LuceneTable(1)
    table.put(0, Hit(Passage("a", ""), None, terms))
    [(slot, score)] = table.rank(query_of({"fox": statistics.idf(2)}), range(1), 1)

    assert slot == 0
    assert score == pytest.approx(0.98773636, rel=1e-7)


def test_lengths_are_kept_in_one_byte() -> None:
    """Lengths up to 40 are exact; above, codes rise and lose at most an eighth."""
    lengths = [decoded_length(code) for code in range(256)]

    assert list(range(41)) == lengths[:41]
    assert [42, 44, 46, 48, 50, 52, 54, 56, 60] == lengths[41:50]
    assert sorted(set(lengths)) == lengths
    assert all(after - before <= before / 8 + 1 for before, after in pairwise(lengths))


texts = st.lists(st.sampled_from(ALPHABET), min_size=0, max_size=20)
asked = st.dictionaries(st.sampled_from([*ALPHABET, "unseen"]), st.floats(0.01, 9), max_size=6)
puts = st.tuples(st.integers(0, 4), texts)


@settings(max_examples=200, deadline=None)
@given(steps=st.lists(st.one_of(puts, asked), max_size=40), k=st.integers(1, 6), room=st.booleans())
def test_a_table_ranks_as_if_each_passage_were_scored_alone(
    steps: list[Any], k: int, room: bool
) -> None:
    """Whatever was put, over whatever was there: scores to the bit, ties by id, no zero scores."""
    table = LuceneTable(5)
    if room:
        table._resize(32)  # so that room must be made often
    held: dict[int, Hit] = {}
    for number, step in enumerate(steps):
        if isinstance(step, tuple):
            slot, words = step
            held[slot] = hit_of(f"p{number % 7}-{slot}", words)
            table.put(slot, held[slot])
        else:
            query = query_of(step)
            scored = [(slot, expected_score(query, hit)) for slot, hit in held.items()]
            scored = [pair for pair in scored if pair[1] > 0]
            scored.sort(key=lambda pair: (-pair[1], held[pair[0]].passage.id))

            assert scored[:k] == table.rank(query, sorted(held), k)
        table.check()


def test_a_full_table_makes_room_and_grows() -> None:
    """Thousands of passages through a small table leave it small, and right."""
    dice = np.random.default_rng(0)
    table = LuceneTable(8)
    held = {}
    for number in range(4000):
        words = [f"t{word}" for word in dice.integers(0, 3000, 30)]
        slot = number % 8
        held[slot] = hit_of(f"p{number}", words)
        table.put(slot, held[slot])
    table.check()
    query = query_of({word: 1.5 for hit in held.values() for word in hit.features.terms[:4]})
    scored = sorted(
        ((slot, expected_score(query, hit)) for slot, hit in held.items()),
        key=lambda pair: -pair[1],
    )

    assert scored == table.rank(query, range(8), 8)
    assert len(table._terms) <= 4096
    assert len(table._numbers) <= 4096


def test_tables_and_queries_of_others_are_refused() -> None:
    """What another retriever made is named, not misread."""
    table = LuceneTable(1)
    with pytest.raises(InputError, match="its own"):
        table.put(0, Hit(Passage("a", ""), 1.0, 17))
    with pytest.raises(InputError, match="encode"):
        table.rank(Query("fox", (1, 2)), range(0), 1)


@pytest.mark.parametrize("wrong", [{"k1": -0.1}, {"b": -0.1}, {"b": 1.1}])
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    """BM25 has no meaning there."""
    with pytest.raises(ConfigError, match="k1 must be"):
        LuceneSettings(**wrong)  # type: ignore[arg-type]


def test_without_k1_only_the_presence_of_a_term_counts() -> None:
    """k1 = 0 makes c infinite and a part the whole weight; no warning, no NaN."""
    factors = Statistics(passages=5, tokens=20).length_factors(0, 0.4)
    table = LuceneTable(1)
    terms = PassageTerms(("fox",), np.array([3], dtype=np.float32) * factors[4])
    table.put(0, Hit(Passage("a", ""), None, terms))

    assert [(0, 2.5)] == table.rank(query_of({"fox": 2.5}), range(1), 1)


def test_half_a_surrogate_pair_is_no_character() -> None:
    """Text that Java could not take is made fit, and all other text is left alone."""
    assert cleaned("a\ud800b") == "a?b"
    assert cleaned("naïve 😀 \0") == "naïve 😀 \0"
