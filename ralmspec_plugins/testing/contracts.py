"""Contract tests of retrievers and speculators.

Public: subclass a contract in your own tests and define how yours is created.

    class TestMine(RetrieverContract):
        def make(self, passages, k):
            return MyRetriever(passages, k=k)
"""

import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ralmspec_plugins.protocols import PoolableRetriever, Retriever, WideRetriever
from ralmspec_plugins.retrieval.dense import normalised
from ralmspec_plugins.retrieval.ranking import LARGEST_NORM, exact_scores, metric_of
from ralmspec_plugins.speculators.passage_cache import PassageCache
from ralmspec_plugins.types import Hits, Passage, Query

_WORDS = [f"{first}{last}" for first in ("kor", "mal", "tis", "ven") for last in "abcdefghijklmnop"]
_THREADS = 8
_SPLITS = 8


def invented_passages(count: int, seed: int = 0) -> list[Passage]:
    """Make passages of invented words; every fifth has the text of another one."""
    dice = random.Random(seed)  # noqa: S311 no secret
    texts: list[str] = []
    for number in range(count):
        fresh = " ".join(dice.choices(_WORDS, k=20))
        texts.append(dice.choice(texts) if number % 5 == 4 else fresh)
    order = dice.sample(range(count), count)  # so that the order of ids is not that of rows
    return [Passage(f"p{place:05d}", text) for place, text in zip(order, texts, strict=True)]


def invented_queries(count: int, seed: int = 1) -> list[str]:
    """Make queries of the same words."""
    dice = random.Random(seed)  # noqa: S311 no secret
    return [" ".join(dice.choices(_WORDS, k=6)) for _ in range(count)]


def plain_hits(hits: Hits) -> list[tuple[str, float | None]]:
    """Return ids and scores, for comparisons to the bit that are easy to read."""
    return [(hit.passage.id, hit.score) for hit in hits]


class RetrieverContract:
    """Answers depend on the query alone: not on the batch, the rows' order, or the thread."""

    exact = True  # whether the true best passages are promised, and not only good ones
    finds_all = True  # whether even a passage that shares no word with the query can be found
    passages: Sequence[Passage] = invented_passages(200)
    texts: Sequence[str] = invented_queries(12)
    empty_error: type[Exception] = ValueError

    def make(self, passages: Sequence[Passage], k: int) -> Any:
        """Make the retriever under test."""
        raise NotImplementedError("define in make() how your retriever is created")

    def made(self, k: int = 4) -> tuple[Retriever, list[Query]]:
        """Make the retriever, and its queries."""
        retriever = self.make(self.passages, k)
        return retriever, [retriever.encode(text) for text in self.texts]

    def test_a_batch_answers_as_single_searches_do(self) -> None:
        """Single searches, one batch, and any split of it in any order agree bit for bit."""
        retriever, queries = self.made()
        singly = [retriever.search([query])[0] for query in queries]

        assert singly == retriever.search(queries)
        dice = random.Random(3)  # noqa: S311 no secret
        for _ in range(_SPLITS):
            order = dice.choices(range(len(queries)), k=len(queries))  # some twice, some not
            cuts = sorted(dice.sample(range(1, len(order)), dice.randrange(len(order) - 1)))
            parts = [order[start:stop] for start, stop in pairwise([0, *cuts, len(order)])]
            found = [
                hits for part in parts for hits in retriever.search([queries[n] for n in part])
            ]

            assert [singly[number] for number in order] == found

    def test_no_queries_no_answers(self) -> None:
        """An empty batch is no error."""
        retriever, _ = self.made()

        assert retriever.search([]) == []

    def test_hits_stand_best_first_and_ties_by_id(self) -> None:
        """Scores fall, and equal scores stand in the order of passage ids."""
        retriever, queries = self.made(k=50)
        for hits in retriever.search(queries):
            keys = [(-(hit.score or 0.0), hit.passage.id) for hit in hits]

            assert sorted(keys) == keys
            assert len(hits) == len({hit.passage.id for hit in hits})

    def test_k_beyond_the_corpus_returns_all(self) -> None:
        """A k larger than the knowledge base finds every passage once, if it can be found."""
        few = self.passages[:3]
        retriever = self.make(few, 10)
        hits = retriever.search([retriever.encode(self.texts[0])])[0]

        found = [hit.passage.id for hit in hits]
        possible = {passage.id for passage in few}

        assert len(found) == len(set(found))
        assert set(found) == possible if self.finds_all else set(found) <= possible

    def test_an_empty_corpus_is_refused(self) -> None:
        """A knowledge base without passages is an error where it is built."""
        assert refused(lambda: self.make([], 1), self.empty_error)

    def test_encoding_is_reproducible(self) -> None:
        """The same text is found in the same way each time it is encoded."""
        retriever, queries = self.made()
        again = [retriever.encode(text) for text in self.texts]

        assert retriever.search(queries) == retriever.search(again)

    def test_the_signature_names_what_answers_depend_on(self) -> None:
        """Another k, and other passages, are another signature; it can be a key."""
        signature = self.make(self.passages, 2).signature
        others = {
            self.make(self.passages, 3).signature,
            self.make(self.passages[:-1], 2).signature,
        }

        assert signature not in others
        assert len(others) == 2

    def test_the_order_of_rows_does_not_matter(self) -> None:
        """An exact retriever built over the passages in another order answers the same."""
        if not self.exact:
            return
        retriever, queries = self.made()
        expected = [plain_hits(hits) for hits in retriever.search(queries)]
        shuffled = list(self.passages)
        random.Random(4).shuffle(shuffled)  # noqa: S311 no secret
        for rows in (self.passages[::-1], shuffled):
            turned = self.make(rows, 4)
            again = [turned.encode(text) for text in self.texts]

            assert expected == [plain_hits(hits) for hits in turned.search(again)]

    def test_thousands_of_duplicates_come_in_order_of_id(self) -> None:
        """Of 5,000 passages with one text, the k smallest ids are found, alone and in a batch."""
        if not self.exact:
            return
        same = [Passage(f"d{number:05d}", self.texts[0]) for number in range(5000)]
        random.Random(2).shuffle(same)  # noqa: S311 no secret
        retriever = self.make([*self.passages, *same], 4)
        queries = [retriever.encode(text) for text in self.texts]
        hits = retriever.search(queries[:1])[0]

        assert [hit.passage.id for hit in hits] == ["d00000", "d00001", "d00002", "d00003"]
        assert len({hit.score for hit in hits}) == 1
        assert retriever.search(queries)[0] == hits
        if isinstance(retriever, WideRetriever):
            wide = retriever.search_wide(queries[:1], 5000)[0]

            assert [hit.passage.id for hit in wide] == [f"d{number:05d}" for number in range(5000)]

    def test_a_wide_search_starts_with_the_plain_one(self) -> None:
        """The first k of any width are the plain search's hits; approximate ones offer no width."""
        retriever, queries = self.made()
        plain = retriever.search(queries)
        if not isinstance(retriever, WideRetriever):
            return
        assert self.exact
        for width in (4, 5, 20, 1000):
            wide = retriever.search_wide(queries, width)

            assert plain == [hits[:4] for hits in wide]
            if self.finds_all:
                assert {min(width, len(self.passages))} == {len(hits) for hits in wide}

    def test_a_table_scores_as_a_search_does(self) -> None:
        """Passages put into a table get a search's scores and order, to the bit."""
        retriever, queries = self.made(k=30)
        if not isinstance(retriever, PoolableRetriever):
            return
        for query, hits in zip(queries, retriever.search(queries), strict=True):
            table = retriever.table(len(hits))
            for slot, hit in enumerate(reversed(hits)):
                table.put(slot, hit)
            order = range(len(hits) - 1, -1, -1)
            expected = [(slot, hit.score) for slot, hit in zip(order, hits, strict=True)]

            assert expected == table.rank(query, range(len(hits)), len(hits))
            assert expected[:3] == table.rank(query, list(order), 3)
            assert expected[:1] == table.rank(query, range(len(hits)), 1)

    def test_a_pool_that_holds_the_truth_guesses_it(self) -> None:
        """A pool's guess equals the search wherever the true passages are in it."""
        retriever, queries = self.made(k=2)
        if not (self.exact and isinstance(retriever, PoolableRetriever)):
            return
        truths = retriever.search(queries)
        pool = PassageCache(retriever, capacity=100)
        for query, truth in zip(queries, truths, strict=True):
            pool.learn(query, truth)
            pool.check()

        assert truths == [pool.guess(query) for query in queries]

    def test_searches_from_many_threads_agree(self) -> None:
        """Eight threads at once get what one gets alone."""
        retriever, queries = self.made()
        expected = retriever.search(queries)
        with ThreadPoolExecutor(_THREADS) as threads:
            found = list(threads.map(lambda _: retriever.search(queries), range(2 * _THREADS)))

        assert [expected] * len(found) == found


def refused(call: Callable[[], object], error: type[Exception]) -> bool:
    """Return whether a call raises this error."""
    try:
        call()
    except error:
        return True
    return False


Vectors = NDArray[np.float32]

_DIMENSION = 48
_DUPLICATES = 5000


class DenseContract:
    """The true best k by exact scores, ties by id, on vectors that are hard to rank.

    Subclass it and define how yours is created from vectors::

        class TestMine(DenseContract):
            metric = "l2"

            def make_of_vectors(self, passages, vectors, k):
                return MyRetriever(passages, vectors, k=k)
    """

    metric = "ip"

    def make_of_vectors(self, passages: Sequence[Passage], vectors: Vectors, k: int) -> Any:
        """Make the retriever under test over these vectors, one row a passage."""
        raise NotImplementedError("define in make_of_vectors() how your retriever is created")

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
        """5,000 equal rows in random places; two thirds of the requested rows are ties."""
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
