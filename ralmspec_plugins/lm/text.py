"""Incremental detokenisation, stop strings and ends of sentences."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Decode = Callable[[Sequence[int]], str]

INCOMPLETE = "\ufffd"  # decoded from bytes of an incomplete character
CONTEXT_TOKENS = 5  # of the prompt, so that a first word keeps its leading space


@dataclass(frozen=True, slots=True)
class Transcript:
    """The text of tokens, of which `text` is never changed by further tokens.

    The text of a longer sequence may differ from that of a shorter one: a character's
    missing bytes follow, or a tokenizer drops the space before a first word.
    So tokens are decoded after the last tokens whose text is known (`anchor`),
    and their text is added when it ends with a complete character. The text
    is defined by this rule, and is only ever extended.

    >>> words = {1: "An", 2: " apple"}
    >>> decode = lambda ids: "".join(words[i] for i in ids).lstrip()
    >>> begin(()).add(1, decode).add(2, decode).text
    'An apple'
    """

    text: str = ""
    pending: str = ""  # the text of `waiting`, which later tokens may change
    anchor: tuple[int, ...] = ()
    waiting: tuple[int, ...] = ()

    def add(self, token: int, decode: Decode) -> "Transcript":
        """Return the transcript with one more token."""
        waiting = (*self.waiting, token)
        known = len(decode(self.anchor)) if self.anchor else 0
        added = decode(self.anchor + waiting)[known:]
        if not added or added.endswith(INCOMPLETE):
            return Transcript(self.text, added, self.anchor, waiting)
        return Transcript(self.text + added, "", waiting, ())

    def close(self) -> "Transcript":
        """Return the transcript with the pending text, after the last token."""
        if not self.pending:
            return self
        return Transcript(self.text + self.pending, "", self.anchor + self.waiting, ())

    def cut(self, length: int) -> "Transcript":
        """Return the transcript cut to this many characters, before a stop string."""
        return Transcript(self.text[:length], "", self.anchor, self.waiting)


def begin(prompt: Sequence[int]) -> Transcript:
    """Return an empty transcript after a prompt, of which only the last tokens are relevant."""
    return Transcript(anchor=tuple(prompt[-CONTEXT_TOKENS:]))


def stop_position(text: str, since: int, stop: Sequence[str], first: int = 0) -> int | None:
    r"""Return the start of the first stop string that ends after the first `since` characters.

    None of its characters precedes the position `first`.

    >>> stop_position("one.\n\ntwo", 5, ["\n\n"])
    4
    """
    starts = [text.find(mark, max(first, since - len(mark) + 1)) for mark in stop]
    return min((start for start in starts if start >= 0), default=None)


def stop_at(text: str, position: int, stop: Sequence[str]) -> str:
    """Return the first of the stop strings that stands at a position where one does.

    >>> stop_at("one</a>", 3, ["</b>", "</a>"])
    '</a>'
    """
    return next(mark for mark in stop if text.startswith(mark, position))


def settled_length(text: str, stop: Sequence[str]) -> int:
    r"""Return the number of characters before a possible start of a stop string.

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


# Ends of sentences, in a text that may be incomplete.


_CLOSING = "\"')\\]}\u00bb\u2019\u201d"
_CLOSING_WIDE = "\u300d\u300f\uff09\u3011\u300b\u3009\u201d\u2019"
_MARKS_WIDE = "\u3002\uff01\uff1f"
_ENDING = ".!?" + _CLOSING.replace("\\", "") + _MARKS_WIDE + _CLOSING_WIDE
# A mark of a script without spaces needs no space after it, but another character.
_END = re.compile(
    rf"[.!?]+[{_CLOSING}]*(?=\s)|[{_MARKS_WIDE}]+[{_CLOSING_WIDE}]*(?=[^{_MARKS_WIDE}{_CLOSING_WIDE}])"
)


def sentence_end(text: str, start: int) -> int | None:
    """Return the first end of a sentence with a mark at or after `start`.

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
    """Return the position from which to search a longer text, if no end was found in this one.

    An end that only later text confirms consists of marks and closing characters up to
    the end of this text.

    >>> no_end_before('It weighs 3.5 kg. "Does it?"')
    26
    """
    return len(text.rstrip(_ENDING))
