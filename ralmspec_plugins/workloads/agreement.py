"""SpecHop's verifier: whether a guessed observation agrees with the real one. It is lossy."""

import re
import unicodedata
from collections.abc import Sequence
from typing import Final

from ralmspec_plugins.types import Passage

COVERAGE: Final = 0.72  # of the real observation's words, as in SpecHop's appendix D.4
JACCARD: Final = 0.55
SHORT: Final = 5  # characters below which all words must be equal

_REFUSAL: Final = re.compile(
    r"\b(i (do not|dont|cannot|cant|am unable|am not able|am sorry)|im (sorry|unable|not sure)"
    r"|as an ai|no (information|results?|relevant|data)|not (found|available|mentioned)|unknown)\b"
)
_WORDS: Final = (
    "a an the of in on at to for from by with and or but is are was were be been being as it its "
    "this that these those he she they his her their which who whom has have had do does did not "
    "into about than then there"
)
_STOP_WORDS: Final = frozenset(_WORDS.split())


def says_the_same(guess: str, real: str) -> bool:
    """Return whether a guessed observation may replace the real one by SpecHop's criterion.

    arXiv 2605.21965, appendix D.4. Both are compared in lower case, without accents and
    punctuation. A guess that refuses to answer is wrong, and so is one that lacks a number of
    several digits. It is right if one text contains the other, or if it shares enough words with
    the real one. For real observations of under five characters all words must be equal.

    >>> says_the_same("The Eiffel Tower was built in 1889.", "Eiffel tower: built in 1889")
    True
    >>> says_the_same("The Eiffel Tower was built in 1887.", "Eiffel tower: built in 1889")
    False
    """
    guessed, found = _normal(guess), _normal(real)
    if _REFUSAL.search(guessed) and guessed != found:
        return False
    if len(found) < SHORT:
        return guessed.split() == found.split()
    numbers = {word for word in found.split() if word.isdigit() and len(word) > 1}
    if not guessed or not numbers <= set(guessed.split()):
        return False
    if guessed in found or found in guessed:
        return True
    said, meant = _content(guessed), _content(found)
    shared = len(said & meant)
    return bool(meant) and (
        shared / len(meant) >= COVERAGE or shared / len(said | meant) >= JACCARD
    )


def passages_say_the_same(guess: Sequence[Passage], real: Sequence[Passage]) -> bool:
    """Return the result of `says_the_same` for all passages of a hop, titles included.

    For `MultiHop(agree=...)`, with which answers may differ from the plain loop's.
    """
    if not guess or not real:
        return not guess and not real
    return says_the_same(*(_joined(passages) for passages in (guess, real)))


def _joined(passages: Sequence[Passage]) -> str:
    return " ".join(f"{one.title} {one.text}" for one in passages)


def _normal(text: str) -> str:
    """Return a text in lower case, without accents and punctuation, spaced singly."""
    decomposed = unicodedata.normalize("NFKD", text.lower())
    bare = "".join(one for one in decomposed if not unicodedata.combining(one))
    letters = "".join(one for one in bare if one not in "'\u2019")
    return " ".join(re.sub(r"[\W_]+", " ", letters).split())


def _content(text: str) -> frozenset[str]:
    return frozenset(text.split()) - _STOP_WORDS
