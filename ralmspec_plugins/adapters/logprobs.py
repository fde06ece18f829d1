"""Token log-probabilities as OpenAI-compatible servers give them, laid along the text."""

import codecs
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from typing import Any, Final, NamedTuple

from ralmspec_plugins.lm.text import INCOMPLETE
from ralmspec_plugins.types import TokenLogprob

_LONGEST: Final = 16  # characters that a run of incomplete tokens is taken to stand for


class ScoredToken(NamedTuple):
    """A token as the server shows it; `None` where it is a part of a character."""

    token: str | None
    logprob: float


def entries_of(said: Any) -> list[ScoredToken]:
    """Return the log-probabilities in a server response, of a chat or a completion.

    >>> entries_of({"tokens": ["a", " b"], "token_logprobs": [-0.5, -1.0]})
    [ScoredToken(token='a', logprob=-0.5), ScoredToken(token=' b', logprob=-1.0)]
    >>> entries_of({"content": [{"token": "a", "bytes": [97], "logprob": -0.5}]})
    [ScoredToken(token='a', logprob=-0.5)]
    """
    content = _get(said, "content")
    if content:
        spelled = [_get(one, "bytes") for one in content]
        known = all(isinstance(one, Sequence) for one in spelled)
        tokens = _decoded(spelled) if known else [_whole(_get(one, "token")) for one in content]
        numbers: list[Any] = [_get(one, "logprob") for one in content]
    else:
        tokens = [_whole(token) for token in _get(said, "tokens") or ()]
        numbers = list(_get(said, "token_logprobs") or ())
    if len(tokens) != len(numbers) or not all(isinstance(one, float | int) for one in numbers):
        return []
    return [ScoredToken(token, float(one)) for token, one in zip(tokens, numbers, strict=True)]


def aligned(entries: Iterable[ScoredToken], text: str) -> tuple[TokenLogprob, ...] | None:
    """Lay tokens along a text: what each adds to it; `None` where they do not spell it.

    What the host has cut off, white space in front or a stop string behind, is left out.

    >>> tokens = [ScoredToken(" It", -0.1), ScoredToken(None, -0.2), ScoredToken(None, -0.3)]
    >>> aligned([*tokens, ScoredToken(" is", -1.0)], "Ité i")
    (TokenLogprob(text='It', logprob=-0.1), TokenLogprob(text='', logprob=-0.2), \
TokenLogprob(text='é', logprob=-0.3), TokenLogprob(text=' i', logprob=-1.0))
    >>> aligned([ScoredToken("It", -0.1)], "It is") is None
    True
    """
    entries, found = list(entries), list[TokenLogprob]()
    at, waiting = 0, False  # for the rest of a character
    for number, (token, logprob) in enumerate(entries):
        if at == len(text):
            break
        if token is None:
            found.append(TokenLogprob("", logprob))
            waiting = True
            continue
        if waiting:
            start = _next_place(entries[number:], text, at)
            found[-1] = TokenLogprob(text[at:start], found[-1].logprob)
            at, waiting = start, False
        shown = token.lstrip() if at == 0 and not text[0].isspace() else token
        piece = shown if text.startswith(shown, at) else text[at:]
        if not shown.startswith(piece):
            return None
        found.append(TokenLogprob(piece, logprob))
        at += len(piece)
    if waiting and len(text) - at <= _LONGEST:
        found[-1] = TokenLogprob(text[at:], found[-1].logprob)
        at = len(text)
    return tuple(found) if at == len(text) else None


def _next_place(entries: Sequence[ScoredToken], text: str, at: int) -> int:
    """Return the position after incomplete tokens; `at` if there are none."""
    run = "".join(entry.token or "" for entry in takewhile(_is_whole, entries))
    start = text.find(run, at, at + _LONGEST + len(run))
    if start >= 0:
        return start
    cut = range(at, min(at + _LONGEST, len(text)))  # where the text ends within the run
    return next((place for place in cut if run.startswith(text[place:])), at)


def _is_whole(entry: ScoredToken) -> bool:
    return entry.token is not None


def first_tokens(
    found: tuple[TokenLogprob, ...] | None, length: int
) -> tuple[TokenLogprob, ...] | None:
    """Return the tokens of a text that was cut to a length; of the last one what is left of it.

    >>> first_tokens((TokenLogprob("one", -1.0), TokenLogprob(" two", -2.0)), 5)
    (TokenLogprob(text='one', logprob=-1.0), TokenLogprob(text=' t', logprob=-2.0))
    """
    if found is None or sum(len(one.text) for one in found) <= length:
        return found
    kept, at = [], 0
    for one in found:
        if at == length:
            break
        kept.append(TokenLogprob(one.text[: length - at], one.logprob))
        at += len(kept[-1].text)
    return tuple(kept)


def _decoded(spelled: Sequence[Sequence[int]]) -> list[str | None]:
    """Decode the bytes of tokens; a character belongs to the token that completes it."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    tokens: list[str | None] = []
    for part in spelled:
        text = decoder.decode(bytes(part))
        tokens.append(text if text or not part else None)
    return tokens


def _whole(token: Any) -> str | None:
    incomplete = not isinstance(token, str) or INCOMPLETE in token or token.startswith("bytes:")
    return None if incomplete else token


def _get(place: Any, name: str) -> Any:
    """Look a name up in a mapping or in an object: hosts give either."""
    return place.get(name) if isinstance(place, Mapping) else getattr(place, name, None)
