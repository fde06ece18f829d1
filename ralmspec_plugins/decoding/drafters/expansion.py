"""The tree of what followed, in an automaton, where a text's end was found again."""

import heapq
from collections.abc import Iterator
from typing import Final

from ralmspec_plugins.decoding.suffix_automaton import START, SuffixAutomaton
from ralmspec_plugins.decoding.token_tree import EMPTY, ROOT, Evidence, TokenTree

_BRANCHES: Final = 8  # children of a token, as SAM-Decoding takes of its static automaton
_LEAST: Final = 0.02  # the least value that is followed; SuffixDecoding stops at 0.1
_LEVELS: Final = 3  # endings that are asked: the longest, and two shorter ones
_Entry = tuple[float, int, int, int, int, Evidence]  # -value, order, state, token, parent, evidence


def expand(
    automaton: SuffixAutomaton, state: int, length: int, budget: int, source: str, least: int = 1
) -> TokenTree:
    """Draft what followed the places of a state, the most valued tokens first.

    A token's value is its parent's times the share of places that go on with it.
    Where places are few, shorter endings have a say: as in PPM, a state of n places
    and d different followers leaves d / (n + d) to the next shorter ending.

    Args:
        automaton: of the tokens that are copied from.
        state: of the ending that was found again.
        length: of that ending, in tokens.
        budget: the most tokens.
        source: the drafter's name.
        least: the least length of an ending that is asked.

    >>> automaton = SuffixAutomaton([1, 2, 3, 4, 1, 2])
    >>> expand(automaton, *automaton.repeated(), 3, "suffix").tokens
    (3, 4, 1)
    """
    heap: list[_Entry] = []
    for order, root in enumerate(_roots(automaton, state, length, source, least)):
        heapq.heappush(heap, (root[0], order, *root[1:]))
    order = len(heap)
    tokens: list[int] = []
    parents: list[int] = []
    values: list[float] = []
    evidence: list[Evidence] = []
    while heap and len(tokens) < budget:
        negative, _, at, token, parent, found = heapq.heappop(heap)
        while True:  # as long as there is one way to go on, no queue is needed
            tokens.append(token)
            parents.append(parent)
            values.append(-negative)
            evidence.append(found)
            only = automaton.only(at)
            if only is None or only[0] < 0 or len(tokens) == budget:
                break
            parent = len(tokens) - 1
            token, at = only
            found = Evidence(source, found.match + 1, 1.0)
        steps = automaton.followers(at)
        places, parent = sum(step.places for step in steps), len(tokens) - 1
        for step in steps[:_BRANCHES]:
            share = step.places / places
            if -negative * share < _LEAST:
                break  # those behind are rarer
            if step.token >= 0:  # else a passage ends there
                deeper = Evidence(source, found.match + 1, share)
                entry = (negative * share, order, step.state, step.token, parent, deeper)
                heapq.heappush(heap, entry)
                order += 1
    if not tokens:
        return EMPTY
    return TokenTree(tuple(tokens), tuple(parents), tuple(values), tuple(evidence))


def _roots(
    automaton: SuffixAutomaton, state: int, length: int, source: str, least: int
) -> Iterator[tuple[float, int, int, int, Evidence]]:
    """Give the tokens behind the root, from the longest ending and from shorter ones."""
    left, seen = 1.0, set[int]()
    for _ in range(_LEVELS):
        if state == START or length < least:
            return
        steps = automaton.followers(state)[:_BRANCHES]
        places = sum(step.places for step in steps)
        total = places + len(steps)
        for step in steps:
            value = left * step.places / total
            if step.token >= 0 and step.token not in seen and value >= _LEAST:
                seen.add(step.token)
                yield (
                    -value,
                    step.state,
                    step.token,
                    ROOT,
                    Evidence(source, length, step.places / places),
                )
        left *= len(steps) / total if total else 1.0
        state, length = automaton.shorter(state)
