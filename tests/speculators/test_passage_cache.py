"""The pool guesses the truth whenever it holds it, and keeps to its bounds."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ralmspec_plugins.errors import ConfigError, InputError
from ralmspec_plugins.retrieval import HashingEncoder, open_retriever
from ralmspec_plugins.retrieval.ranking import best_first, row_numbers
from ralmspec_plugins.speculators import (
    POLICIES,
    Bm25ProxyTable,
    EmbeddingProxyTable,
    PassageCache,
    Replica,
    SharedPassageCache,
)
from ralmspec_plugins.testing.contracts import invented_passages, invented_queries, refused
from ralmspec_plugins.types import Hit, Hits, Passage, Query

pytest.importorskip("bm25s")

PASSAGES = invented_passages(60)
TEXTS = invented_queries(8)
DENSE = open_retriever("numpy-flat", PASSAGES, HashingEncoder(16), k=2)
SPARSE = open_retriever("bm25s", PASSAGES, k=2)


def ranked(retriever: Any, query: Query) -> Hits:
    hits: Hits = retriever.search_wide([query], len(PASSAGES))[0]
    return hits


class PoolMachine(RuleBasedStateMachine):
    """A pool of either retriever: its guess is always the full ranking, cut to what it holds."""

    @initialize(
        retriever=st.sampled_from([DENSE, SPARSE]),
        capacity=st.sampled_from([1, 2, 5, 40, 100]),
        eviction=st.sampled_from(sorted(POLICIES)),
    )
    def start(self, retriever: Any, capacity: int, eviction: str) -> None:
        self.retriever = retriever
        self.pool = PassageCache(retriever, capacity=capacity, eviction=eviction)

    @rule(text=st.sampled_from(TEXTS), width=st.sampled_from([2, 5, 30]))
    def learn(self, text: str, width: int) -> None:
        query = self.retriever.encode(text)
        hits = ranked(self.retriever, query)[:width]
        self.pool.learn(query, hits)
        best = min(self.pool.capacity, width)
        held = {hit.passage.id for hit in self.pool._hits}

        if self.pool._eviction_name == "lru":
            assert {hit.passage.id for hit in hits[:best]} <= held
        assert hits[0].passage.id in held

    @rule(text=st.sampled_from(TEXTS))
    def guess(self, text: str) -> None:
        query = self.retriever.encode(text)
        held = {hit.passage.id for hit in self.pool._hits}
        best = tuple(h for h in ranked(self.retriever, query) if h.passage.id in held)[:2]

        assert (best if len(best) == 2 else None) == self.pool.guess(query)

    @rule()
    def invalidate(self) -> None:
        self.pool.invalidate()
        assert 0 == self.pool.size

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "pool"):
            self.pool.check()


PoolMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=20, deadline=None)
TestPoolAgainstTheRanking = PoolMachine.TestCase


def test_lru_forgets_what_is_neither_guessed_nor_found() -> None:
    """Of two old passages, the one that was guessed since stays."""
    retriever = open_retriever("numpy-flat", PASSAGES, HashingEncoder(16), k=1)
    pool = PassageCache(retriever, capacity=2)
    first, second, third = (retriever.encode(text) for text in TEXTS[:3])
    for query in (first, second):
        pool.learn(query, retriever.search([query])[0])
    guessed = pool.guess(first)
    pool.learn(third, retriever.search([third])[0])

    assert guessed == retriever.search([first])[0]
    assert guessed == pool.guess(first)
    assert retriever.search([second])[0] != pool.guess(second)


def test_a_pool_with_too_little_makes_no_guess() -> None:
    """Fewer than k passages: none, unless the knowledge base has no more."""
    query = DENSE.encode(TEXTS[0])
    pool = PassageCache(DENSE)
    assert pool.guess(query) is None
    pool.learn(query, ranked(DENSE, query)[:1])
    assert pool.guess(query) is None

    tiny = open_retriever("numpy-flat", PASSAGES[:1], HashingEncoder(16), k=2)
    small = PassageCache(tiny)
    small.learn(query, tiny.search([query])[0])

    assert tiny.search([query])[0] == small.guess(query)


def test_a_pool_belongs_to_one_signature() -> None:
    """Its signature is the retriever's; hits of a retriever with other features are refused."""
    pool = PassageCache(DENSE)
    query = SPARSE.encode(TEXTS[0])

    assert DENSE.signature == pool.signature
    with pytest.raises(InputError, match="its own"):
        pool.learn(query, SPARSE.search([query])[0])
    pool.check()


def test_a_refused_hit_leaves_a_full_pool_whole() -> None:
    """An error while learning breaks nothing that was learned before."""
    query = DENSE.encode(TEXTS[0])
    pool = PassageCache(DENSE, capacity=2)
    pool.learn(query, DENSE.search([query])[0])
    bad = Hit(Passage("bad", "no vector"), 1.0)

    assert refused(lambda: pool.learn(query, (bad,)), InputError)
    pool.check()
    assert DENSE.search([query])[0] == pool.guess(query)


def test_a_changed_passage_is_ranked_anew() -> None:
    """A text that changed under its id replaces the old one, in the ranking too."""
    pool = PassageCache(BlackBox(), table=Bm25ProxyTable(), k=1)
    pool.learn(Query("q"), (Hit(Passage("a", "red")), Hit(Passage("b", "blue"))))
    pool.learn(Query("q"), (Hit(Passage("a", "green")),))

    assert "a" == (pool.guess(Query("green")) or ())[0].passage.id
    assert Passage("a", "green") == (pool.guess(Query("green")) or ())[0].passage


def test_shared_by_threads_it_stays_whole() -> None:
    """Eight threads learning and guessing: every guess is the ranking of some passages held."""
    pool = PassageCache(DENSE, capacity=10)
    queries = [DENSE.encode(text) for text in TEXTS]
    scores = {
        query.text: {h.passage.id: h.score for h in ranked(DENSE, query)} for query in queries
    }

    def work(seed: int) -> bool:
        right = True
        for step in range(60):
            query = queries[(seed + step * 3) % len(queries)]
            pool.learn(query, ranked(DENSE, query)[: 2 + seed])
            for hit in pool.guess(query) or ():
                right = right and scores[query.text][hit.passage.id] == hit.score
        return right

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(work, range(8)))
    pool.check()


class BlackBox:
    """A retriever that only answers: no k, no table."""

    signature = "black box"

    def encode(self, text: str) -> Query:
        return Query(text)

    def search(self, queries: Sequence[Query]) -> list[Hits]:
        return [() for _ in queries]


@pytest.mark.parametrize(
    "wrong",
    [{"capacity": 0}, {"eviction": "random"}, {"k": 0}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_settings_that_make_no_pool_are_refused(wrong: dict[str, Any]) -> None:
    """No room, an unknown policy, nothing to guess."""
    with pytest.raises(ConfigError):
        PassageCache(DENSE, **wrong)


class OnlySearch:
    """A retriever that has nothing but the one method."""

    def search(self, queries: Sequence[Query]) -> list[Hits]:
        raise NotImplementedError


def test_any_retriever_has_a_table_by_words() -> None:
    """One whose metric is not known is ranked by words; a guess is as long as the last result."""
    pool = PassageCache(OnlySearch())  # type: ignore[arg-type]
    assert pool.guess(Query("dog")) is None
    hits = tuple(Hit(Passage(str(n), text), 0.5) for n, text in enumerate(["red fox", "blue dog"]))
    pool.learn(Query("red"), hits)
    pool.learn(Query("red"), hits[:1])
    pool.learn(Query("nothing"), ())

    assert (1, False) == (pool.k, pool.by_text)
    assert (Hit(hits[1].passage),) == pool.guess(Query("dog"))
    assert (Hit(hits[0].passage),) == pool.guess(Query("fox"))


def test_any_retriever_has_a_table_by_the_vectors_of_its_queries() -> None:
    """What the nearest former query found, in its order; whatever the words say."""
    pool = PassageCache(OnlySearch(), k=2)  # type: ignore[arg-type]
    hits = tuple(Hit(Passage(str(n), "same words")) for n in range(4))
    pool.learn(Query("east", (1.0, 0.0)), hits[:2])
    pool.learn(Query("north", np.array([0.0, 2.0])), (hits[3], hits[2]))
    pool.learn(Query("odd", np.array([0.0, 2.0, 1.0])), (hits[0],))

    assert hits[:2] == pool.guess(Query("?", [0.9, 0.1]))
    assert (hits[3], hits[2]) == pool.guess(Query("?", np.array([0.1, 5.0], dtype=np.float32)))
    assert 2 == len(pool.guess(Query("?", "no vector")) or ())


def test_arrays_that_stand_for_hits_are_not_pooled_without_a_table_of_their_own() -> None:
    """No hit is made that nothing looks at."""

    class Arrays(Sequence[Hit]):
        immutable = True

        def __len__(self) -> int:
            return 1000

        def __getitem__(self, at: Any) -> Any:
            raise AssertionError("made")

    pool = PassageCache(OnlySearch(), k=2)  # type: ignore[arg-type]
    pool.learn(Query("q"), Arrays())

    assert pool.guess(Query("q")) is None


def test_proxies_guess_without_scores() -> None:
    """A proxy's order is a guess; its scores are not the retriever's and are not shown."""
    hits = tuple(
        Hit(Passage(str(n), text), 0.5, [float(n == 1), 1.0])
        for n, text in enumerate(["red fox", "blue dog", "blue"])
    )
    words = PassageCache(BlackBox(), table=Bm25ProxyTable(), k=2, capacity=3)
    vectors = PassageCache(
        BlackBox(),
        table=EmbeddingProxyTable(
            lambda query: [float(len(query.text)), 0.0], lambda h: h.features
        ),
        k=2,
    )
    for pool in (words, vectors):
        pool.learn(Query("q"), hits)
        guess = pool.guess(Query("the blue dog")) or ()

        assert "1" == guess[0].passage.id
        assert [None, None] == [hit.score for hit in guess]


def test_the_bm25_proxy_forgets_replaced_passages() -> None:
    """A slot that is filled anew no longer answers for its old words."""
    table = Bm25ProxyTable()
    table.put(0, Hit(Passage("a", "red fox")))
    table.put(1, Hit(Passage("b", "dog")))
    table.put(0, Hit(Passage("c", "cat")))

    assert [(0, 0.0), (1, 0.0)] != table.rank(Query("cat"), range(2), 2)
    assert [1, 0] == [slot for slot, _ in table.rank(Query("red fox dog"), range(2), 2)]
    assert {"cat", "dog"} == set(table._holding)


def test_a_replica_guesses_with_its_own_search() -> None:
    """Over the same vectors its guess has the exact search's scores; it learns nothing."""
    pytest.importorskip("faiss")
    rough = open_retriever("faiss-hnsw", PASSAGES, HashingEncoder(16), k=4, search_list=100)
    replica = Replica(rough, of=DENSE)
    queries = [DENSE.encode(text) for text in TEXTS]
    replica.learn(queries[0], ())

    assert DENSE.search(queries) == [replica.guess(query) for query in queries]
    assert [False, True] == [replica.inline, Replica(rough, of=DENSE, inline=True).inline]
    assert DENSE.signature == replica.signature


def test_a_replica_with_its_own_encoder_encodes_again() -> None:
    """It takes the text, not the other retriever's encoding."""
    replica = Replica(SPARSE, of=DENSE, reencode=True)
    query = DENSE.encode(TEXTS[0])

    assert SPARSE.search([SPARSE.encode(TEXTS[0])])[0] == replica.guess(query)


def test_a_replica_that_finds_nothing_makes_no_guess() -> None:
    """Nothing found is no guess."""
    assert Replica(BlackBox(), of=BlackBox()).guess(Query("q")) is None


def test_row_numbers_of_ranges_and_lists_agree() -> None:
    """A range is turned into the same numbers as its list."""
    for slots in (range(0), range(5), range(3, 9, 2), range(4, -1, -1)):
        assert list(slots) == row_numbers(slots).tolist() == row_numbers(list(slots)).tolist()


def test_best_first_breaks_ties_by_place_when_many_tie() -> None:
    """The short way over a partition keeps every tie of the k-th score."""
    scores = np.array([1.0, 0.0, 1.0, 1.0, 0.5, 1.0, 0.0, 0.0, 0.0])
    places = np.arange(9)[::-1].copy()

    assert [5, 3] == best_first(scores, places, 2).tolist()


def test_what_was_searched_before_an_invalidation_is_not_taken_in() -> None:
    """Nor is anything kept in the table that ranks."""
    query = DENSE.encode(TEXTS[0])
    hits = ranked(DENSE, query)
    pool = PassageCache(DENSE)
    pool.learn(query, hits)
    began = pool.generation
    pool.invalidate()
    pool.learn(query, hits, began)
    pool.check()

    assert (pool.size, pool.guess(query)) == (0, None)
    pool.learn(query, hits, pool.generation)
    assert pool.guess(query) == hits[:2]


def test_invalidation_reaches_parts_that_others_hold() -> None:
    """One that was displaced may still be some engine's speculator."""
    shared = SharedPassageCache(parts=1)
    parts = [shared.of(DENSE), shared.of(SPARSE)]
    for part, retriever in zip(parts, (DENSE, SPARSE), strict=True):
        part.learn(retriever.encode(TEXTS[0]), ranked(retriever, retriever.encode(TEXTS[0])))
    shared.invalidate(DENSE.signature)
    after_one = [part.size for part in parts]
    shared.invalidate()
    shared.check()

    assert after_one[0] == 0 < after_one[1]
    assert parts[1].size == 0
