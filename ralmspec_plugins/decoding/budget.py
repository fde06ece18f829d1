"""How many drafts to verify: the cost of passes over several rows, and acceptance rates."""

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ralmspec_plugins.decoding.token_tree import EMPTY, ROOT, Evidence, TokenTree
from ralmspec_plugins.errors import ConfigError

# The cost of a pass by its rows.


@dataclass(frozen=True, slots=True)
class CostCurve:
    """c(rows): the time of a pass over several rows, in passes over one row.

    It is measured, and not monotone: on CPUs 4 rows may take longer than 8. So padding a
    pass with unused rows may make it cheaper.

    >>> curve = CostCurve((1, 4, 8), (1.0, 1.6, 1.2))
    >>> [round(curve.of(rows), 2) for rows in (2, 6, 12)]
    [1.2, 1.4, 1.8]
    >>> curve.cheapest(3)
    (8, 1.2)
    """

    rows: tuple[int, ...]
    costs: tuple[float, ...]
    pass_s: float | None = None  # seconds of a pass over one row, if measured

    def __post_init__(self) -> None:
        """Check that rows and costs make a curve.

        Raises:
            ConfigError: it does not begin with one row at cost 1, or is not in order.
        """
        ordered = all(left < right for left, right in zip(self.rows, self.rows[1:], strict=False))
        if len(self.rows) != len(self.costs) or not ordered or not all(c > 0 for c in self.costs):
            raise ConfigError("a cost curve needs rising numbers of rows, each with a cost above 0")
        if not self.rows or (self.rows[0], self.costs[0]) != (1, 1.0):
            raise ConfigError("a cost curve must begin with one row at cost 1")

    def of(self, rows: int) -> float:
        """Return the cost of a pass, interpolated; beyond the largest one proportional to it."""
        if rows >= self.rows[-1]:
            return self.costs[-1] * rows / self.rows[-1]
        behind = next(at for at, known in enumerate(self.rows) if known > rows)
        left, right = self.rows[behind - 1], self.rows[behind]
        part = (rows - left) / (right - left)
        return self.costs[behind - 1] * (1.0 - part) + self.costs[behind] * part

    def cheapest(self, least: int) -> tuple[int, float]:
        """Return the rows and the cost of the cheapest pass of at least this many rows."""
        best = least, self.of(least)
        for rows, cost in zip(self.rows, self.costs, strict=True):
            if rows > least and cost < best[1]:
                best = rows, cost
        return best


# How often drafts are accepted.


_STRENGTH: Final = 4.0  # weight of the prior estimate, in trials
_MEMORY: Final = 256.0  # trials after which the weight of older ones is halved
_Key = tuple[str | int, ...]


class AcceptanceRates:
    """How often a drafted token is accepted if its parent was, learned during decoding.

    Counted by source, match length, depth, share and rank. While few of these are counted, the
    estimate rests on source, match length and rank alone; before that, on a prior: a token
    drafted after a match of n tokens is accepted with probability n / (n + 1) times its share.

    >>> rates = AcceptanceRates()
    >>> before = rates.of(Evidence("suffix", 3), 1, first=True)
    >>> for _ in range(100):
    ...     rates.learn(Evidence("suffix", 3), 1, first=True, accepted=False)
    >>> round(before, 2), round(rates.of(Evidence("suffix", 3), 1, first=True), 2)
    (0.75, 0.0)
    """

    def __init__(self) -> None:
        """Start without counts."""
        self._counts: dict[_Key, list[float]] = {}  # accepted, verified

    def of(self, evidence: Evidence, depth: int, *, first: bool) -> float:
        """Estimate the probability that a token is accepted if its parent is."""
        coarse, fine = _keys(evidence, depth, first)
        match = max(1, evidence.match)
        estimate = evidence.share * match / (match + 1)
        for key in (coarse, fine):
            accepted, tried = self._counts.get(key, (0.0, 0.0))
            estimate = (accepted + _STRENGTH * estimate) / (tried + _STRENGTH)
        return estimate

    def learn(self, evidence: Evidence, depth: int, *, first: bool, accepted: bool) -> None:
        """Count the outcome of a token whose parent was accepted."""
        for key in _keys(evidence, depth, first):
            counts = self._counts.setdefault(key, [0.0, 0.0])
            if counts[1] >= _MEMORY:
                counts[0] /= 2.0
                counts[1] /= 2.0
            counts[0] += accepted
            counts[1] += 1.0


def _keys(evidence: Evidence, depth: int, first: bool) -> tuple[_Key, _Key]:
    match = min(evidence.match, 4) if evidence.match < 8 else 5 + min(evidence.match // 16, 2)
    share = min(int(evidence.share * 4), 4)
    coarse: _Key = (evidence.source, match, first)
    return coarse, (*coarse, min(int(math.log2(depth)), 4), share)


# How many to verify.


@dataclass(frozen=True, slots=True)
class Effort:
    """What drafting for a text is expected to take."""

    start_s: float  # once, before the first draft: to retrieve, and to read a prompt
    step_s: float  # for each drafted token


_RECENT: Final = 16.0  # time constant of the running means, in observations
_LEAST_ASKED: Final = 4  # drafts
_PATIENCE: Final = 4  # choices of no draft after which drafting becomes rarer
_RAREST: Final = 7  # most tokens between two attempts to draft, if drafting costs little
_TRIED: Final = 0.02  # maximum share of the time for drafts that do not pay off
_SURE: Final = 8  # the match length in the evidence of a model's drafts
_LIKELY: Final = 0.9  # the share in the evidence of drafts that are not made yet
_HIGH: Final = 0.95  # an acceptance rate above which hardly any is
_UNSURE: Final = 0.05  # of a pass: by so much measured costs may be wrong
_TRY_AGAIN: Final = 8  # times that drafts might pay until they are tried nevertheless


class Budget:
    """Chooses the drafts of a pass, possibly none, to maximise the expected tokens per second.

    A pass over the root and k drafts yields 1 + (the sum of the drafts' probabilities) tokens
    and costs c(1 + k). With the drafts sorted by probability, the k with the largest quotient
    is chosen. A draft is at most as probable as its parent, so the chosen drafts form a tree.
    Thread-safe.
    """

    def __init__(self, costs: CostCurve) -> None:
        """Create a budget with this cost curve."""
        self.costs = costs
        self.rates = AcceptanceRates()
        self._retakes = 0.0  # recent passes per token for retaken decisions
        self._checks = 0.0  # cost of certifying a token, in passes
        self._drafting = 0.0  # cost of drafting once, in passes
        self._accepted = 1.0  # recent mean of the accepted drafts of a tree
        self._last = 0  # accepted drafts of the last tree: while a passage is copied, many
        self._refused = 0  # consecutive choices of no draft
        self._skipped = 0  # tokens since the last draft
        self._declined = 0  # drafters that were not begun with, though they might pay
        self._lock = threading.Lock()

    def ask(self, most: int) -> int:
        """Return how many drafts to request: some more than are usually accepted, or none.

        Drafting takes time, too. While no draft pays off, drafting is attempted at every second
        token, then at every third, and so on, down to every eighth, or to so few tokens that
        the attempts take a fiftieth of the time.
        """
        with self._lock:
            rarest = max(_RAREST, math.ceil(self._drafting / _TRIED))
            if self._skipped < min(rarest, self._refused // _PATIENCE):
                self._skipped += 1
                return 0
            self._skipped = 0
            usual = max(4.0 * self._accepted, 2.0 * self._last)
            return min(most, _LEAST_ASKED + math.ceil(usual))

    def pays(self, source: str, effort: Effort, left: int, most: int) -> bool:
        """Return whether drafts are expected to gain more time than they take.

        With k drafts of acceptance rate a, a pass gives (1 - a^(k+1)) / (1 - a) tokens and costs
        c(1 + k) + k steps of the drafter, for the best k. What that gains over the tokens that
        are left, less what the measured costs may be wrong by, is compared with what it takes to
        begin. The rate is the learned one. Drafts that would pay at a rate of 0.95 only are tried
        once in eight times, to learn of a change.

        Args:
            source: the drafter's, in the evidence of its drafts.
            effort: what drafting is expected to take.
            left: the tokens that may still be generated.
            most: the maximum number of drafts in a pass.
        """
        pass_s = self.costs.pass_s
        if pass_s is None:
            return True
        with self._lock:
            rate = self.rates.of(Evidence(source, _SURE, _LIKELY), 1, first=True)
            for a in (rate, _HIGH):
                passes = self.passes_per_token(min(a, _HIGH), effort.step_s / pass_s, most)
                if left * pass_s * (1.0 - _UNSURE - passes) > effort.start_s:
                    self._declined += a != rate
                    return a == rate or self._declined % _TRY_AGAIN == 0
        return False

    def passes_per_token(self, rate: float, step: float, most: int) -> float:
        """Return the cost of a token in passes over one row, for the best number of drafts."""
        best, expected = 1.0, 1.0
        for drafts in range(1, most + 1):
            expected += rate**drafts
            best = min(best, (self.costs.cheapest(1 + drafts)[1] + drafts * step) / expected)
        return best

    def chances(self, tree: TokenTree) -> list[float]:
        """Estimate for each token the probability that the whole path to it is accepted."""
        depths, first = tree.depths(), _firsts(tree)
        chances: list[float] = []
        for node, parent in enumerate(tree.parents):
            before = 1.0 if parent == ROOT else chances[parent]
            rate = self.rates.of(tree.evidence[node], depths[node], first=node in first)
            chances.append(before * rate)
        return chances

    def choose(self, tree: TokenTree, depth: int, *, trees: bool) -> TokenTree:
        """Return the drafts worth verifying, padded where that makes the pass cheaper.

        Args:
            tree: what was drafted.
            depth: the maximum useful depth.
            trees: whether the model reads trees; otherwise padding extends the chain.
        """
        if not tree.tokens or depth < 1:
            with self._lock:  # a quick drafter is asked again at the next token
                self._refused += depth >= 1 and self._drafting > _TRIED
            return EMPTY
        with self._lock:
            chances = self.chances(tree)
            least = 1.0 / (1.0 - self._retakes) if self._retakes < 1.0 else math.inf
            checks, drafting = self._checks, self._drafting
        order = sorted(range(len(chances)), key=lambda node: (-chances[node], node))
        best, count, rows, expected, pays = least, 0, 1, 1.0, False
        for taken, node in enumerate(order, 1):
            expected += chances[node]
            filled, cost = self.costs.cheapest(1 + taken)
            speed = expected / (cost + checks * expected)
            if speed > best:
                best, count, rows = speed, taken, filled
                # These drafts exist already; whether to draft again depends on their cost, too.
                pays = expected / (cost + drafting + checks * expected) > least
        with self._lock:
            self._refused = 0 if pays else self._refused + 1
        if not count:
            return EMPTY
        return filled_up(tree.kept(order[:count]), rows - 1, depth, trees=trees)

    def learn(self, tree: TokenTree, tokens: Sequence[int]) -> None:
        """Update the acceptance rates with the tokens that actually followed."""
        if not tree.tokens:
            return
        depths, first = tree.depths(), _firsts(tree)
        way = tree.followed(tokens)
        with self._lock:
            self._accepted += (len(way) - self._accepted) / _RECENT
            self._last = len(way)
            for parent, token in zip((ROOT, *way), tokens, strict=False):
                for node in range(parent + 1, len(tree.tokens)):
                    if tree.parents[node] == parent:
                        accepted = tree.tokens[node] == token
                        place = tree.evidence[node], depths[node]
                        self.rates.learn(*place, first=node in first, accepted=accepted)

    def note_draft(self, seconds: float) -> None:
        """Record the seconds of one drafting."""
        if self.costs.pass_s:
            with self._lock:
                self._drafting += (seconds / self.costs.pass_s - self._drafting) / _RECENT

    def note_check(self, seconds: float) -> None:
        """Record the seconds of certifying one token."""
        if self.costs.pass_s:
            with self._lock:
                self._checks += (seconds / self.costs.pass_s - self._checks) / _RECENT

    def note_tokens(self, tokens: int, passes: int) -> None:
        """Record generated tokens, and the passes made to retake decisions."""
        with self._lock:
            for _ in range(tokens):
                self._retakes *= 1.0 - 1.0 / _MEMORY
            self._retakes += passes / _MEMORY


def filled_up(tree: TokenTree, count: int, depth: int, *, trees: bool) -> TokenTree:
    """Pad a tree with arbitrary drafts up to `count`: after a chain, or as siblings.

    >>> filled_up(TokenTree((5,), (-1,)), 3, 9, trees=True).parents
    (-1, 0, 1)
    >>> filled_up(TokenTree((5, 6), (-1, -1)), 3, 9, trees=True).parents
    (-1, -1, -1)
    """
    missing = count - len(tree)
    if missing <= 0:
        return tree
    if trees and not (tree.is_chain and count <= depth):
        taken = {t for t, parent in zip(tree.tokens, tree.parents, strict=True) if parent == ROOT}
        tokens = [token for token in range(missing + len(taken)) if token not in taken][:missing]
        parents = [ROOT] * len(tokens)
    else:
        tokens = [0] * min(missing, depth - len(tree))
        parents = [len(tree) + at - 1 for at in range(len(tokens))]
    return TokenTree(
        (*tree.tokens, *tokens),
        (*tree.parents, *parents),
        (*tree.values, *[0.0] * len(tokens)),
        (*tree.evidence, *[FILLING] * len(tokens)),
    )


FILLING: Final = Evidence("filling")


def _firsts(tree: TokenTree) -> set[int]:
    """Return, for each parent, its child with the largest value."""
    best: dict[int, int] = {}
    for node, parent in enumerate(tree.parents):
        if parent not in best or tree.values[node] > tree.values[best[parent]]:
            best[parent] = node
    return set(best.values())
