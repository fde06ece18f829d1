"""Calls in front of a host's retriever: merged, remembered, kept apart by what they depend on."""

import logging
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import pytest

from ralmspec_plugins.adapters.retriever import HostSearch
from ralmspec_plugins.adapters.retriever_service import (
    RetrieverCall,
    RetrieverConfig,
    RetrieverService,
    RetrieverStats,
    ServiceState,
    agreeing,
)
from ralmspec_plugins.speculators.passage_cache import SharedPassageCache
from ralmspec_plugins.speculators.query_cache import QueryCache
from ralmspec_plugins.types import Hits, passages_of
from tests.adapters.number_store import NumberHost, NumberSearch, NumberStore, searching

Make = Callable[..., RetrieverService]


def retriever(store: NumberStore, **way: Any) -> HostSearch[NumberHost]:
    """Wrap a store as a host's own class would, given how it is to be searched."""
    search = None if way["batch"] == "off" else NumberSearch
    return searching(store, search, pure=way["pure"] is not False, side_by_side=way["side_by_side"])


@pytest.fixture
def make() -> Iterator[Make]:
    servings = []

    def answering(
        store: NumberStore, memo: Any = None, pool: Any = None, **way: Any
    ) -> RetrieverService:
        serving = ServiceState()
        servings.append(serving)
        numbers: dict[str, Any] = {"max_batch": 64, "lanes": 1, "side_by_side": 2, "pure": None}
        fields = {"batching": "exact", **numbers, **way}
        return RetrieverService(serving, RetrieverConfig(retriever, store, **fields), memo, pool)

    yield answering
    for serving in servings:
        serving.close()


def call(answering: RetrieverService, text: str, name: str = "ada") -> RetrieverCall:
    host = answering.serving.host(answering.way)
    return answering.call(text, host.beside(NumberHost(answering.way.retriever, name)))


def store() -> NumberStore:
    return NumberStore([0.1, 0.2, 0.5, 0.9])


def numbers(hits: Hits | Exception) -> list[str]:
    assert not isinstance(hits, Exception)
    return [passage.id for passage in passages_of(hits)]


async def test_many_questions_are_one_search(make: Make) -> None:
    """Each gets what it would have got alone, also on an event loop."""
    inner = store()
    answering = make(inner)
    found = answering.answers([call(answering, text) for text in ("0.1", "0.9", "0.45")], 4)
    awaited = await answering.aanswers([call(answering, text) for text in ("0.1", "0.9")], 4)

    assert [["0.1", "0.2"], ["0.9", "0.5"], ["0.5", "0.2"]] == [numbers(one) for one in found]
    assert found[:2] == awaited
    assert [3, 2] == inner.batches
    assert not inner.singles


async def test_each_question_has_its_own_error(make: Make) -> None:
    """One that fails takes no other along: in the search, or before it."""
    for batching in ("exact", "off"):
        answering = make(store(), batching=batching)
        asked = [call(answering, text) for text in ("0.1", "nan", "word", "0.9")]
        for found in (answering.answers(asked, 4), await answering.aanswers(asked, 4)):
            kinds = [type(one) for one in found]

            assert [tuple, ArithmeticError, ValueError, tuple] == kinds
            assert ["0.9", "0.5"] == numbers(found[3])


def test_a_memo_answers_what_was_asked_before(make: Make) -> None:
    """Without a call of the store; not under other settings."""
    inner, memo = store(), QueryCache()
    answering = make(inner, memo)
    first = answering.answer(call(answering, "0.1"))
    again = answering.answer(call(answering, "0.1"))
    inner.k = 1
    other = answering.answer(call(answering, "0.1"))

    assert first == again
    assert ["0.1"] == numbers(other)
    assert [1, 1] == inner.batches
    assert RetrieverStats(asked=3, remembered=1, round_trips=2, queries=2) == (
        answering.serving.stats
    )


def test_nothing_is_remembered_that_was_found_under_other_settings(make: Make) -> None:
    """A black box may change while it is asked: what it found then belongs to neither."""
    inner, memo = store(), QueryCache()

    def black_box(store: NumberStore, **way: Any) -> HostSearch[NumberHost]:
        return searching(store, None, fixed=False)

    way = RetrieverConfig(black_box, inner, "off", 64, 1, 2, None)
    answering = RetrieverService(make(inner).serving, way, memo, None)
    asked = call(answering, "0.1")
    inner.k = 1
    answering.answer(asked)

    assert memo.size == 0
    answering.answer(call(answering, "0.1"))
    assert memo.size == 1


async def test_a_guess_is_what_is_known(make: Make) -> None:
    """From the pool, which a wider search has filled; from the memo, exactly; else none."""
    inner = store()
    answering = make(inner, pool=SharedPassageCache())
    assert answering.guess(call(answering, "0.1")) is None
    answering.answer(call(answering, "0.15"))
    guess = answering.guess(call(answering, "0.9"))

    assert guess is not None
    assert guess == await answering.aguess(call(answering, "0.9"))
    assert len(guess) == 2
    assert inner.batches == [1]
    without = make(store())
    assert without.guess(call(without, "0.1")) is None


def test_what_is_not_pure_is_passed_straight_through(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is remembered or guessed, and it is said once."""
    inner, memo = store(), QueryCache()
    answering = make(inner, memo, SharedPassageCache(), pure=False, batching="off")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            answering.answer(call(answering, "0.1"))

    assert [("0.1", "ada")] * 2 == inner.singles
    assert memo.size == 0
    assert answering.guess(call(answering, "0.1")) is None
    assert len(caplog.records) == 1


def test_what_is_kept_for_others_is_nobodys(make: Make) -> None:
    """The retriever of a place outlives its first caller, and is not called in his name."""
    inner = store()
    answering = make(inner)
    place = call(answering, "0.1").place
    place.host.search([place.host.unencoded("0.2")])

    assert [("0.2", "nobody")] == inner.singles
    assert place is call(answering, "0.9", "bob").place


def test_a_serving_is_no_part_of_a_value() -> None:
    """Copies start afresh, and all are equal."""
    serving = ServiceState()
    serving.note(remembered=False)
    copy = deepcopy(serving)

    assert copy == serving
    assert hash(copy) == hash(serving)
    assert RetrieverStats() == copy.stats != serving.stats


def test_guesses_are_held_against_what_was_found() -> None:
    """In order, by value; no guess is no agreement."""
    right = agreeing([["b", "a"], ["a", "b"], None, []], [["a", "b"], ["A", "b"], [], []], str)

    assert [False, False, False, True] == right
    assert [True] == agreeing([["a"]], [["A"]], str.lower)
