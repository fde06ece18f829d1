"""The seam of all drafters: what they are shown, and what they answer."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Protocol

from ralmspec_plugins.decoding.token_tree import TokenTree
from ralmspec_plugins.types import Passage


@dataclass(frozen=True, slots=True)
class DraftTarget:
    """The model whose text is drafted, as far as drafters may know it."""

    encode: Callable[[Passage], tuple[int, ...]]  # the tokens that stand for a passage
    vocabulary: int  # drafts are tokens below this
    tokenizer: Any


@dataclass(frozen=True, slots=True)
class DraftContext:
    """A text so far, as its model sees it."""

    request: Hashable  # all texts of one request have the same
    passages: tuple[tuple[int, ...], ...]  # the tokens of each passage that stands in front
    front: tuple[int, ...]  # all tokens in front of the text: passages and prompt
    text: tuple[int, ...]  # what was written; its last token is what drafts follow
    seed: int = 0  # of the request: the random number of a position is drawn from both
    sampling: Any = None  # how the model's tokens are chosen: `Greedy` or `Sampling`
    pass_s: float | None = None  # what the model's pass over one token takes, where it is known


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

    Optional methods, called where they are defined:

    - `bind(target)`, a `DraftTarget`: once, before all others. One that raises is an error of the
      settings: a drafter for another vocabulary, for one.
    - `release(request)` when a request is over.
    - `observe(context, tokens, parents, logits)` after each pass of the model over tokens of a
      text and drafts behind them. `parents` has for each token the place of the one that it
      stands behind, -1 for the first; `logits` is a tensor [tokens, vocabulary] in float32. It
      belongs to the drafter only while it is called. `context.text` ends with the first token.
    """

    def propose(self, context: DraftContext, budget: int) -> TokenTree:
        """Draft at most `budget` tokens."""
        ...

    def update(self, accepted: Accepted) -> None:
        """Take in what became of a draft."""
        ...
