"""Finds where a sentence ends, in a text that may not be whole yet."""

import re

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
