"""A model, a store and a speculator that take a given time and know a given share.

They wait instead of computing, so a measured time is that of the loop, not of a model. All that
they write and find follows from a stable die over what they were given: a wrong guess changes what
is asked later, as it does with a real model.
"""

import hashlib
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.types import Hit, Hits, Passage, Query, Request, TokenLogprob

_SLICE_S = 0.005  # after which a model that writes notices that it is cancelled


def die(*seen: object) -> float:
    """Return a number from 0 to 1 that only depends on its arguments."""
    data = "\0".join(map(str, seen)).encode()
    return int.from_bytes(hashlib.blake2b(data, digest_size=7).digest()) / 256**7


def word(*seen: object) -> str:
    """Return a word that only depends on its arguments.

    >>> word("a") == word("a") != word("b")
    True
    """
    return f"x{int(die(*seen) * 16**6):06x}"


@dataclass(frozen=True, slots=True)
class Piece:
    """What is written in one go: tokens, and how it ends."""

    tokens: tuple[TokenLogprob, ...]
    stopped_by: str = ""
    finished: bool = False


class Script(Protocol):
    """What a model writes, and what a store finds for it."""

    def piece(self, prompt: str, before: str, front: str) -> Piece:
        """Return what is written behind a text, with these passages in front."""
        ...

    def found(self, query: str) -> str:
        """Return the text of the passage that is right for a query."""
        ...


@dataclass(frozen=True, slots=True)
class WaitingDraft:
    """What was written behind a given text."""

    request: Request
    given: str = ""
    tokens: tuple[TokenLogprob, ...] = ()
    stopped_by: str = ""
    finished: bool = False

    @property
    def text(self) -> str:
        """The text, without what was given."""
        return "".join(one.text for one in self.tokens)


class WaitingModel:
    """Writes a script, each piece in the same time."""

    def __init__(self, script: Script, write_s: float) -> None:
        """Write pieces of this script, each in `write_s` seconds."""
        self.script = script
        self.write_s = write_s

    def begin(self, request: Request) -> WaitingDraft:
        """Return a draft without text."""
        return WaitingDraft(request)

    def resume(self, draft: WaitingDraft, request: Request, text: str) -> WaitingDraft:
        """Return a draft behind a text."""
        return WaitingDraft(request, text)

    def scored(self, thresholds: Sequence[float]) -> "WaitingModel":
        """Return the model itself, whose tokens have log-probabilities."""
        return self

    def logprobs(self, draft: WaitingDraft) -> tuple[TokenLogprob, ...]:
        """Return the tokens."""
        return draft.tokens

    def write(
        self, draft: WaitingDraft, passages: Sequence[Passage], tokens: int, progress: Progress
    ) -> WaitingDraft:
        """Wait, and append the next piece."""
        progress.check()
        if draft.finished:
            return draft
        until = time.perf_counter() + self.write_s
        while (left := until - time.perf_counter()) > 0:
            time.sleep(min(left, _SLICE_S))
            progress.check()
        front = " ".join(one.text for one in passages)
        piece = self.script.piece(draft.request.prompt, draft.given + draft.text, front)
        return replace(
            draft,
            tokens=draft.tokens + piece.tokens,
            stopped_by=piece.stopped_by,
            finished=piece.finished,
        )

    write_sentence = write
    write_one_sentence = write

    def finished(self, draft: WaitingDraft) -> bool:
        """Return whether the script is over."""
        return draft.finished

    def stop_of(self, draft: WaitingDraft) -> str:
        """Return the stop string that ended the last piece."""
        return draft.stopped_by

    def tail(self, draft: WaitingDraft, tokens: int) -> str:
        """Return the end of the text."""
        return draft.text[-tokens:]

    def text(self, draft: WaitingDraft) -> str:
        """Return the text."""
        return draft.text

    def settled(self, draft: WaitingDraft) -> str:
        """Return the text: no piece is written again."""
        return draft.text

    def text_key(self, draft: WaitingDraft) -> Hashable:
        """Return the draft."""
        return draft

    def write_key(self, draft: WaitingDraft, passages: Sequence[Passage], tokens: int) -> Hashable:
        """Return the draft and the passages."""
        return draft, tuple(passages)

    def release(self, draft: WaitingDraft) -> None:
        """Nothing is kept."""


class WaitingStore:
    """Finds what the script says, each search in the same time."""

    inline_encode = True

    def __init__(self, script: Script, search_s: float) -> None:
        """Find what is right in this script, in `search_s` seconds."""
        self.script = script
        self.search_s = search_s
        self.k = 1
        self.signature: Hashable = ("waiting", id(self))

    def encode(self, text: str) -> Query:
        """Return the query of a text."""
        return Query(text)

    def search(self, queries: Sequence[Query]) -> list[Hits]:
        """Wait, and return the right passage of each query."""
        time.sleep(self.search_s)
        return [hits_of(self.script.found(query.text)) for query in queries]


def hits_of(text: str) -> Hits:
    """Return a passage with this text as hits."""
    return (Hit(Passage(text, text), 1.0),)


class Oracle:
    """Guesses the right passage in a given share of the queries, and another one in the rest."""

    def __init__(self, script: Script, right: float, *, inline: bool = True) -> None:
        """Guess rightly for this share of the queries of a script."""
        self.script = script
        self.right = right
        self.inline = inline

    def is_right(self, query: str) -> bool:
        """Return whether the guess for a query is right."""
        return die("right", query) < self.right

    def guess(self, query: Query) -> Hits:
        """Return a guess at once."""
        if self.is_right(query.text):
            return hits_of(self.script.found(query.text))
        return hits_of(word("wrong", query.text))

    def learn(self, query: Query, hits: Hits) -> None:
        """Learn nothing."""
