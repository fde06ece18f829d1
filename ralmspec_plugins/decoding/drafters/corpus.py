"""Drafts the tokens that followed the text's end in a corpus, as REST does."""

import os
from collections.abc import Sequence
from typing import Final

from ralmspec_plugins.decoding.corpus import TokenCorpus
from ralmspec_plugins.decoding.drafters.protocol import Accepted, DraftContext, DraftTarget
from ralmspec_plugins.decoding.token_tree import EMPTY, ROOT, Evidence, TokenTree
from ralmspec_plugins.errors import ConfigError

_BACK: Final = 2  # shorter suffixes that are looked up if the longest has few occurrences
_FEW: Final = 8


class CorpusDrafter:
    """Retrieves drafts from a token corpus: REST (He et al., 2311.08252).

    The longest suffix of the text that occurs in the corpus is found by binary searches in a
    suffix array. The continuations of up to `places` occurrences become a tree, valued by their
    frequencies. REST uses suffixes of at most 16 tokens, the 10 tokens after them, and the 64
    most frequent drafts.

    All requests of the drafter read the corpus: give each tenant a corpus of its own
    texts. A draft never changes a text.

    Worked: in the corpus "1 2" is followed twice by 3 and once by 4; the remaining probability
    is left to shorter suffixes, since three occurrences are few:

    >>> corpus = TokenCorpus.of([[1, 2, 3, 5], [1, 2, 3, 6], [1, 2, 4]])
    >>> tree = CorpusDrafter(corpus).propose(DraftContext("request", (), (9,), (1, 2)), 9)
    >>> tree.tokens, [round(value, 2) for value in tree.values]
    ((3, 5, 6, 4), [0.4, 0.2, 0.2, 0.2])
    """

    source: Final = "corpus"  # in the evidence of its drafts

    def __init__(
        self,
        corpus: TokenCorpus | str | os.PathLike[str],
        *,
        longest_match: int = 16,
        least_match: int = 1,
        depth: int = 10,
        places: int = 128,
    ) -> None:
        """Create a drafter from a corpus.

        Args:
            corpus: a corpus, or its folder.
            longest_match: the maximum length of a suffix that is looked up.
            least_match: the minimum length of a suffix that must be found.
            depth: the maximum number of tokens taken after an occurrence.
            places: the maximum number of occurrences read, spread over all of them.

        Raises:
            ConfigError: a number is below 1.
            IndexFileError: there is no corpus in the folder.
        """
        for name, value in (
            ("longest_match", longest_match),
            ("least_match", least_match),
            ("depth", depth),
            ("places", places),
        ):
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        self.corpus = corpus if isinstance(corpus, TokenCorpus) else TokenCorpus.open(corpus)
        self.longest_match = longest_match
        self.least_match = least_match
        self.depth = depth
        self.places = places

    def bind(self, target: DraftTarget) -> None:
        """Check that the model has the tokenizer of the corpus.

        Raises:
            ModelError: it has another one.
        """
        self.corpus.check_tokenizer(target.tokenizer)

    def propose(self, context: DraftContext, budget: int) -> TokenTree:
        """Return at most `budget` drafted tokens."""
        end = (*context.front[-self.longest_match :], *context.text)[-self.longest_match :]
        match, start, stop = self.corpus.longest(end, self.longest_match)
        counts = _ContinuationTree()
        asked = 0
        while match >= self.least_match and match > 0:
            counts.add(self._continuations(start, stop, match), match)
            asked += 1
            if counts.places >= _FEW or asked > _BACK:
                break
            match -= 1  # a shorter suffix has these occurrences and others
            start, stop = self.corpus.find(end[len(end) - match :])
        return counts.tree().most_valued(budget)

    def update(self, accepted: Accepted) -> None:
        """Do nothing: the corpus does not change."""

    def _continuations(self, start: int, stop: int, match: int) -> list[tuple[int, ...]]:
        """Return the continuations in a range of the suffix array, or in a sample of it."""
        if stop - start <= self.places:
            return list(self.corpus.following(start, stop, match, self.depth))
        step = (stop - start) / self.places
        chosen = (start + int(step * number) for number in range(self.places))
        return [
            one
            for place in chosen
            for one in self.corpus.following(place, place + 1, match, self.depth)
        ]


class _ContinuationTree:
    """Frequencies of paths, each counted for the longest suffix that leads to it."""

    def __init__(self) -> None:
        self.places = 0
        self._nodes: dict[tuple[int, int], int] = {}  # (parent, token) to node
        self._values: list[float] = []
        self._evidence: list[Evidence] = []
        self._left = 1.0  # the probability left to suffixes not looked up yet

    def add(self, continuations: Sequence[tuple[int, ...]], match: int) -> None:
        """Count the continuations of a suffix; paths known from a longer one are unchanged."""
        whole = self.places = len(continuations)
        counts: dict[int, int] = {}  # by node
        for one in continuations:
            node = ROOT
            for token in one:
                node = self._nodes.setdefault((node, token), len(self._nodes))
                counts[node] = counts.get(node, 0) + 1
        if not counts:
            return
        parents = [parent for parent, _ in self._nodes]
        children = sum(parents[node] == ROOT for node in counts)
        # As in PPM, suffixes with few occurrences leave a share to shorter ones.
        part = self._left * (whole / (whole + children) if whole < _FEW else 1.0)
        for node in range(len(self._values), len(parents)):
            parent = parents[node]
            before = whole if parent == ROOT else counts[parent]
            length = match if parent == ROOT else self._evidence[parent].match + 1
            self._values.append(part * counts[node] / whole)
            self._evidence.append(Evidence(CorpusDrafter.source, length, counts[node] / before))
        self._left -= part

    def tree(self) -> TokenTree:
        """Return the tree of all paths."""
        if not self._nodes:
            return EMPTY
        return TokenTree(
            tuple(token for _, token in self._nodes),
            tuple(parent for parent, _ in self._nodes),
            tuple(self._values),
            tuple(self._evidence),
        )
