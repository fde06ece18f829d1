"""The seam of all drafters: what they are shown, and what they answer."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Protocol

from ralmspec_plugins.decoding.token_tree import TokenTree


@dataclass(frozen=True, slots=True)
class DraftContext:
    """A text so far, as its model sees it."""

    request: Hashable  # all texts of one request have the same
    passages: tuple[tuple[int, ...], ...]  # the tokens of each passage that stands in front
    front: tuple[int, ...]  # all tokens in front of the text: passages and prompt
    text: tuple[int, ...]  # what was written; its last token is what drafts follow


@dataclass(frozen=True, slots=True)
class Accepted:
    """What a pass made of a draft."""

    context: DraftContext
    tree: TokenTree  # as it was verified
    nodes: tuple[int, ...]  # the places in it of the tokens that were accepted, in order


class Drafter(Protocol):
    """Drafts what may follow a text. A draft changes the time that a text takes, never the text.

    `propose` depends on nothing but the context and what `update` has taught: a
    text that was rolled back leaves no trace. Both are called from any thread, for
    any number of requests in turn. A drafter that raises has drafted nothing.

    Optional, where they are there: `release(request)` is called when a request is
    over; `bind(encode)` once, before all else, with a function from a passage to the
    tokens that stand for it.
    """

    def propose(self, context: DraftContext, budget: int) -> TokenTree:
        """Draft at most `budget` tokens."""
        ...

    def update(self, accepted: Accepted) -> None:
        """Take in what became of a draft."""
        ...
