"""Any host's retriever in the core: what a batch finds is what single calls find."""

import random
from collections.abc import Sequence
from functools import partial

import pytest

from ralmspec_plugins.adapters.batch_search import Scored, note_repeat
from ralmspec_plugins.adapters.retriever import HostSearch
from ralmspec_plugins.adapters.retriever_state import (
    RetrieverSnapshot,
    RetrieverState,
    check_way,
    payload_of,
)
from ralmspec_plugins.config import Settings
from ralmspec_plugins.engine.session import Session
from ralmspec_plugins.errors import ConfigError, InputError
from ralmspec_plugins.testing import EchoWorkload
from ralmspec_plugins.types import Hits, Query
from tests.adapters.number_store import (
    NumberHost,
    NumberSearch,
    NumberStore,
    hit_of,
    prepared,
    searching,
)

NAN = "nan"


def made(count: int = 50, k: int = 3) -> NumberStore:
    dice = random.Random(0)
    return NumberStore([dice.choice([dice.random(), 0.5]) for _ in range(count)], k)


def questions(count: int) -> list[str]:
    dice = random.Random(1)
    return [str(dice.random()) for _ in range(count)]


def one_by_one(store: NumberStore, texts: Sequence[str]) -> list[Hits]:
    host = NumberHost(store)
    look = searching(store, None).look()
    return [host.single(look, Query(text)) for text in texts]


@pytest.mark.parametrize("size", [1, 2, 7])
async def test_batches_find_what_single_calls_find(size: int) -> None:
    """Passages, order and scores, to the last bit; in threads and on an event loop."""
    store, texts = made(), questions(40)
    expected = one_by_one(store, texts)
    host = searching(store)
    found: list[Hits] = []
    awaited: list[Hits] = []
    for at in range(0, len(texts), size):
        batch = texts[at : at + size]
        found += host.search([host.encode(text) for text in batch])
        awaited += await host.asearch([await host.aencode(text) for text in batch])

    assert expected == found == awaited
    assert len(store.singles) == len(texts)  # those of the expectation


def test_a_batch_that_scores_otherwise_is_distrusted() -> None:
    """A probe whose score differs in the last bit ends the batches, for everybody."""
    bent = partial(NumberSearch, exact=False, bend=lambda score: score * (1 + 1e-15))
    store, texts = made(), questions(6)
    expected = one_by_one(store, texts)
    host = searching(store, bent)
    other = host.beside(NumberHost(store, "ada"))
    found = host.search([host.encode(text) for text in texts])

    assert expected == found
    assert store.batches == [6]
    assert not host.looked_into
    assert not other.looked_into
    assert expected == other.search([other.encode(text) for text in texts])
    assert store.batches == [6]


def test_a_probe_is_nobodys_call() -> None:
    """The single search that a batch is compared with is not made in the caller's name."""
    store = made()
    host = searching(store, partial(NumberSearch, exact=False)).beside(NumberHost(store, "ada"))
    host.search([host.encode(text) for text in questions(5)])

    assert ["unheard"] == [calls for _, calls in store.singles]


def test_what_a_batch_cannot_say_is_asked_alone() -> None:
    """A cut may leave queries to the host: their hits stand in their places."""

    def every_other(found: Sequence[list[Scored]]) -> list[list[Scored] | None]:
        return [own if at % 2 else None for at, own in enumerate(found)]

    store, texts = made(), questions(5)
    expected = one_by_one(store, texts)
    store.singles.clear()
    host = searching(store, cut=every_other)
    found = host.search([host.encode(text) for text in texts])

    assert expected == found
    assert sorted(texts[::2]) == sorted(text for text, _ in store.singles)


class Doubling(NumberHost):
    """A host whose documents stand for two each: a single call gives twice as many."""

    def single(self, look: RetrieverSnapshot, query: Query) -> Hits:
        hits = super().single(look, query)
        return (*hits, *(hit_of(hit.score - 1000, hit.score - 1) for hit in hits))


async def test_what_gives_more_than_k_is_not_searched_wider() -> None:
    """A wider search is cut at k: the engines go on with the plain one, and lose nothing."""
    store = made(k=3)
    known = RetrieverState(partial(prepared, store=store, search=NumberSearch, cut=leaving_all))
    host = HostSearch(Doubling(store), known, 2)
    queries = [host.encode(text) for text in questions(3)]
    expected = host.search(queries)

    assert {6} == {len(hits) for hits in expected}
    with pytest.raises(InputError, match="3 documents gave 6"):
        host.search_wide(queries, 20)
    with pytest.raises(InputError, match="3 documents gave 6"):
        await host.asearch_wide(queries, 20)
    session = Session(EchoWorkload(), host, Settings(pool=None))
    assert expected == [found.hits for found in session.search(queries)]
    assert expected == [found.hits for found in await session.asearch(queries)]


def leaving_all(found: Sequence[list[Scored]]) -> list[list[Scored] | None]:
    return [None for _ in found]


def test_a_call_keeps_its_settings() -> None:
    """What changes in the host counts from the next call on."""
    store = made(k=3)
    host = searching(store)
    before = host.beside(NumberHost(store))
    store.k = 1
    after = host.beside(NumberHost(store))
    query = before.encode("0.4")

    assert [3, 1] == [len(one.search([query])[0]) for one in (before, after)]
    assert before.signature != after.signature
    assert host.signature == after.signature
    assert [3, 1, 1] == [one.k for one in (before, after, host)]


def test_a_black_box_cannot_be_kept_to_its_settings() -> None:
    """Its signature is what it is now, so that nothing is remembered under the former one."""
    store = made(k=3)
    call = searching(store, None, fixed=False).beside(NumberHost(store))
    store.k = 1

    assert call.look().signature != call.signature


def test_only_wide_searches_are_offered() -> None:
    """The attribute is there where a wider search begins with the narrow one."""
    for search, offered in (
        (NumberSearch, True),
        (partial(NumberSearch, wide=False), False),
        (partial(NumberSearch, exact=False), False),
        (None, False),
    ):
        host = searching(made(), search)
        assert hasattr(host, "search_wide") is hasattr(host, "asearch_wide") is offered

    host = searching(made())
    query = host.encode("0.3")
    wide = host.search_wide([query], 10)[0]
    assert len(wide) == 10
    assert wide[:3] == host.search([query])[0]


async def test_queries_carry_whose_they_are() -> None:
    """A batch may hold queries of many; what was recorded of an embedding goes along."""
    host = searching(made()).beside(NumberHost(made(), "ada"))
    queries = [host.encode("1"), host.encode("1", "bob"), await host.aencode("1")]

    assert ["ada", "bob", "ada"] == [payload_of(query).calls for query in queries]
    assert [None, None, "awaited"] == [payload_of(query).recording for query in queries]
    assert payload_of(host.unencoded("1")).vector is None
    assert "ada" == payload_of(host.unencoded("1")).calls
    with pytest.raises(InputError, match="encode"):
        host.search([Query("1", encoding=[1.0])])


async def test_errors_are_the_hosts_own() -> None:
    """A search that fails alone fails as the host does; with others, the batch's error comes."""
    host = searching(made())

    with pytest.raises(ArithmeticError):
        host.search([host.encode(NAN)])
    with pytest.raises(ArithmeticError):
        await host.asearch([host.encode(NAN)])
    with pytest.raises(ValueError, match="among others"):
        host.search([host.encode("1"), host.encode(NAN)])


def test_a_result_for_each_query() -> None:
    """A batch search that loses a query is caught."""

    class Losing(NumberSearch):
        def search(self, vectors: Sequence[float], k: int) -> list[list[Scored]]:
            return super().search(vectors, k)[1:]

    host = searching(made(), Losing)
    with pytest.raises(InputError, match="1 results for 2 queries"):
        host.search([host.encode("1"), host.encode("2")])


def test_counts_are_of_all_callers() -> None:
    """Batches, queries in them, single calls."""
    host = searching(made())
    other: HostSearch[NumberHost] = host.beside(NumberHost(made()))
    other.search([other.encode("1"), other.encode("2")])
    host.search([host.unencoded("3")])

    assert (1, 2, 1) == (
        host.stats.batches,
        host.stats.batched_queries,
        other.stats.single_calls,
    )
    assert (2, 3) == (host.stats.round_trips, host.stats.queries)


async def test_searches_that_a_store_repeats_are_counted() -> None:
    """Each call that reaches the store, also where ties make it search again."""

    class Repeating(NumberSearch):
        def search(self, vectors: Sequence[float], k: int) -> list[list[Scored]]:
            note_repeat(1)
            return super().search(vectors, k)

    host = searching(made(), Repeating)
    queries = [host.encode("1"), host.encode("2")]

    assert host.search(queries) == await host.asearch(queries) != []
    assert (4, 6) == (host.stats.batches, host.stats.batched_queries)
    note_repeat(1)  # outside of a search it counts for nobody
    assert 4 == host.stats.batches


def test_ways_that_there_are_not() -> None:
    """An unknown batch mode, and no call at a time, are refused."""
    check_way("probed", 1)
    for batch, side_by_side in (("some", 1), ("off", 0), ("off", True), ("off", 1.5)):
        with pytest.raises(ConfigError):
            check_way(batch, side_by_side)
