"""Drafts the tokens that followed earlier occurrences of the text's end."""

import threading
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final

from ralmspec_plugins.decoding.drafters.expansion import expand
from ralmspec_plugins.decoding.drafters.protocol import Accepted, DraftContext
from ralmspec_plugins.decoding.suffix_automaton import SuffixAutomaton
from ralmspec_plugins.decoding.token_tree import EMPTY, TokenTree
from ralmspec_plugins.errors import ConfigError

_FRONTS: Final = 4  # kept prompts of one request: with its passages, and with guessed ones


class SuffixDrafter:
    """Copies from the model's context: a suffix automaton over passages, prompt and text.

    The longest suffix of the text that also occurs earlier is one look-up in the
    automaton. The tokens that followed it there are drafted, the most frequent first, then
    the most recent. A draft that reaches the text's end continues with what followed the longest
    earlier occurrence of that end, so a text that repeats itself is drafted at any length. A
    token costs O(1) amortised time, and tokens that are rolled back are removed again.

    Worked: the passage is "1 2 3 4", the prompt is "9", and the text is "1 2". This
    occurs in the passage, where 3, 4 and then the prompt follow:

    >>> drafter = SuffixDrafter()
    >>> front, text = (1, 2, 3, 4, 9), (1, 2)
    >>> drafter.propose(DraftContext("request", (front[:4],), front, text), 3).tokens
    (3, 4, 9)
    """

    source: Final = "suffix"  # in the evidence of its drafts

    def __init__(self, *, least_match: int = 1, requests: int = 64) -> None:
        """Create a drafter for texts whose last `least_match` tokens occur earlier.

        Args:
            least_match: the minimum length of the suffix that must be found.
            requests: the maximum number of requests whose automata are kept.

        Raises:
            ConfigError: a number is below 1.
        """
        if least_match < 1 or requests < 1:
            raise ConfigError(
                f"least_match and requests must be at least 1, got {least_match} and {requests}"
            )
        self.least_match = least_match
        self._most = requests
        self._requests: OrderedDict[Hashable, list[_Copied]] = OrderedDict()  # oldest use first
        self._lock = threading.RLock()  # garbage collection may call `release` under the lock

    def propose(self, context: DraftContext, budget: int) -> TokenTree:
        """Return at most `budget` tokens that followed earlier occurrences of the text's end."""
        with self._lock:
            automaton = self._automaton(context)
            state, length = automaton.repeated()
            if length < self.least_match:
                return EMPTY
            return expand(automaton, state, length, budget, self.source, self.least_match)

    def update(self, accepted: Accepted) -> None:
        """Do nothing: everything it needs is in the text."""

    def release(self, request: Hashable) -> None:
        """Release a request's automata."""
        with self._lock:
            self._requests.pop(request, None)

    def _automaton(self, context: DraftContext) -> SuffixAutomaton:
        """Return the automaton of a prompt, followed by exactly this text."""
        copied = self._of_front(context)
        automaton, text = copied.automaton, context.text
        automaton.truncate(automaton.fixed + common_length(copied.text, text))
        for token in text[len(automaton) - automaton.fixed :]:
            automaton.append(token)
        copied.text = text
        return automaton

    def _of_front(self, context: DraftContext) -> "_Copied":
        fronts = self._requests.setdefault(context.request, [])
        self._requests.move_to_end(context.request)
        if len(self._requests) > self._most:
            self._requests.popitem(last=False)
        for number, copied in enumerate(fronts):
            if copied.front is context.front or copied.front == context.front:
                copied.front = context.front  # found next time without comparing its tokens
                fronts.append(fronts.pop(number))
                return copied
        fronts.append(_Copied(context.front, SuffixAutomaton(context.front)))
        del fronts[:-_FRONTS]
        return fronts[-1]


@dataclass(slots=True)
class _Copied:
    """An automaton of a prompt, and the text that follows it there."""

    front: tuple[int, ...]
    automaton: SuffixAutomaton
    text: tuple[int, ...] = ()


def common_length(left: tuple[int, ...], right: tuple[int, ...]) -> int:
    """Return the length of the common prefix.

    >>> common_length((1, 2, 3), (1, 2, 4, 5))
    2
    """
    least = min(len(left), len(right))
    if left[:least] == right[:least]:
        return least
    return next(at for at in range(least) if left[at] != right[at])
