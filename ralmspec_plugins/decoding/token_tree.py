"""A tree of drafted tokens: what may follow the last token of a text."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import index
from typing import Final, NamedTuple

from ralmspec_plugins.errors import ConfigError

ROOT: Final = -1  # the parent of the tokens that follow the text's last one


class Evidence(NamedTuple):
    """What a drafted token rests on; acceptance rates are learned by it.

    Attributes:
        source: the drafter's name.
        match: how many tokens of the text's end were found again.
        share: the share of this token among the continuations of its parent that were found.
    """

    source: str
    match: int = 0
    share: float = 1.0


NO_EVIDENCE: Final = Evidence("")
_INTEGERS: Final = frozenset({int})


@dataclass(frozen=True, slots=True)
class TokenTree:
    """Drafted tokens, each following its parent: a token of the tree, or the text's last one.

    A parent precedes its children, and siblings are different tokens, so each
    path from the root is a different continuation of the text. Values that are not given
    are 1.

    >>> tree = TokenTree.of([[5, 6, 7], [5, 8]])
    >>> tree.tokens, tree.parents, tree.depths()
    ((5, 6, 7, 8), (-1, 0, 1, 0), (1, 2, 3, 2))
    >>> tree.child(0, 8), tree.child(0, 9), tree.path(3)
    (3, None, (0, 3))
    """

    tokens: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()
    values: tuple[float, ...] = ()  # the drafter's estimate that the whole path is accepted
    evidence: tuple[Evidence, ...] = ()

    def __post_init__(self) -> None:
        """Check that this is a tree, and set the defaults; integers of numpy become Python's.

        Raises:
            ConfigError: lengths differ, a parent follows its child, siblings are equal, or a
                value or evidence is none.
            TypeError: a token or a parent is not an integer.
        """
        for name, column in (("tokens", self.tokens), ("parents", self.parents)):
            if not _INTEGERS.issuperset(map(type, column)):
                object.__setattr__(self, name, tuple(int(index(one)) for one in column))
        count = len(self.tokens)
        if not self.values:
            object.__setattr__(self, "values", (1.0,) * count)
        if not self.evidence:
            object.__setattr__(self, "evidence", (NO_EVIDENCE,) * count)
        if not len(self.parents) == len(self.values) == len(self.evidence) == count:
            raise ConfigError("a token tree needs a parent, a value and evidence for each token")
        if not all(ROOT <= parent < node for node, parent in enumerate(self.parents)):
            raise ConfigError(f"a parent must precede its child, got {self.parents}")
        if len(set(zip(self.parents, self.tokens, strict=True))) != count:
            raise ConfigError("siblings of a token tree must be different tokens")
        _check_estimates(self.values, self.evidence)

    @classmethod
    def of(cls, continuations: Iterable[Sequence[int]], source: str = "") -> "TokenTree":
        """Return a tree of continuations, whose common prefixes are shared."""
        places: dict[tuple[int, int], int] = {}
        for continuation in continuations:
            node = ROOT
            for token in continuation:
                node = places.setdefault((node, token), len(places))
        count = len(places)
        return cls(
            tuple(token for _, token in places),
            tuple(parent for parent, _ in places),
            evidence=(Evidence(source),) * count,
        )

    @classmethod
    def unchecked(
        cls,
        tokens: tuple[int, ...],
        parents: tuple[int, ...],
        values: tuple[float, ...],
        evidence: tuple[Evidence, ...],
    ) -> "TokenTree":
        """Return a tree without checking it: the checks take longer than a look-up.

        The caller guarantees what the checks ask for; a drafter of your own has them made.
        """
        tree = object.__new__(cls)
        object.__setattr__(tree, "tokens", tokens)
        object.__setattr__(tree, "parents", parents)
        object.__setattr__(tree, "values", values)
        object.__setattr__(tree, "evidence", evidence)
        return tree

    def __len__(self) -> int:
        """Return the number of tokens."""
        return len(self.tokens)

    @property
    def is_chain(self) -> bool:
        """Whether each token follows the previous one."""
        return all(parent == node - 1 for node, parent in enumerate(self.parents))

    def depths(self) -> tuple[int, ...]:
        """Return the depth of each token; 1 for children of the root."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(1 if parent == ROOT else depths[parent] + 1)
        return tuple(depths)

    def child(self, parent: int, token: int) -> int | None:
        """Return the child of a node, or of the root, that is this token; `None` if none is."""
        for node in range(parent + 1, len(self.tokens)):
            if self.parents[node] == parent and self.tokens[node] == token:
                return node
        return None

    def path(self, node: int) -> tuple[int, ...]:
        """Return the nodes on the path from the root to a node, the nearest to the root first."""
        way = []
        while node != ROOT:
            way.append(node)
            node = self.parents[node]
        return tuple(reversed(way))

    def followed(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """Return the nodes that a continuation follows.

        >>> TokenTree.of([[5, 6], [7]]).followed([5, 6, 8])
        (0, 1)
        """
        way: list[int] = []
        for token in tokens:
            child = self.child(way[-1] if way else ROOT, token)
            if child is None:
                break
            way.append(child)
        return tuple(way)

    def kept(self, nodes: Iterable[int]) -> "TokenTree":
        """Return the tree of some nodes, without those whose parent is not kept."""
        places: dict[int, int] = {ROOT: ROOT}
        for node in sorted(set(nodes)):
            if self.parents[node] in places:
                places[node] = len(places) - 1
        order = [node for node in places if node != ROOT]
        return TokenTree.unchecked(
            tuple(self.tokens[node] for node in order),
            tuple(places[self.parents[node]] for node in order),
            tuple(self.values[node] for node in order),
            tuple(self.evidence[node] for node in order),
        )

    def step_value(self, node: int) -> float:
        """Return the estimated probability that a token is accepted if its parent is."""
        parent = self.parents[node]
        before = 1.0 if parent == ROOT else self.values[parent]
        return min(1.0, self.values[node] / before) if before > 0 else 0.0

    def most_valued(self, count: int) -> "TokenTree":
        """Return the tree of at most `count` tokens with the largest values, and their paths.

        >>> TokenTree((5, 6, 7), (-1, -1, 1), (0.3, 0.6, 0.5)).most_valued(2).tokens
        (6, 7)
        """
        if len(self.tokens) <= count:
            return self
        kept: set[int] = set()
        for node in sorted(range(len(self.tokens)), key=lambda one: (-self.values[one], one)):
            way = kept.union(self.path(node))
            if len(way) <= count:
                kept = way
        return self.kept(kept)

    def chain(self) -> "TokenTree":
        """Return the path from the root that follows the most valued child each time.

        >>> TokenTree((5, 6, 7), (-1, -1, 1), (0.3, 0.6, 0.2)).chain().tokens
        (6, 7)
        """
        best: dict[int, int] = {}
        for node, parent in enumerate(self.parents):
            if parent not in best or self.values[node] > self.values[best[parent]]:
                best[parent] = node
        way, node = [], ROOT
        while node in best:
            node = best[node]
            way.append(node)
        return self.kept(way)

    def within(self, vocabulary: int, depth: int) -> "TokenTree":
        """Return the tree without tokens outside a vocabulary, or deeper than `depth`."""
        inside = all(0 <= token < vocabulary for token in self.tokens)
        if inside and len(self.tokens) <= depth:
            return self
        depths = self.depths()
        fits = [
            node
            for node, token in enumerate(self.tokens)
            if 0 <= token < vocabulary and depths[node] <= depth
        ]
        return self.kept(fits)


def _check_estimates(values: Sequence[float], evidence: Sequence[Evidence]) -> None:
    if not all(map(math.isfinite, values)) or min(values, default=0.0) < 0.0:
        raise ConfigError(f"values must be probabilities, got {values}")
    for one in set(evidence):
        if not (isinstance(one, Evidence) and one.match >= 0 and 0.0 <= one.share <= 1.0):
            raise ConfigError(f"evidence must be Evidence with a share up to 1, got {one!r}")


EMPTY: Final = TokenTree()


def checked_tree(drafted: object) -> TokenTree:
    """Return what a drafter proposed, if it is a tree.

    Raises:
        TypeError: it is not a `TokenTree`.
    """
    if not isinstance(drafted, TokenTree):
        raise TypeError(f"propose() must return a TokenTree, got {type(drafted).__name__}")
    return drafted


def scaled(tree: TokenTree, weight: float) -> TokenTree:
    """Return a tree in which each token's probability given its parent is times a weight.

    >>> scaled(TokenTree((5, 6), (-1, 0), (0.8, 0.4)), 0.5).values
    (0.4, 0.1)
    """
    if weight == 1.0:
        return tree
    values: list[float] = []
    for node, parent in enumerate(tree.parents):
        before = 1.0 if parent == ROOT else values[parent]
        values.append(before * min(1.0, tree.step_value(node) * weight))
    return TokenTree.unchecked(tree.tokens, tree.parents, tuple(values), tree.evidence)


def merged(trees: Sequence[TokenTree]) -> TokenTree:
    """Return the union of trees; a path in several of them has the largest of their values.

    >>> both = merged([TokenTree((5, 6), (-1, 0), (0.5, 0.4)), TokenTree((5, 7), (-1, 0))])
    >>> both.tokens, both.parents, both.values
    ((5, 6, 7), (-1, 0, 0), (1.0, 0.4, 1.0))
    """
    filled = [tree for tree in trees if tree.tokens]
    if len(filled) < 2:
        return filled[0] if filled else EMPTY
    places: dict[tuple[int, int], int] = {}
    values: list[float] = []
    evidence: list[Evidence] = []
    for tree in filled:
        mine: dict[int, int] = {ROOT: ROOT}
        for node, key in enumerate(zip(tree.parents, tree.tokens, strict=True)):
            place = places.setdefault((mine[key[0]], key[1]), len(places))
            mine[node] = place
            if place == len(values):
                values.append(tree.values[node])
                evidence.append(tree.evidence[node])
            elif tree.values[node] > values[place]:
                values[place], evidence[place] = tree.values[node], tree.evidence[node]
    tokens, parents = (tuple(key[at] for key in places) for at in (1, 0))
    return TokenTree.unchecked(tokens, parents, tuple(values), tuple(evidence))
