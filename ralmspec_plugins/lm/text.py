"""Turns tokens into text as they come, and finds stop strings in it."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Decode = Callable[[Sequence[int]], str]

INCOMPLETE = "\ufffd"  # what a tokenizer shows for bytes that are no character yet
CONTEXT_TOKENS = 5  # of the prompt, so that a first word keeps its leading space


@dataclass(frozen=True, slots=True)
class Transcript:
    """The text of some tokens, of which `text` can never change by further tokens.

    Decoding a longer sequence may change what a shorter one gave: a character's
    missing bytes arrive, or a tokenizer drops the space in front of a first word.
    So tokens are decoded behind the last tokens whose text is known (`anchor`),
    and what they add is taken over once it ends in a whole character. The text
    is defined by that rule, and therefore only ever grows.

    >>> words = {1: "An", 2: " apple"}
    >>> decode = lambda ids: "".join(words[i] for i in ids).lstrip()
    >>> begin(()).add(1, decode).add(2, decode).text
    'An apple'
    """

    text: str = ""
    pending: str = ""  # what `waiting` looks like so far; later tokens may change it
    anchor: tuple[int, ...] = ()
    waiting: tuple[int, ...] = ()

    def add(self, token: int, decode: Decode) -> "Transcript":
        """Take in one more token."""
        waiting = (*self.waiting, token)
        known = len(decode(self.anchor)) if self.anchor else 0
        added = decode(self.anchor + waiting)[known:]
        if not added or added.endswith(INCOMPLETE):
            return Transcript(self.text, added, self.anchor, waiting)
        return Transcript(self.text + added, "", waiting, ())

    def close(self) -> "Transcript":
        """Take over what is pending: no token follows that could complete it."""
        if not self.pending:
            return self
        return Transcript(self.text + self.pending, "", self.anchor + self.waiting, ())

    def cut(self, length: int) -> "Transcript":
        """Keep only this many characters, because a stop string follows."""
        return Transcript(self.text[:length], "", self.anchor, self.waiting)


def begin(prompt: Sequence[int]) -> Transcript:
    """Start an empty text behind a prompt, of which only the last tokens matter."""
    return Transcript(anchor=tuple(prompt[-CONTEXT_TOKENS:]))


def stop_position(text: str, since: int, stop: Sequence[str]) -> int | None:
    r"""Find where the first stop string starts, if one ends behind the first `since` characters.

    >>> stop_position("one.\n\ntwo", 5, ["\n\n"])
    4
    """
    starts = [text.find(mark, max(0, since - len(mark) + 1)) for mark in stop]
    return min((start for start in starts if start >= 0), default=None)


def stop_at(text: str, position: int, stop: Sequence[str]) -> str:
    """Give the first of the stop strings that stands at a position where one does.

    >>> stop_at("one</a>", 3, ["</b>", "</a>"])
    '</a>'
    """
    return next(mark for mark in stop if text.startswith(mark, position))


def settled_length(text: str, stop: Sequence[str]) -> int:
    r"""Count the characters in front of what may turn out to be the start of a stop string.

    >>> settled_length("The end.\n", ["\n\n", "END"])
    8
    """
    held = 0
    for mark in stop:
        for size in range(min(len(mark) - 1, len(text)), held, -1):
            if text.endswith(mark[:size]):
                held = size
                break
    return len(text) - held


# Finds where a sentence ends, in a text that may not be whole yet.


_CLOSING = "\"')\\]}\u00bb\u2019\u201d"
_CLOSING_WIDE = "\u300d\u300f\uff09\u3011\u300b\u3009\u201d\u2019"
_MARKS_WIDE = "\u3002\uff01\uff1f"
_ENDING = ".!?" + _CLOSING.replace("\\", "") + _MARKS_WIDE + _CLOSING_WIDE
# A mark of a script without spaces needs none behind it, but something: more marks may follow.
_END = re.compile(
    rf"[.!?]+[{_CLOSING}]*(?=\s)|[{_MARKS_WIDE}]+[{_CLOSING_WIDE}]*(?=[^{_MARKS_WIDE}{_CLOSING_WIDE}])"
)


def sentence_end(text: str, start: int) -> int | None:
    """Find the first end of a sentence whose mark stands at `start` or behind it.

    The end is the position behind the mark and what closes with it. It counts
    only once the next character is there and shows that nothing more belongs to
    it: a longer text never moves an end that was found in a shorter one. So a
    text that grows token by token, and one that comes whole, are cut in the
    same places.

    >>> text = 'It weighs 3.5 kg. "Does it?" Yes.'
    >>> first = sentence_end(text, 0)
    >>> text[:first], text[first : sentence_end(text, first)]
    ('It weighs 3.5 kg.', ' "Does it?"')
    >>> sentence_end("No more is known.", 0) is None
    True
    """
    found = _END.search(text, start)
    return None if found is None else found.end()


def no_end_before(text: str) -> int:
    """Say behind where to look on, when more comes, if no end has been found so far.

    An end that only what comes will show consists of marks, and what closes, up to
    the end of this text.

    >>> no_end_before('It weighs 3.5 kg. "Does it?"')
    26
    """
    return len(text.rstrip(_ENDING))
