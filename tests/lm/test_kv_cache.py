"""The store of caches: oldest out first, never over its budget, each request apart."""

from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.lm.kv_cache import CacheStore, PrefillSchedule, Prefix


@dataclass(frozen=True)
class Entry:
    nbytes: int


def _lineage(owner: int, text: int = 0) -> PrefillSchedule:
    return PrefillSchedule(owner, Prefix((1, 2)), (3,), (text,))


def test_the_oldest_goes_first() -> None:
    """Looking at a cache makes it young again."""
    store = CacheStore(30)
    for number in (1, 2, 3):
        store.put(Prefix((number,)), Entry(10))
    store.find(Prefix((1,)), Entry)
    store.put(Prefix((4,)), Entry(10))

    kept = [number for number in (1, 2, 3, 4) if Prefix((number,)) in store]
    assert kept == [1, 3, 4]


def test_taking_hands_over() -> None:
    """A taken cache is gone until it is put back, so two extensions never share one."""
    store = CacheStore(100)
    store.put(_lineage(1), Entry(10))

    assert store.take(_lineage(1), Entry) == Entry(10)
    assert store.take(_lineage(1), Entry) is None
    assert store.nbytes == 0


def test_what_is_larger_than_the_budget_is_not_kept() -> None:
    """It pushes the others out for nothing, as any cache that is used last would."""
    store = CacheStore(30)
    store.put(_lineage(1), Entry(31))

    assert (len(store), store.nbytes) == (0, 0)


def test_a_negative_budget_is_refused() -> None:
    """The message gives the number."""
    with pytest.raises(ConfigError, match="got -1"):
        CacheStore(-1)


class StoreMachine(RuleBasedStateMachine):
    """Any use of a store keeps its books right."""

    def __init__(self) -> None:
        super().__init__()
        self.store = CacheStore(50)

    @rule(owner=st.integers(0, 2), text=st.integers(0, 2), nbytes=st.integers(0, 60))
    def put(self, owner: int, text: int, nbytes: int) -> None:
        self.store.put(_lineage(owner, text), Entry(nbytes))

    @rule(number=st.integers(0, 2), nbytes=st.integers(0, 30))
    def put_prefix(self, number: int, nbytes: int) -> None:
        self.store.put(Prefix((number,)), Entry(nbytes))

    @rule(owner=st.integers(0, 2), text=st.integers(0, 2))
    def take(self, owner: int, text: int) -> None:
        self.store.take(_lineage(owner, text), Entry)
        assert _lineage(owner, text) not in self.store

    @rule(owner=st.integers(0, 2))
    def release(self, owner: int) -> None:
        prefixes = sum(Prefix((number,)) in self.store for number in range(3))
        self.store.release(owner)
        assert all(_lineage(owner, text) not in self.store for text in range(3))
        assert prefixes == sum(Prefix((number,)) in self.store for number in range(3))

    @invariant()
    def books_are_right(self) -> None:
        self.store.check()


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=30, stateful_step_count=30)
