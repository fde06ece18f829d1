"""Drafts the tokens that the model found likely when it last read the same token."""

import heapq
import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from ralmspec_plugins.decoding.drafters.protocol import Accepted, DraftContext, DraftTarget
from ralmspec_plugins.decoding.token_tree import EMPTY, ROOT, Evidence, TokenTree
from ralmspec_plugins.errors import ConfigError

_LEAST: Final = 0.02  # the minimum value of a draft
_UNREAD: Final = 15  # most rows of logits that wait: 8 MB for a vocabulary of 128k
_EVERYONE: Final = "everyone"
_Likely = tuple[tuple[int, float], ...]  # tokens with their probabilities, the likeliest first


class RecyclingDrafter:
    """Reuses the model's own discarded logits: Token Recycling (Luo et al., 2408.08696).

    After each pass, the 8 likeliest tokens after every token that was read (accepted or
    not) are kept in a table. A draft is the best-first tree through it from the text's
    last token. The likeliest token that was not chosen at the last choice joins the root's
    children, since such a token often follows one position later.

    The table belongs to one request, unless it is `shared` by all requests of the model. Drafts
    never change a text, but a shared table holds tokens of all users of the model.

    Worked: after 1 the model found 2 likely (0.9), after 2 then 3 (0.8) or 4 (0.2):

    >>> drafter = RecyclingDrafter()
    >>> context = DraftContext("request", (), (1,), (1,))
    >>> drafter.note(context, 1, [(2, 0.9)])
    >>> drafter.note(context, 2, [(3, 0.8), (4, 0.2)])
    >>> tree = drafter.propose(context, 3)
    >>> tree.tokens, tree.parents, [round(value, 2) for value in tree.values]
    ((2, 3, 4), (-1, 0, 0), [0.9, 0.72, 0.18])
    """

    source: Final = "recycling"  # in the evidence of its drafts

    def __init__(self, *, likeliest: int = 8, shared: bool = False, requests: int = 64) -> None:
        """Create a drafter of the likeliest tokens of former passes.

        Args:
            likeliest: the number of tokens kept for each token.
            shared: whether all requests of the model use one table.
            requests: the maximum number of requests whose tables are kept.

        Raises:
            ConfigError: a number is below 1.
        """
        for name, value in (("likeliest", likeliest), ("requests", requests)):
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        self.likeliest = likeliest
        self.shared = shared
        self._most = requests
        self._kept = likeliest
        self._tables: OrderedDict[Hashable, dict[int, _Likely]] = OrderedDict()  # oldest first
        self._unread: list[tuple[Hashable, tuple[int, ...], Tensor]] = []  # table, tokens, logits
        self._lock = threading.Lock()

    def bind(self, target: DraftTarget) -> None:
        """Limit the kept tokens to the model's vocabulary."""
        self._kept = min(self.likeliest, target.vocabulary)

    def propose(self, context: DraftContext, budget: int) -> TokenTree:
        """Return at most `budget` tokens: the best-first tree through the table."""
        with self._lock:
            self._read()
            table = self._table(self._key(context.request))
            likely = table.get(context.text[-1], ()) if context.text else ()
            roots = [(token, chance, 1) for token, chance in likely]
            roots += [(token, chance, 0) for token, chance in self._runner_up(table, context.text)]
            return _best_first(table, roots, budget)

    def update(self, accepted: Accepted) -> None:
        """Do nothing: `observe` has recorded the pass."""

    def observe(
        self, context: DraftContext, tokens: Sequence[int], parents: Sequence[int], logits: Any
    ) -> None:
        """Keep the likeliest tokens after each token that was read.

        They are looked up when they are needed, or when some passes have been observed: several
        rows at once take little longer than one.
        """
        with self._lock:
            key = self._key(context.request)
            self._unread.append((key, tuple(tokens), logits.clone()))
            if sum(len(one) for _, one, _ in self._unread) > _UNREAD:
                self._read()

    def _read(self) -> None:
        """Put the likeliest tokens of observed passes into their tables."""
        unread, self._unread = self._unread, []
        if not unread:
            return
        best = torch.cat([one for _, _, one in unread]).softmax(dim=-1).topk(self._kept, dim=-1)
        found = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        for key, tokens, _ in unread:
            table = self._table(key)
            for token, (likely, chances) in zip(tokens, found, strict=False):
                table[token] = tuple(zip(likely, chances, strict=True))

    def note(self, context: DraftContext, token: int, likely: Sequence[tuple[int, float]]) -> None:
        """Replace the likeliest tokens kept for a token."""
        with self._lock:
            self._read()
            self._table(self._key(context.request))[token] = tuple(likely)

    def release(self, request: Hashable) -> None:
        """Release a request's table."""
        with self._lock:
            if not self.shared:
                self._unread = [one for one in self._unread if one[0] != request]
            self._tables.pop(request, None)

    def _key(self, request: Hashable) -> Hashable:
        return _EVERYONE if self.shared else request

    def _table(self, key: Hashable) -> dict[int, _Likely]:
        table = self._tables.setdefault(key, {})
        self._tables.move_to_end(key)
        if len(self._tables) > self._most:
            self._tables.popitem(last=False)
        return table

    @staticmethod
    def _runner_up(table: dict[int, _Likely], text: Sequence[int]) -> _Likely:
        """Return the likeliest token that was not chosen at the last position."""
        if len(text) < 2:
            return ()
        left = [one for one in table.get(text[-2], ()) if one[0] != text[-1]]
        return tuple(left[:1])


def _best_first(
    table: dict[int, _Likely], roots: Sequence[tuple[int, float, int]], budget: int
) -> TokenTree:
    """Return the most valued paths through a table; a path's value is a product."""
    heap: list[tuple[float, int, int, int, Evidence]] = []
    seen: set[int] = set()
    order = 0
    for token, chance, match in roots:
        if token not in seen and chance >= _LEAST:
            seen.add(token)
            heapq.heappush(heap, (-chance, order, token, ROOT, _evidence(match, chance)))
            order += 1
    tokens: list[int] = []
    parents: list[int] = []
    values: list[float] = []
    evidence: list[Evidence] = []
    while heap and len(tokens) < budget:
        negative, _, token, parent, found = heapq.heappop(heap)
        place = len(tokens)
        tokens.append(token)
        parents.append(parent)
        values.append(-negative)
        evidence.append(found)
        for following, chance in table.get(token, ()):
            if -negative * chance < _LEAST:
                break  # the rest are less likely
            entry = (negative * chance, order, following, place, _evidence(1, chance))
            heapq.heappush(heap, entry)
            order += 1
    if not tokens:
        return EMPTY
    return TokenTree(tuple(tokens), tuple(parents), tuple(values), tuple(evidence))


def _evidence(match: int, chance: float) -> Evidence:
    return Evidence(RecyclingDrafter.source, match, min(chance, 1.0))
