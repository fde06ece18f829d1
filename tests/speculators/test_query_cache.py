"""The memo gives back exactly what was found, for as long as it may."""

from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ralmspec_plugins.effects import SearchResult
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.speculators import QueryCache, SharedPassageCache
from ralmspec_plugins.speculators.cascade import SpeculatorCascade
from ralmspec_plugins.testing import WordRetriever
from ralmspec_plugins.types import Hit, Hits, Passage, Query

CAPACITY, TTL_S = 3, 5.0
keys = st.tuples(st.sampled_from(["ann", "bob"]), st.sampled_from("abcd"))


def hits_of(name: str) -> Hits:
    return (Hit(Passage(name, name), 1.0),)


class MemoMachine(RuleBasedStateMachine):
    """A memo beside a plain model of it: a list in order of use, with times."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.memo = QueryCache(CAPACITY, TTL_S, clock=lambda: self.now_s)
        self.model: OrderedDict[tuple[str, str], tuple[Hits, float]] = OrderedDict()

    @rule(key=keys, answer=st.sampled_from("xyz"))
    def learn(self, key: tuple[str, str], answer: str) -> None:
        self.memo.learn(key[0], Query(key[1]), hits_of(answer))
        self.model.pop(key, None)
        self.model[key] = (hits_of(answer), self.now_s)
        if len(self.model) > CAPACITY:
            self.model.popitem(last=False)

    @rule(key=keys)
    def known(self, key: tuple[str, str]) -> None:
        found = self.memo.known(key[0], Query(key[1]))
        hits, found_s = self.model.get(key, (None, 0.0))
        if hits is not None and self.now_s - found_s >= TTL_S:
            del self.model[key]
            hits = None
        if hits is not None:
            self.model.move_to_end(key)

        assert hits == found

    @rule(seconds=st.sampled_from([0.5, 2.0, 5.0]))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    @precondition(lambda self: self.memo.size > 1)
    @rule()
    def invalidate(self) -> None:
        self.memo.invalidate()
        self.model.clear()

    @invariant()
    def holds(self) -> None:
        self.memo.check()
        assert len(self.model) == self.memo.size


MemoMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestMemoAgainstItsModel = MemoMachine.TestCase


def test_nothing_crosses_signatures() -> None:
    """One tenant's hits are unknown to every other, even for the same words."""
    memo = QueryCache()
    memo.learn(("store", "ann"), Query("salary"), hits_of("secret"))

    assert memo.known(("store", "bob"), Query("salary")) is None


def test_an_empty_answer_is_an_answer() -> None:
    """No hits were found, and that is known."""
    memo = QueryCache()
    memo.learn("index", Query("a"), ())

    assert memo.known("index", Query("a")) == ()


def test_queries_are_told_apart_by_their_key() -> None:
    """The key, not the text, decides what is the same query."""
    memo = QueryCache()
    memo.learn("index", Query("a", key=(1,)), hits_of("x"))

    assert memo.known("index", Query("a")) is None
    assert hits_of("x") == memo.known("index", Query("other", key=(1,)))


def test_what_was_used_last_is_forgotten_last() -> None:
    """Used, not learned: looking up counts."""
    memo = QueryCache(capacity=2)
    for name in "ab":
        memo.learn("index", Query(name), hits_of(name))
    memo.known("index", Query("a"))
    memo.learn("index", Query("c"), hits_of("c"))

    assert [hits_of("a"), None] == [memo.known("index", Query(name)) for name in "ab"]


def test_a_text_is_known_without_its_encoding_only_where_it_was_encoded_to_its_key() -> None:
    """Another query with this text for its key says nothing of the text."""
    memo = QueryCache()
    memo.learn("index", Query("a", "vector"), hits_of("x"))
    memo.learn("index", Query("other", "vector", key="b"), hits_of("y"))
    memo.learn("index", Query("c"), hits_of("z"))

    known = [memo.known_by_text("index", Query(name)) for name in "abc"]
    assert [hits_of("x"), None, None] == known
    assert memo.known_by_text("another", Query("a")) is None


def test_what_was_found_after_the_index_changed_is_shared_with_no_other_request() -> None:
    """Found under another signature than the request began with: the request's own."""
    now, memo = ["old"], QueryCache()
    taught: list[str] = []

    class Pupil:
        inline = True

        def guess(self, query: Query) -> None:
            return None

        def learn(self, query: Query, hits: Hits) -> None:
            taught.append(query.text)

    cascade = SpeculatorCascade([Pupil()], memo=memo, signature="old", signature_now=lambda: now[0])
    cascade.learn(Query("a"), SearchResult(hits_of("x"), hits_of("x")))
    now[0] = "new"
    cascade.learn(Query("b"), SearchResult(hits_of("y"), hits_of("y")))
    cascade.catch_up()

    assert [hits_of("x"), hits_of("y")] == [cascade.known(Query(name)) for name in "ab"]
    assert [hits_of("x"), None] == [memo.known("old", Query(name)) for name in "ab"]
    assert memo.known("new", Query("b")) is None
    assert ["a"] == taught


def test_many_threads_leave_it_whole() -> None:
    """Eight threads at once break no invariant and never see another query's hits."""
    memo = QueryCache(capacity=10)

    def work(seed: int) -> bool:
        right = True
        for step in range(300):
            name = str((seed * 7 + step * 13) % 25)
            memo.learn("index", Query(name), hits_of(name))
            found = memo.known("index", Query(name))
            right = right and found in (None, hits_of(name))
        return right

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(work, range(8)))
    memo.check()


@pytest.mark.parametrize("wrong", [{"capacity": 0}, {"ttl_s": 0.0}, {"ttl_s": float("nan")}])
def test_settings_that_keep_nothing_are_refused(wrong: dict[str, float]) -> None:
    """A memo that can remember nothing is a mistake."""
    with pytest.raises(ConfigError, match="must be"):
        QueryCache(**wrong)  # type: ignore[arg-type]


class TestInvalidation:
    """What was found before is forgotten, also where it comes afterwards."""

    def test_a_signature_alone_or_everything(self) -> None:
        """Others keep what they have, unless all is forgotten."""
        memo = QueryCache()
        for name in ("ann", "bob"):
            memo.learn(name, Query("a"), hits_of(name))
        memo.invalidate("ann")
        after_one = [memo.known(name, Query("a")) for name in ("ann", "bob")]
        memo.invalidate()
        memo.check()

        assert [None, hits_of("bob")] == after_one
        assert [None, None] == [memo.known(name, Query("a")) for name in ("ann", "bob")]

    def test_what_was_searched_before_is_not_remembered(self) -> None:
        """By the generation that it began in; of the signature that was invalidated alone."""
        memo = QueryCache()
        began = memo.generation
        memo.invalidate("ann")
        for name in ("ann", "bob"):
            memo.learn(name, Query("a"), hits_of(name), began)
        known = [memo.known(name, Query("a")) for name in ("ann", "bob")]
        memo.learn("ann", Query("a"), hits_of("new"), memo.generation)
        memo.invalidate()
        memo.learn("bob", Query("b"), hits_of("bob"), began)

        assert [None, hits_of("bob")] == known
        assert memo.size == 0

    def test_more_signatures_than_it_keeps_count_of(self) -> None:
        """One whose invalidation is no longer known loses a result, and gives no old one."""
        memo = QueryCache()
        began = memo.generation
        memo.invalidate("ann")
        for number in range(2000):
            memo.invalidate(number)
        memo.check()
        memo.learn("ann", Query("a"), hits_of("old"), began)

        assert memo.known("ann", Query("a")) is None

    def test_a_request_that_began_before_teaches_nobody(self) -> None:
        """Neither the memo nor a shared passage cache; it knows itself what it has found."""
        retriever = WordRetriever(["red fox", "blue whale"])
        memo, pool = QueryCache(), SharedPassageCache()
        query = retriever.encode("red")
        [hits] = retriever.search([query])

        def request() -> SpeculatorCascade:
            return SpeculatorCascade([pool.of(retriever)], memo=memo, signature="index")

        before = request()
        memo.invalidate("index")
        pool.invalidate(retriever.signature)
        before.learn(query, SearchResult(hits, hits))
        before.catch_up()

        assert before.known(query) == hits
        assert (memo.size, pool.of(retriever).size) == (0, 0)
        after = request()
        after.learn(query, SearchResult(hits, hits))
        after.catch_up()
        assert (memo.size, pool.of(retriever).size) == (1, len(hits))
