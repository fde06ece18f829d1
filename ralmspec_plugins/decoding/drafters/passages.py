"""Drafts from passages that are available but not in the model's prompt."""

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from typing import Final

from ralmspec_plugins.decoding.drafters.expansion import expand
from ralmspec_plugins.decoding.drafters.protocol import Accepted, DraftContext, DraftTarget
from ralmspec_plugins.decoding.suffix_automaton import SuffixAutomaton
from ralmspec_plugins.decoding.token_tree import EMPTY, TokenTree
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.types import Passage

_LONGEST: Final = 24  # tokens of the text's end that are looked up, as in vLLM's suffix decoding
_AT_ONCE: Final = 2  # passages that are encoded between two passes of the model
_BETWEEN: Final = -1  # separates two passages: not a token, so no draft crosses it


class PassageDrafter:
    """Copies from passages that were retrieved but are not in the prompt of this text.

    These are the passages of earlier prompts of the same request, and those of `source`, for
    example those that a retrieval speculator has prefetched. A source belongs to one user's
    retriever, as a passage cache does. (The passages in the prompt are copied from, too; a
    `SuffixDrafter` does that better.)

    Worked: the passage "7 8 9" was in the prompt earlier, another one is there now,
    and the text ends with "7 8":

    >>> drafter = PassageDrafter()
    >>> earlier = DraftContext("request", ((7, 8, 9),), (7, 8, 9), (1,))
    >>> len(drafter.propose(earlier, 3))
    0
    >>> drafter.propose(DraftContext("request", ((4, 5),), (4, 5), (1, 7, 8)), 3).tokens
    (9,)
    """

    source: Final = "passages"  # in the evidence of its drafts

    def __init__(
        self,
        source: Callable[[], Iterable[Passage]] | None = None,
        *,
        capacity: int = 64,
        least_match: int = 2,
        requests: int = 64,
    ) -> None:
        """Create a drafter from earlier passages of a request, and from those of a source.

        Args:
            source: returns passages, the most promising first, as `PassageCache.passages` does.
            capacity: the maximum number of passages that are copied from for a request.
            least_match: the minimum length of the text's end that must be found in a passage.
            requests: the maximum number of requests whose passages are kept.

        Raises:
            ConfigError: a number is below 1.
        """
        for name, value in (("capacity", capacity), ("least_match", least_match)):
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if requests < 1:
            raise ConfigError(f"requests must be at least 1, got {requests}")
        self.capacity = capacity
        self.least_match = least_match
        self._source = source
        self._most = requests
        self._encode: Callable[[Passage], tuple[int, ...]] | None = None
        self._requests: OrderedDict[Hashable, _Shelf] = OrderedDict()  # oldest use first
        self._lock = threading.RLock()  # garbage collection may call `release` under the lock

    def bind(self, target: DraftTarget) -> None:
        """Set how passages are encoded to the model's tokens."""
        self._encode = target.encode

    def propose(self, context: DraftContext, budget: int) -> TokenTree:
        """Return at most `budget` tokens that followed the text's end in a passage."""
        with self._lock:
            shelf = self._requests.setdefault(context.request, _Shelf())
            self._requests.move_to_end(context.request)
            if len(self._requests) > self._most:
                self._requests.popitem(last=False)
            self._fetch(shelf)
            if shelf.front is not context.passages:
                shelf.front = context.passages
                shelf.take_in(context.passages, self.capacity)
            state, length = shelf.automaton.find(context.text[-_LONGEST:])
            if length < self.least_match:
                return EMPTY
            return expand(shelf.automaton, state, length, budget, self.source, self.least_match)

    def update(self, accepted: Accepted) -> None:
        """Do nothing: passages arrive with `propose`."""

    def release(self, request: Hashable) -> None:
        """Release a request's passages."""
        with self._lock:
            self._requests.pop(request, None)

    def _fetch(self, shelf: "_Shelf") -> None:
        """Encode new passages of the source, a few at a time."""
        if self._source is None or self._encode is None:
            return
        new = (one for one in self._source() if (one.title, one.text) not in shelf.fetched)
        for passage in itertools.islice(new, _AT_ONCE):
            shelf.fetched.add((passage.title, passage.text))
            shelf.take_in([self._encode(passage)], self.capacity)


class _Shelf:
    """The passages of one request, each once, in one automaton."""

    def __init__(self) -> None:
        self.automaton = SuffixAutomaton()
        self.front: tuple[tuple[int, ...], ...] = ()  # the passages of the last prompt
        self.fetched: set[tuple[str, str]] = set()  # titles and texts taken from the source
        self._held: OrderedDict[tuple[int, ...], None] = OrderedDict()  # the last used at the end

    def take_in(self, passages: Iterable[tuple[int, ...]], capacity: int) -> None:
        """Add passages; if there are too many, keep the most recently used half."""
        for passage in passages:
            if passage not in self._held:
                self._add(passage)
            self._held[passage] = None
            self._held.move_to_end(passage)
        if len(self._held) > capacity:
            kept = list(self._held)[-max(1, capacity // 2) :]
            self.automaton = SuffixAutomaton()
            self._held = OrderedDict.fromkeys(kept)
            for passage in kept:
                self._add(passage)

    def _add(self, passage: tuple[int, ...]) -> None:
        for token in (*passage, _BETWEEN):
            self.automaton.append(token)
