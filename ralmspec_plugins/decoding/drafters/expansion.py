"""The tree of what followed, in an automaton, where a text's end was found again."""

import heapq
from collections.abc import Iterator
from functools import lru_cache
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
    levels, left = _levels(automaton, state, length, source, least), 1.0
    order = 0
    tokens: list[int] = []
    parents: list[int] = []
    values: list[float] = []
    evidence: list[Evidence] = []
    while len(tokens) < budget:
        while left and (not heap or -heap[0][0] < left):  # a shorter ending may be worth more
            roots, left = next(levels, ((), 0.0))
            for root in roots:
                heapq.heappush(heap, root)
        if not heap:
            break
        negative, _, at, token, parent, found = heapq.heappop(heap)
        # As long as there is one way to go on, no queue is needed.
        run, at = automaton.single_way(at, budget - len(tokens) - 1)
        first = len(tokens)
        tokens.append(token)
        tokens += run
        parents.append(parent)
        parents += range(first, first + len(run))
        values += [-negative] * (1 + len(run))
        evidence.append(found)
        evidence += [_sure(source, found.match + 1 + place) for place in range(len(run))]
        if len(tokens) == budget:
            break
        match, parent = found.match + len(run) + 1, len(tokens) - 1
        steps = automaton.followers(at)
        places = sum(step.places for step in steps)
        for step in steps[:_BRANCHES]:
            share = step.places / places
            if -negative * share < _LEAST:
                break  # those behind are rarer
            if step.token >= 0:  # else a passage ends there
                deeper = Evidence(source, match, share)
                entry = (negative * share, order, step.state, step.token, parent, deeper)
                heapq.heappush(heap, entry)
                order += 1
    if not tokens:
        return EMPTY
    return TokenTree.unchecked(tuple(tokens), tuple(parents), tuple(values), tuple(evidence))


def _levels(
    automaton: SuffixAutomaton, state: int, length: int, source: str, least: int
) -> Iterator[tuple[list[_Entry], float]]:
    """Yield the tokens behind the root, from the longest ending and then from shorter ones.

    With each level goes what no value of a later one reaches. The root's tokens are in front of
    all others of equal value.
    """
    left, seen = 1.0, dict[int, None]()
    for level in range(_LEVELS):
        if state == START or length < least:
            return
        steps = automaton.followers(state)[:_BRANCHES]
        places = sum(step.places for step in steps)
        total = places + len(steps)
        roots: list[_Entry] = []
        for step in steps:
            value = left * step.places / total
            if step.token >= 0 and step.token not in seen and value >= _LEAST:
                order = len(seen) - _LEVELS * _BRANCHES
                seen[step.token] = None
                rests = Evidence(source, length, step.places / places)
                roots.append((-value, order, step.state, step.token, ROOT, rests))
        left *= len(steps) / total if total else 1.0
        last = level == _LEVELS - 1
        yield roots, 0.0 if last else left
        state, length = automaton.shorter(state)


@lru_cache(maxsize=4096)
def _sure(source: str, match: int) -> Evidence:
    """Return the evidence of a token that alone follows: it is asked for again and again."""
    return Evidence(source, match, 1.0)
