"""Every eviction policy keeps one contract, and gives up slots in its own order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.speculators.passage_cache import POLICIES, eviction_of


@pytest.mark.parametrize("name", sorted(POLICIES))
@given(moves=st.lists(st.tuples(st.sampled_from("aug"), st.integers(0, 5)), max_size=60))
def test_a_policy_keeps_exactly_the_slots_it_was_given(
    name: str, moves: list[tuple[str, int]]
) -> None:
    """Added and not yet given up: these it keeps, and only of these it gives up one."""
    policy = eviction_of(name)
    kept: set[int] = set()
    for move, slot in moves:
        if move == "a" and slot not in kept:
            policy.add(slot)
            kept.add(slot)
        elif move == "u" and slot in kept:
            policy.use(slot)
        elif move == "g" and kept:
            given_up = policy.give_up()
            assert given_up in kept
            kept.remove(given_up)
        assert kept == policy.slots()


@pytest.mark.parametrize(
    ("name", "order"), [("fifo", [0, 1, 2, 3]), ("lru", [1, 2, 3, 0]), ("lfu", [1, 3, 2, 0])]
)
def test_policies_give_up_in_their_order(name: str, order: list[int]) -> None:
    """Four slots added in turn, then used: 0 twice, 2, 2, 3, and 0 last.

    FIFO looks at the adding alone. LRU: 1 was never used, then 2, 3, 0 by last
    use. LFU: 1 has no use, 3 one, 2 two, 0 three.
    """
    policy = eviction_of(name)
    for slot in range(4):
        policy.add(slot)
    for slot in (0, 0, 2, 2, 3, 0):
        policy.use(slot)

    assert order == [policy.give_up() for _ in range(4)]


def test_a_new_slot_is_the_least_often_used() -> None:
    """After a slot was given up, the one that takes its place starts from no use."""
    policy = eviction_of("lfu")
    for slot in (0, 1):
        policy.add(slot)
        policy.use(slot)
    policy.add(2)

    assert 2 == policy.give_up()
    assert 0 == policy.give_up()


def test_an_unknown_policy_lists_the_known_ones() -> None:
    """The error says what there is."""
    with pytest.raises(ConfigError, match="fifo, lfu, lru"):
        eviction_of("random")
