"""The automaton against a list that is searched from its start; rollback against building anew."""

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ralmspec_plugins.decoding.suffix_automaton import SuffixAutomaton
from ralmspec_plugins.errors import ConfigError

TOKENS = st.lists(st.integers(0, 2), max_size=14)


def _repeated(tokens: Sequence[int]) -> int:
    """Worked: in 1 2 1 2 1 the ending 1 2 1 stands before, at the start."""
    length = len(tokens)
    for size in range(length - 1, 0, -1):
        ending = tokens[length - size :]
        if any(tokens[at : at + size] == ending for at in range(length - size)):
            return size
    return 0


def _following(tokens: Sequence[int], size: int) -> Counter[int]:
    ending = tokens[len(tokens) - size :]
    places = range(len(tokens) - size)
    return Counter(tokens[at + size] for at in places if tokens[at : at + size] == ending)


@settings(max_examples=200, deadline=None)
@given(fixed=TOKENS, more=TOKENS)
def test_the_longest_repeated_ending_and_what_followed_it(
    fixed: list[int], more: list[int]
) -> None:
    """Length, followers and counts are those of a search through the whole sequence."""
    automaton = SuffixAutomaton(fixed)
    for token in more:
        automaton.append(token)
    tokens = fixed + more
    state, length = automaton.repeated()

    assert _repeated(tokens) == length
    if length:
        found = {step.token: step.places for step in automaton.followers(state)}
        assert _following(tokens, length) == found


@settings(max_examples=100, deadline=None)
@given(
    fixed=TOKENS,
    changes=st.lists(st.one_of(st.integers(0, 2), st.floats(0, 1)), max_size=30),
)
def test_rollback_leaves_no_trace(fixed: list[int], changes: list[int | float]) -> None:
    """Tokens come and go (a float cuts to that part); the automaton is as one built anew."""
    automaton = SuffixAutomaton(fixed)
    for change in changes:
        if isinstance(change, int):
            automaton.append(change)
        else:
            extra = len(automaton) - automaton.fixed
            automaton.truncate(automaton.fixed + int(change * extra))
        automaton.check()


@settings(max_examples=100, deadline=None)
@given(tokens=TOKENS, other=TOKENS)
def test_other_tokens_are_found(tokens: list[int], other: list[int]) -> None:
    """The longest ending of other tokens that stands somewhere in the sequence."""
    text = "".join(map(str, tokens))
    longest = next(
        size
        for size in range(len(other), -1, -1)
        if "".join(map(str, other[len(other) - size :])) in text
    )

    assert longest == SuffixAutomaton(tokens).find(other)[1]


def test_the_most_frequent_comes_first_and_then_the_most_recent() -> None:
    """After 1: twice 5, once 6 and later 7; 7 stands in front of 6."""
    automaton = SuffixAutomaton([1, 5, 1, 6, 1, 5, 1, 7, 1])
    state, _ = automaton.repeated()

    assert [5, 7, 6] == [step.token for step in automaton.followers(state)]


def test_what_stays_cannot_be_taken_back() -> None:
    """The message says how much stays."""
    with pytest.raises(ConfigError, match="first 3 tokens stay"):
        SuffixAutomaton([1, 2, 3]).truncate(2)
