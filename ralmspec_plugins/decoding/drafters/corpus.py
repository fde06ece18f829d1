"""Drafts the tokens that followed the text's end in a corpus, as REST does."""

import heapq
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
        levels: list[_Level] = []
        left = 1.0  # the probability left to suffixes not looked up yet
        for _ in range(1 + _BACK):
            if match < max(1, self.least_match):
                break
            found = self.corpus.following(start, stop, match, self.depth, self.places)
            level = _Level.of(found, match, left)
            left -= level.part
            levels.append(level)
            if len(found) >= _FEW:
                break
            match -= 1  # a shorter suffix has these occurrences and others
            start, stop = self.corpus.find(end[len(end) - match :])
        return _most_frequent(levels, budget)

    def update(self, accepted: Accepted) -> None:
        """Do nothing: the corpus does not change."""


_Windows = list[tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class _Level:
    """The continuations of one suffix of the text; a path is valued by the longest suffix."""

    windows: _Windows
    match: int  # the suffix's length
    part: float  # its share of the probability

    @classmethod
    def of(cls, windows: _Windows, match: int, left: float) -> "_Level":
        """Return the level of a suffix, to which longer ones have left a share.

        As in PPM, suffixes with few occurrences leave some of it to shorter ones.
        """
        whole, followers = len(windows), len({one[0] for one in windows if one})
        kept = whole / (whole + followers) if whole < _FEW else 1.0
        return cls(windows, match, left * kept if followers else 0.0)


def _most_frequent(levels: Sequence[_Level], budget: int) -> TokenTree:
    """Return the most valued paths; counts are made only behind tokens that are drafted."""
    heap: list[tuple[float, int, int, int, int, Evidence, list[_Windows]]] = []
    tokens: list[int] = []
    parents: list[int] = []
    values: list[float] = []
    evidence: list[Evidence] = []
    parent, depth, found, order = ROOT, 0, [level.windows for level in levels], 0
    while len(tokens) < budget:
        for token, value, share, match, behind in _followers(levels, found, depth):
            length = match if parent == ROOT else evidence[parent].match + 1
            rests = Evidence(CorpusDrafter.source, length, share)
            heapq.heappush(heap, (-value, -depth, order, token, parent, rests, behind))
            order += 1
        if not heap:
            break
        negative, level_depth, _, token, above, rests, found = heapq.heappop(heap)
        parent, depth = len(tokens), 1 - level_depth
        tokens.append(token)
        parents.append(above)
        values.append(-negative)
        evidence.append(rests)
    if not tokens:
        return EMPTY
    return TokenTree(tuple(tokens), tuple(parents), tuple(values), tuple(evidence))


def _followers(
    levels: Sequence[_Level], found: Sequence[_Windows], depth: int
) -> Iterator[tuple[int, float, float, int, list[_Windows]]]:
    """Yield the tokens at a depth of windows: value, share, match, and each level's windows."""
    grouped: list[dict[int, _Windows]] = []
    for windows in found:
        groups: dict[int, _Windows] = {}
        for one in windows:
            if len(one) > depth:
                groups.setdefault(one[depth], []).append(one)
        grouped.append(groups)
    seen: set[int] = set()
    for level, windows, groups in zip(levels, found, grouped, strict=True):
        for token, behind in groups.items():
            if token not in seen:
                seen.add(token)
                value = level.part * len(behind) / len(level.windows)
                share = len(behind) / len(windows)
                yield token, value, share, level.match, [one.get(token, []) for one in grouped]
