"""The protocol of drafters: what they receive, and what they return."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Protocol

from ralmspec_plugins.decoding.token_tree import TokenTree
from ralmspec_plugins.types import Passage


@dataclass(frozen=True, slots=True)
class DraftTarget:
    """The model whose text is drafted, as drafters see it."""

    encode: Callable[[Passage], tuple[int, ...]]  # returns the tokens of a passage
    vocabulary: int  # drafts are tokens below this
    tokenizer: Any
    model: Any = None  # the model itself, for a drafter that shares its weights


@dataclass(frozen=True, slots=True)
class DraftContext:
    """A text so far, as its model sees it."""

    request: Hashable  # equal for all texts of one request
    passages: tuple[tuple[int, ...], ...]  # the tokens of each passage in the prompt
    front: tuple[int, ...]  # all tokens before the text: passages and prompt
    text: tuple[int, ...]  # the generated tokens; drafts follow the last one
    seed: int = 0  # of the request: the random number of a position is drawn from both
    sampling: Any = None  # how the model's tokens are chosen: `Greedy` or `Sampling`
    pass_s: float | None = None  # seconds of the model's pass over one token, if known
    left: int = 0  # tokens that the segment may still have behind the text


@dataclass(frozen=True, slots=True)
class Accepted:
    """The outcome of a verified draft."""

    context: DraftContext
    tree: TokenTree  # as it was verified
    nodes: tuple[int, ...]  # the accepted nodes, in order


class Drafter(Protocol):
    """Drafts the tokens that may follow a text. A draft never changes the text, only its time.

    `propose` depends only on the context and on what `update` has recorded: a text
    that was rolled back has no effect. Both are called from any thread, for any
    number of interleaved requests. A drafter that raises drafts nothing.

    Optional methods, called where they are defined:

    - `bind(target)`, with a `DraftTarget`, once, before all other methods. It raises if the
      settings do not fit, for example if the drafter has another vocabulary.
    - `release(request)` when a request ends.
    - `effort(context)`, before the first `propose` of a segment, returns an `Effort`, or `None`
      if the drafter has begun with this text already. Where drafts are not expected to gain more
      than that, the drafter is left out of the segment; otherwise `begin(context)` follows, whose
      time does not count as drafting.
    - `observe(context, tokens, parents, logits)` after each pass of the model over tokens of a
      text and the drafts after them. `parents` has for each token the index of the one that it
      follows, -1 for the first; `logits` is a tensor [tokens, vocabulary] in float32, valid
      only during the call. `context.text` ends with the first token.
    """

    def propose(self, context: DraftContext, budget: int) -> TokenTree:
        """Return at most `budget` drafted tokens."""
        ...

    def update(self, accepted: Accepted) -> None:
        """Record the outcome of a draft."""
        ...
