"""Drafters that know the right text, and drafters that know nothing."""

from collections.abc import Callable, Sequence
from random import Random

from ralmspec_plugins.decoding import Accepted, DraftContext, TokenTree
from ralmspec_plugins.decoding.budget import Budget, CostCurve
from ralmspec_plugins.lm.huggingface import HuggingFaceLM
from ralmspec_plugins.lm.state import Draft
from tests.decoding.integers import VOCABULARY

MOST = 64
FREE = CostCurve((1, MOST + 1), (1.0, 1.0))


class EveryDraft(Budget):
    """Asks for drafts at every token, and verifies whatever is drafted."""

    def ask(self, most: int) -> int:
        return most

    def choose(self, tree: TokenTree, depth: int, *, trees: bool) -> TokenTree:
        return tree if trees else tree.chain()


class ScriptedDrafter:
    """Drafts by a rule from what will really follow, as far as it was told."""

    def __init__(self) -> None:
        self.rule: Callable[[Sequence[int], Random, int], TokenTree] = nothing
        self.rng = Random(0)
        self.updates: list[Accepted] = []
        self.written = 0  # tokens of the text that is drafted for
        self._texts: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def know(self, lm: HuggingFaceLM, draft: Draft) -> None:
        """Take in a text behind its passages."""
        lineage = lm._lineage(draft)
        self._texts.append((lineage.prefix.tokens + lineage.prompt, draft.tokens))

    def forget(self) -> None:
        self._texts, self.updates = [], []

    def propose(self, context: DraftContext, budget: int) -> TokenTree:
        self.written = len(context.text)
        return self.rule(self._following(context), self.rng, budget)

    def update(self, accepted: Accepted) -> None:
        self.updates.append(accepted)

    def _following(self, context: DraftContext) -> tuple[int, ...]:
        length = len(context.text)
        for front, tokens in reversed(self._texts):
            if front == context.front and tokens[:length] == context.text:
                return tokens[length:]
        return ()


def nothing(following: Sequence[int], rng: Random, budget: int) -> TokenTree:
    return TokenTree()


def oracle(following: Sequence[int], rng: Random, budget: int) -> TokenTree:
    return TokenTree.of([following[:budget]])


def now_and_then(following: Sequence[int], rng: Random, budget: int) -> TokenTree:
    """The right tokens, or nothing: passes of one token come behind those of several."""
    return TokenTree.of([following[: rng.choice([0, 0, 1, 4])]])


def adversarial(following: Sequence[int], rng: Random, budget: int) -> TokenTree:
    """The right tokens up to one, and from there on others."""
    right = rng.randrange(len(following) + 1)
    wrong = [rng.randrange(VOCABULARY) for _ in range(4)]
    return TokenTree.of([[*following[:right], *wrong]])


def random_tree(following: Sequence[int], rng: Random, budget: int) -> TokenTree:
    """The right tokens as one path of a tree in which anything stands in any order."""
    tokens: list[int] = []
    parents: list[int] = []
    places: dict[int, int] = {-1: -1}  # of the right path, by depth
    depth = -1
    for _ in range(rng.randint(1, budget)):
        if depth + 1 < len(following) and rng.random() < 0.5:
            parent, token = places[depth], following[depth + 1]
        else:
            parent = rng.randint(-1, len(tokens) - 1)
            token = rng.choice([*following[:9], rng.randrange(VOCABULARY)])
        if (parent, token) in set(zip(parents, tokens, strict=True)):
            continue
        if parent == places[depth] and following[depth + 1 : depth + 2] == (token,):
            depth += 1
            places[depth] = len(tokens)
        parents.append(parent)
        tokens.append(token)
    return TokenTree(tuple(tokens), tuple(parents))


def wrong_vocabulary(following: Sequence[int], rng: Random, budget: int) -> TokenTree:
    """Tokens that there are not, in the middle of right ones."""
    strange = rng.choice([-1, -7, VOCABULARY, 10**9])
    cut = rng.randrange(len(following) + 1)
    return TokenTree.of([[*following[:cut], strange, *following[cut:]], following[:3]])


def raising(following: Sequence[int], rng: Random, budget: int) -> TokenTree:
    raise RuntimeError("planted")


RULES = (nothing, oracle, now_and_then, now_and_then, adversarial, random_tree, random_tree)
RULES += (wrong_vocabulary,)
