"""The draft of a host's model: its text, and the rules by which it is extended and ends."""

import re
from dataclasses import dataclass, field, replace
from typing import Any

from ralmspec_plugins.adapters.logprobs import first_tokens
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.lm.text import (
    INCOMPLETE,
    no_end_before,
    sentence_end,
    settled_length,
    stop_at,
    stop_position,
)
from ralmspec_plugins.types import Request, TokenLogprob

# A word, or a character of a script without spaces, is counted as a token.
_WIDE = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_UNIT = re.compile(rf"[{_WIDE}]|[^\s{_WIDE}]+")
_WINDOW = 16  # initial number of characters for each word


@dataclass(frozen=True, slots=True)
class Usage:
    """The tokens counted by a host; 0 if it does not report them."""

    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        """Return the sum of two counts."""
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.total_tokens + other.total_tokens,
        )


@dataclass(slots=True, eq=False)
class MadeCall:
    """A call of the host's model for a request, whether it is part of the answer or not."""

    usage: Usage = Usage()  # empty if it failed, was cancelled or reports none
    committed: bool = False


@dataclass(frozen=True, slots=True)
class Written:
    """The result of one call of the host.

    `ended` is whether the model ended by itself and not at a limit; `None`
    if the host does not report it. `logprobs` of the tokens are present if requested.
    """

    text: str
    ended: bool | None = None
    usage: Usage = Usage()
    message: Any = None
    recording: Any = None
    logprobs: tuple[TokenLogprob, ...] | None = None


@dataclass(frozen=True, slots=True)
class TextDraft:
    """The text generated so far by a host's model.

    `spent` is the used part of the request's `max_tokens`, counted by the limits of
    the calls, not by their results, which would depend on the host's
    counting. A sentence that ends early counts its words.

    `given` characters of the text existed before the draft; they are no result of a call.
    `stopped_by` is the stop string that ended the text, "" if none did; `None` if that is
    unknown, since a host removes the stop strings that it is given.

    `usage`, `message`, `recording` and `call` (of the last call) are not part of the value,
    nor is `made`: the calls of all drafts of one request; nor `logprobs`: of all tokens of
    the text, `None` if a call returned none.
    """

    origin: Request
    text: str = ""
    finished: bool = False
    spent: int = 0
    given: int = 0
    stopped_by: str | None = ""
    calls: int = 0
    usage: Usage = field(default=Usage(), compare=False)
    message: Any = field(default=None, compare=False, repr=False)
    recording: Any = field(default=None, compare=False, repr=False)
    call: MadeCall | None = field(default=None, compare=False, repr=False)
    made: list[MadeCall] = field(default_factory=list, compare=False, repr=False)
    logprobs: tuple[TokenLogprob, ...] | None = field(default=(), compare=False, repr=False)

    def allowed(self, tokens: int) -> int:
        """Return how many of these tokens are left in the request's limit."""
        if tokens < 1:
            raise ConfigError(f"tokens must be at least 1, got {tokens}")
        return min(tokens, self.origin.max_tokens - self.spent)

    @property
    def settled(self) -> str:
        """The part of `text` that no later call can change."""
        if self.finished:
            return self.text
        end = settled_length(self.text, self.origin.stop)
        while end and _half(self.text[end - 1]):
            end -= 1
        return self.text[:end]


def resumed(draft: TextDraft, request: Request, text: str) -> TextDraft:
    """Return a draft that starts after an existing text, and counts the calls of `draft` too."""
    logprobs: tuple[TokenLogprob, ...] | None = None if text else ()
    return replace(
        draft,
        origin=request,
        text=text,
        finished=False,
        spent=0,
        given=len(text),
        stopped_by="",
        logprobs=logprobs,
    )


def draft_of(state: Any) -> Any:
    """Return the draft in a workload's state, or the state itself if it is one.

    For a model that is not a host's it may be any draft.
    """
    return getattr(state, "draft", state)


def grown(draft: TextDraft, written: Written, bound: int) -> TextDraft:
    """Return the draft extended by the result of a limited call, and mark its end.

    It ends when the model ends, with an empty result, at a stop string, and when
    the limit is reached.
    """
    spent = draft.spent + bound
    ended = bool(written.ended) or not written.text or spent >= draft.origin.max_tokens
    return _appended(draft, written, written.text, spent=spent, ended=ended)


def grown_by_sentence(draft: TextDraft, written: Written, bound: int) -> TextDraft:
    """Return the draft with the first sentence of a limited call; the rest is dropped."""
    sentence = first_sentence(draft.text, written.text)
    dropped = written.text[len(sentence) :]
    if not dropped or (written.ended and not dropped.strip()):
        return grown(draft, written, bound)
    spent = draft.spent + min(bound, max(1, len(_UNIT.findall(sentence))))
    ended = spent >= draft.origin.max_tokens
    return _appended(draft, written, sentence, spent=spent, ended=ended)


def grown_to_stop(draft: TextDraft, written: Written, stop: str, bound: int) -> TextDraft:
    """Return the draft with a sentence whose end the host cut off at the stop string.

    The model's end is indistinguishable from that stop; so the text ends with
    an empty result. The stop string is not restored if the limit cut the text.
    The text of a model that ignores stop strings is cut as such a host cuts it.
    """
    text, found, _ = written.text.partition(stop)
    cut_off = not text or (written.ended is False and not found)
    piece = text if cut_off else text + stop
    spent = draft.spent + min(bound, max(1, len(_UNIT.findall(piece))))
    ended = not piece or spent >= draft.origin.max_tokens
    return _appended(draft, written, piece, spent=spent, ended=ended)


def whole(draft: TextDraft, written: Written) -> TextDraft:
    """Return the draft with the whole answer of a call without a limit."""
    return _appended(draft, written, written.text, spent=draft.origin.max_tokens, ended=True)


class Streamed:
    """Converts the partial results of a call to drafts, incrementally.

    A text of n tokens is reported n times: reading all of it each time would take n * n.
    """

    def __init__(
        self, draft: TextDraft, *, sentence: bool = False, sentence_stop: str | None = None
    ) -> None:
        """Continue this draft, by one sentence or by the whole result.

        With `sentence_stop` the sentence ends before that string.
        """
        self._draft = draft
        self._sentence = sentence
        self._mark = sentence_stop
        self._end: int | None = None  # of the sentence, once it is known
        self._stop: int | None = None  # where the first stop string starts
        self._behind = self._looked = len(draft.text)  # for a sentence's end; for stop strings

    def shown(self, written: Written) -> TextDraft:
        """Return the draft with the partial result, which ends early only at a stop string."""
        draft = self._draft
        text = self._cut(draft.text + written.text)
        found = _stop_in(text, self._looked, draft)
        self._looked = len(text)
        if found is not None and (self._stop is None or found < self._stop):
            self._stop = found
        if self._stop is not None:
            # An incomplete stop string may have started before this one.
            text = text[: min(self._stop, settled_length(text, draft.origin.stop))]
        return replace(
            draft,
            text=text,
            finished=self._stop is not None,
            calls=draft.calls + 1,
            usage=draft.usage + written.usage,
            message=written.message,
            recording=written.recording,
            logprobs=None,
        )

    def _cut(self, text: str) -> str:
        if self._mark:
            return self._before_mark(text, self._mark)
        if not self._sentence:
            return text
        if self._end is None:
            self._end = sentence_end(text, self._behind)
            self._behind = max(self._behind, no_end_before(text))
        return text if self._end is None else text[: self._end]

    def _before_mark(self, text: str, mark: str) -> str:
        """Return the text before the mark, and before what may be the start of the mark."""
        if self._end is None:
            found = text.find(mark, self._behind)
            self._behind = max(self._behind, len(text) - len(mark) + 1)
            if found < 0:
                return text[: max(len(self._draft.text), settled_length(text, [mark]))]
            self._end = found
        return text[: self._end]


def first_sentence(text: str, piece: str) -> str:
    """Return a piece cut after its first sentence, given the text that it continues."""
    end = sentence_end(text + piece, len(text))
    return piece if end is None else piece[: end - len(text)]


def tail(draft: TextDraft, words: int) -> str:
    """Return the last words of question and text; the question in full while there is no text.

    Words are used as tokens, which a host's model does not provide. White space
    becomes one space, as in `" ".join((question + " " + text).split()[-words:])`.
    """
    if not draft.text:
        return draft.origin.prompt
    size = max(1, words) * _WINDOW
    while True:
        line, whole_line = _end_of(draft, size)
        starts = [unit.start() for unit in _UNIT.finditer(line)]
        if whole_line or len(starts) > words:  # the first one may be the end of a longer word
            break
        size *= 4
    return line[starts[-words:][0] :] if starts else ""


def _end_of(draft: TextDraft, size: int) -> tuple[str, bool]:
    """Return the last characters of question and text, with single spaces, and if that is all."""
    if len(draft.text) >= size:
        return " ".join(draft.text[-size:].split()), False
    return " ".join(f"{draft.origin.prompt} {draft.text}".split()), True


def _half(character: str) -> bool:
    """Return whether this is part of an incomplete character."""
    return character == INCOMPLETE or "\ud800" <= character <= "\udbff"


def _appended(
    draft: TextDraft, written: Written, piece: str, *, spent: int, ended: bool
) -> TextDraft:
    text = draft.text + piece
    stop = _stop_in(text, len(draft.text), draft)
    stopped_by: str | None = "" if written.ended is False else None
    if stop is not None:
        stopped_by = stop_at(text, stop, draft.origin.stop)
        text = text[:stop]
    logprobs = None
    new = written.logprobs if written.text else ()  # a server may give none for an empty text
    if draft.logprobs is not None and new is not None:
        logprobs = first_tokens(draft.logprobs + new, len(text))
    return replace(
        draft,
        text=text,
        finished=ended or stop is not None,
        spent=spent,
        stopped_by=stopped_by,
        calls=draft.calls + 1,
        usage=draft.usage + written.usage,
        message=written.message,
        recording=written.recording,
        logprobs=logprobs,
    )


def _stop_in(text: str, since: int, draft: TextDraft) -> int | None:
    """Return the start of the first stop string, which no character of a given text is part of."""
    return stop_position(text, since, draft.origin.stop, draft.given)
