"""A tree of drafted tokens: what may follow the last token of a text."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from ralmspec_plugins.errors import ConfigError

ROOT: Final = -1  # the parent of the tokens that follow the text's last one


class Evidence(NamedTuple):
    """What a drafted token rests on, for those who learn how often such tokens are accepted.

    Attributes:
        source: the drafter's name.
        match: how many tokens of the text's end were found again.
        share: the part of the places found that go on with this token, of those behind its parent.
    """

    source: str
    match: int = 0
    share: float = 1.0


NO_EVIDENCE: Final = Evidence("")


@dataclass(frozen=True, slots=True)
class TokenTree:
    """Drafted tokens, each behind its parent: a token of the tree, or the text's last token.

    A parent stands in front of its children, and siblings are different tokens: a
    path from the root is one continuation of the text, and every continuation is
    one path. Without an estimate of its own, a token is taken to be as likely as
    its parent.

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
        """Refuse what is no tree, and fill in what was not given.

        Raises:
            ConfigError: lengths differ, a parent stands behind its child, or siblings are equal.
        """
        count = len(self.tokens)
        if not self.values:
            object.__setattr__(self, "values", (1.0,) * count)
        if not self.evidence:
            object.__setattr__(self, "evidence", (NO_EVIDENCE,) * count)
        if not len(self.parents) == len(self.values) == len(self.evidence) == count:
            raise ConfigError("a token tree needs a parent, a value and evidence for each token")
        if not all(ROOT <= parent < node for node, parent in enumerate(self.parents)):
            raise ConfigError(f"a parent must stand in front of its child, got {self.parents}")
        if len(set(zip(self.parents, self.tokens, strict=True))) != count:
            raise ConfigError("siblings of a token tree must be different tokens")

    @classmethod
    def of(cls, continuations: Iterable[Sequence[int]], source: str = "") -> "TokenTree":
        """Make a tree of continuations, whose common beginnings are shared."""
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
        """Make a tree of what is known to be one: the checks take longer than a look-up."""
        tree = object.__new__(cls)
        object.__setattr__(tree, "tokens", tokens)
        object.__setattr__(tree, "parents", parents)
        object.__setattr__(tree, "values", values)
        object.__setattr__(tree, "evidence", evidence)
        return tree

    def __len__(self) -> int:
        """Count the tokens."""
        return len(self.tokens)

    @property
    def is_chain(self) -> bool:
        """Whether each token stands behind the one in front of it."""
        return all(parent == node - 1 for node, parent in enumerate(self.parents))

    def depths(self) -> tuple[int, ...]:
        """Count, for each token, the tokens on the path to it; 1 behind the root."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(1 if parent == ROOT else depths[parent] + 1)
        return tuple(depths)

    def child(self, parent: int, token: int) -> int | None:
        """Find the child of a token, or of the root, that is this token."""
        for node in range(parent + 1, len(self.tokens)):
            if self.parents[node] == parent and self.tokens[node] == token:
                return node
        return None

    def path(self, node: int) -> tuple[int, ...]:
        """Give the tokens' places on the way to one of them, the nearest to the root first."""
        way = []
        while node != ROOT:
            way.append(node)
            node = self.parents[node]
        return tuple(reversed(way))

    def followed(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """Give the places of the tokens that a continuation leads along.

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
        """Give the tree of some of the tokens; those whose parent is not kept go, too."""
        places: dict[int, int] = {ROOT: ROOT}
        for node in sorted(set(nodes)):
            if self.parents[node] in places:
                places[node] = len(places) - 1
        order = [node for node in places if node != ROOT]
        return TokenTree(
            tuple(self.tokens[node] for node in order),
            tuple(places[self.parents[node]] for node in order),
            tuple(self.values[node] for node in order),
            tuple(self.evidence[node] for node in order),
        )

    def step_value(self, node: int) -> float:
        """Give the estimate that a token is accepted where its parent was."""
        parent = self.parents[node]
        before = 1.0 if parent == ROOT else self.values[parent]
        return min(1.0, self.values[node] / before) if before > 0 else 0.0

    def most_valued(self, count: int) -> "TokenTree":
        """Give the tree of the most valued tokens, with all on the way to them, the best first.

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
        """Give the path from the root that takes the most valued child each time.

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
        """Give the tree without tokens outside a vocabulary, or deeper than a depth."""
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


EMPTY: Final = TokenTree()


def scaled(tree: TokenTree, weight: float) -> TokenTree:
    """Give a tree whose tokens are each as likely, behind their parents, times a weight.

    >>> scaled(TokenTree((5, 6), (-1, 0), (0.8, 0.4)), 0.5).values
    (0.4, 0.1)
    """
    if weight == 1.0:
        return tree
    values: list[float] = []
    for node, parent in enumerate(tree.parents):
        before = 1.0 if parent == ROOT else values[parent]
        values.append(before * min(1.0, tree.step_value(node) * weight))
    return TokenTree(tree.tokens, tree.parents, tuple(values), tree.evidence)


def merged(trees: Sequence[TokenTree]) -> TokenTree:
    """Give the union of trees: a path that stands in several has the largest of their values.

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
    tokens = tuple(token for _, token in places)
    return TokenTree(tokens, tuple(parent for parent, _ in places), tuple(values), tuple(evidence))
