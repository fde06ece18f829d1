"""The tree of the continuations of a text's suffix in an automaton."""

import heapq
from collections.abc import Iterator
from functools import lru_cache
from typing import Final

from ralmspec_plugins.decoding.suffix_automaton import START, Follower, SuffixAutomaton
from ralmspec_plugins.decoding.token_tree import EMPTY, ROOT, Evidence, TokenTree

_BRANCHES: Final = 8  # children of a token, as for the static automaton of SAM-Decoding
_LEAST: Final = 0.02  # the minimum value of a draft; SuffixDecoding stops at 0.1
_LEVELS: Final = 3  # suffixes that are looked up: the longest, and two shorter ones
_Entry = tuple[float, int, int, int, int, Evidence]  # -value, order, state, token, parent, evidence


def expand(
    automaton: SuffixAutomaton, state: int, length: int, budget: int, source: str, least: int = 1
) -> TokenTree:
    """Return the tree of the tokens that followed a state, the most valued first.

    A token's value is its parent's times the share of occurrences that continue with it.
    Where occurrences are few, shorter suffixes contribute: as in PPM, a state of n occurrences
    and d different followers leaves d / (n + d) to the next shorter suffix. At the sequence's
    end its longest repeated suffix, of m tokens, is continued; the value is then multiplied by
    m / (m + 1).

    Args:
        automaton: the automaton of the tokens that are copied.
        state: the state of the suffix that was found.
        length: the length of that suffix, in tokens.
        budget: the maximum number of tokens.
        source: the drafter's name.
        least: the minimum length of a suffix that is looked up.

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
        while left and (not heap or -heap[0][0] < left):  # a shorter suffix may be worth more
            roots, left = next(levels, ((), 0.0))
            for root in roots:
                heapq.heappush(heap, root)
        if not heap:
            break
        negative, _, at, token, parent, found = heapq.heappop(heap)
        # As long as there is only one continuation, no queue is needed.
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
        steps, match, weight = _followers(automaton, at, match, least)
        negative *= weight
        places = sum(step.places for step in steps)
        for step in steps[:_BRANCHES]:
            share = step.places / places
            if -negative * share < _LEAST:
                break  # the rest are rarer
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
    """Yield the children of the root, from the longest suffix and then from shorter ones.

    Each level comes with an upper bound on the values of later ones. The root's children precede
    all other tokens of equal value.
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


def _followers(
    automaton: SuffixAutomaton, state: int, match: int, least: int
) -> tuple[list[Follower], int, float]:
    """Return what follows a state, the length that was found, and the weight of its values.

    At the sequence's end this is what followed its longest repeated suffix.
    """
    steps = automaton.followers(state)
    if steps:
        return steps, match, 1.0
    state, match = automaton.shorter(state)
    return automaton.followers(state) if match >= least else [], match, match / (match + 1)


@lru_cache(maxsize=4096)
def _sure(source: str, match: int) -> Evidence:
    """Return the evidence of a token that is the only continuation; cached, as it recurs."""
    return Evidence(source, match, 1.0)
