"""Texts that a fake model writes: each next word depends on all that stands before it."""

import hashlib
from collections.abc import Callable, Sequence

WORDS = (
    *(" ships", " storm", " island", " keeper", " lighthouse", " sea", " crêpes", " 25 €", " 🙂"),
    *(" 3.5 kg", " and", " the", ". The", '!" Then', "? No", ".\n\nA", " (so)", " señor", " naïve"),
)
_END = 17  # one word in so many is the last


def next_word(text: str) -> str | None:
    """Give the word that follows a text, or None at its end."""
    number = int.from_bytes(hashlib.blake2b(text[-400:].encode(), digest_size=4).digest())
    return None if number % _END == 0 else WORDS[number % len(WORDS)]


def words_after(
    text: str,
    tokens: int,
    stop: Sequence[str] | None,
    following: Callable[[str], str | None] = next_word,
) -> tuple[list[str], str]:
    """Give the words that follow, and why there are no more; a stop string ends them."""
    written: list[str] = []
    while len(written) < tokens:
        word = following(text + "".join(written))
        if word is None:
            return written, "stop"
        written.append(word)
        whole = "".join(written)
        found = [whole.find(mark) for mark in stop or () if mark in whole]
        if found:
            return [whole[: min(found)]] if min(found) else [], "stop"
    return written, "length"
