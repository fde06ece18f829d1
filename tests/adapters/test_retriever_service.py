"""Calls in front of a host's retriever: merged, remembered, kept apart by what they depend on."""

import logging
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import pytest

from ralmspec_plugins.adapters.retriever import HostSearch
from ralmspec_plugins.adapters.retriever_service import (
    RetrieverCall,
    RetrieverRuntime,
    RetrieverService,
    RetrieverStats,
    agreeing,
    completed,
)
from ralmspec_plugins.speculators.passage_cache import SharedPassageCache
from ralmspec_plugins.speculators.query_cache import QueryCache
from ralmspec_plugins.types import Hits, passages_of
from tests.adapters.number_store import NumberHost, NumberSearch, NumberStore, searching

Service = RetrieverService[HostSearch[NumberHost]]
Call = RetrieverCall[HostSearch[NumberHost]]
Make = Callable[..., Service]


def retriever(store: NumberStore, **way: Any) -> HostSearch[NumberHost]:
    """Wrap a store as a host's own class would, given how it is to be searched."""
    search = None if way["batch"] == "off" else NumberSearch
    return searching(store, search, pure=way["pure"] is not False, side_by_side=way["side_by_side"])


@pytest.fixture
def make() -> Iterator[Make]:
    runtimes = []

    def service(store: NumberStore, memo: Any = None, pool: Any = None, **settings: Any) -> Service:
        runtime = RetrieverRuntime()
        runtimes.append(runtime)
        numbers: dict[str, Any] = {"max_batch": 64, "lanes": 1, "side_by_side": 2, "pure": None}
        fields = {"search": retriever, "batching": "exact", **numbers, **settings}
        return RetrieverService(runtime, retriever=store, memo=memo, pool=pool, **fields)

    yield service
    for runtime in runtimes:
        runtime.close()


def call(service: Service, text: str, name: str = "ada") -> Call:
    return service.call(text, service.host.beside(NumberHost(service.retriever, name)))


def answers(service: Service, asked: list[Call], at_once: int = 4) -> list[Hits | Exception]:
    return completed(service.answers(asked, at_once, asynchronous=False))


def answer(service: Service, text: str) -> Hits | Exception:
    [answer] = answers(service, [call(service, text)])
    return answer


def guess(service: Service, text: str) -> Hits | None:
    return completed(service.guess(call(service, text), asynchronous=False))


def store() -> NumberStore:
    return NumberStore([0.1, 0.2, 0.5, 0.9])


def numbers(hits: Hits | Exception) -> list[str]:
    assert not isinstance(hits, Exception)
    return [passage.id for passage in passages_of(hits)]


async def test_many_questions_are_one_search(make: Make) -> None:
    """Each gets what it would have got alone, also on an event loop."""
    inner = store()
    answering = make(inner)
    found = answers(answering, [call(answering, text) for text in ("0.1", "0.9", "0.45")])
    asked = [call(answering, text) for text in ("0.1", "0.9")]
    awaited = await answering.answers(asked, 4, asynchronous=True)

    assert [["0.1", "0.2"], ["0.9", "0.5"], ["0.5", "0.2"]] == [numbers(one) for one in found]
    assert found[:2] == awaited
    assert [3, 2] == inner.batches
    assert not inner.singles


async def test_each_question_has_its_own_error(make: Make) -> None:
    """One that fails takes no other along: in the search, or before it."""
    for batching in ("exact", "off"):
        answering = make(store(), batching=batching)
        asked = [call(answering, text) for text in ("0.1", "nan", "word", "0.9")]
        awaited = await answering.answers(asked, 4, asynchronous=True)
        for found in (answers(answering, asked), awaited):
            kinds = [type(one) for one in found]

            assert [tuple, ArithmeticError, ValueError, tuple] == kinds
            assert ["0.9", "0.5"] == numbers(found[3])


def test_a_memo_answers_what_was_asked_before(make: Make) -> None:
    """Without a call of the store; not under other settings."""
    inner, memo = store(), QueryCache()
    answering = make(inner, memo)
    first, again = answer(answering, "0.1"), answer(answering, "0.1")
    inner.k = 1
    other = answer(answering, "0.1")

    assert first == again
    assert ["0.1"] == numbers(other)
    assert [1, 1] == inner.batches
    assert RetrieverStats(asked=3, remembered=1, round_trips=2, queries=2) == (
        answering.runtime.stats
    )


def test_nothing_is_remembered_that_was_found_under_other_settings(make: Make) -> None:
    """A black box may change while it is asked: what it found then belongs to neither."""
    inner, memo = store(), QueryCache()

    def black_box(store: NumberStore, **way: Any) -> HostSearch[NumberHost]:
        return searching(store, None, fixed=False)

    answering = make(inner, memo, search=black_box, batching="off")
    asked = call(answering, "0.1")
    inner.k = 1
    answers(answering, [asked])

    assert memo.size == 0
    answer(answering, "0.1")
    assert memo.size == 1


async def test_a_guess_is_what_is_known(make: Make) -> None:
    """From the pool, which a wider search has filled; from the memo, exactly; else none."""
    inner = store()
    answering = make(inner, pool=SharedPassageCache())
    assert guess(answering, "0.1") is None
    answer(answering, "0.15")
    guessed = guess(answering, "0.9")

    assert guessed is not None
    assert guessed == await answering.guess(call(answering, "0.9"), asynchronous=True)
    assert len(guessed) == 2
    assert inner.batches == [1]
    without = make(store())
    assert guess(without, "0.1") is None


def test_what_is_not_pure_is_passed_straight_through(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is remembered or guessed, and it is said once."""
    inner, memo = store(), QueryCache()
    answering = make(inner, memo, SharedPassageCache(), pure=False, batching="off")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            answer(answering, "0.1")

    assert [("0.1", "ada")] * 2 == inner.singles
    assert memo.size == 0
    assert guess(answering, "0.1") is None
    assert len(caplog.records) == 1


def test_what_is_kept_for_others_is_nobodys(make: Make) -> None:
    """The retriever of a pool's part outlives its first caller, and is not called in his name."""
    inner, pool = store(), SharedPassageCache()
    answering = make(inner, pool=pool)
    asked = call(answering, "0.1")
    kept: Any = pool.of(asked.host)._retriever
    kept.search([kept.unencoded("0.2")])

    assert [("0.2", "nobody")] == inner.singles
    assert kept is pool.of(call(answering, "0.9", "bob").host)._retriever


def test_a_runtime_is_no_part_of_a_value() -> None:
    """Copies start afresh, and all are equal."""
    runtime = RetrieverRuntime()
    runtime.note(1, 0)
    copy = deepcopy(runtime)

    assert copy == runtime
    assert hash(copy) == hash(runtime)
    assert RetrieverStats() == copy.stats != runtime.stats


def test_guesses_are_held_against_what_was_found() -> None:
    """In order, by value; no guess is no agreement."""
    right = agreeing([["b", "a"], ["a", "b"], None, []], [["a", "b"], ["A", "b"], [], []], str)

    assert [False, False, False, True] == right
    assert [True] == agreeing([["a"]], [["A"]], str.lower)
