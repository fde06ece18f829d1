"""FLARE's loop as a user writes it by hand over a server's log-probabilities."""

import re
from collections.abc import Callable, Sequence
from typing import Any

THETA, BETA, LOOK_AHEAD = 0.8, 0.4, 30
_SENTENCE = re.compile(r".*?[.!?]+[\"')]*(?=\s)", flags=re.DOTALL)

Token = tuple[str, float]  # with its probability
Write = Callable[[Any, str, int], tuple[str, Sequence[Token], bool]]


def flare_by_hand(
    write: Write, search: Callable[[str], Any], question: str, max_tokens: int
) -> tuple[str, list[Any], int]:
    """Look ahead, search where a token is unsure, write the sentence again.

    `write(context, text, bound)` gives text, tokens, and whether the model came to its end. The
    text, what each search found, and the number of sure sentences are returned.
    """
    found = [search(question)]
    text, sure, spent = "", 0, 0
    while (bound := min(LOOK_AHEAD, max_tokens - spent)) > 0:
        ahead, tokens, cost = _sentence(*write(found[-1], text, bound), bound, max_tokens)
        if all(probability > THETA for _, probability in tokens):
            text, sure, spent = text + ahead, sure + 1, spent + cost
            continue
        masked = "".join(token if p > BETA else " " for token, p in tokens).strip()
        if masked:
            found.append(search(masked))
        again, _, cost = _sentence(*write(found[-1], text, bound), bound, max_tokens)
        text, spent = text + again, spent + cost
    return text, found, sure


def _sentence(
    piece: str, tokens: Sequence[Token], ended: bool, bound: int, whole: int
) -> tuple[str, list[Token], int]:
    """Return the first sentence, its own tokens, and what it takes of the answer's length."""
    found = _SENTENCE.match(piece)
    sentence = found.group() if found else piece
    own, left = [], sentence
    for token, probability in tokens:
        if left and token:
            own.append((token[: len(left)], probability))
            left = left[len(token) :]
    assert left == ""
    if sentence == piece or (ended and not piece[len(sentence) :].strip()):
        return sentence, own, whole if ended or not piece else bound
    return sentence, own, min(bound, len(sentence.split()))
