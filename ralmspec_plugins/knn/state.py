"""The state of KNN-LM: a text so far, and what the model said behind its last token."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ralmspec_plugins.knn.interpolation import Floats, LogProbs
from ralmspec_plugins.lm.state import Draft
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.types import Hits, Request

Hidden: TypeAlias = NDArray[np.float32]  # [dimension]


class Choices:
    """The tokens that were chosen behind one state, by the hits that chose them.

    Extending and agreeing ask for the same choice two or three times a step, and
    it costs more than the rest of a step beside the model. Hits are told apart by
    identity: comparing a thousand neighbours would cost as much as choosing.
    """

    __slots__ = ("_chosen",)

    def __init__(self) -> None:
        """Start with none."""
        self._chosen: dict[int, tuple[Hits, int]] = {}  # holding the hits keeps their id theirs

    def of(self, hits: Hits, choose: Callable[[], int]) -> int:
        """Return the token that these hits chose, or choose it now (twice at worst, by threads)."""
        known = self._chosen.get(id(hits))
        if known is None:
            known = self._chosen[id(hits)] = (hits, choose())
        return known[1]


@dataclass(frozen=True, slots=True)
class KNNDraft:
    """A prompt and the tokens behind it, with the last position's hidden state.

     `hidden` and `log_probs` are a function of the tokens: the prompt is read in one
     pass and each token in one of its own, whatever was written and dropped before
    . So drafts with equal tokens are equal to the bit, and a rollback
     needs no pass: the draft to return to has them still. A text that has ended
     has neither.
    """

    draft: Draft
    hidden: Hidden | None = field(default=None, compare=False, repr=False)
    log_probs: LogProbs | None = field(default=None, compare=False, repr=False)
    choices: Choices = field(default_factory=Choices, compare=False, repr=False)

    @property
    def finished(self) -> bool:
        """Whether nothing can be written any more."""
        return self.draft.finished

    @property
    def tokens(self) -> tuple[int, ...]:
        """What was written, as tokens."""
        return self.draft.tokens

    @property
    def text(self) -> str:
        """What was written, without the prompt, cut before a stop string."""
        return self.draft.text

    @property
    def settled(self) -> str:
        """The part of `text` that no later token can change."""
        return self.draft.settled


@dataclass(frozen=True, slots=True)
class Reading:
    """What a model says at some positions of a text that is there already."""

    hidden: NDArray[np.float32]  # [positions, dimension]
    log_probs: Floats  # of the tokens that really follow  # [positions]


class TokenModel(Protocol):
    """A model that is driven a token at a time, and shows its hidden state."""

    def begin(self, request: Request) -> KNNDraft:
        """Read the prompt.

        Raises:
            InputError: there is nothing to continue.
            ContextOverflowError: prompt and text together would exceed the context.
        """
        ...

    def feed(self, state: KNNDraft, token: int, progress: Progress) -> KNNDraft:
        """Write a token, and read it in one pass unless it ends the text.

        Raises:
            Cancelled: `progress` was cancelled.
        """
        ...

    def release(self, state: KNNDraft) -> None:
        """Free the caches kept for this state's request; all can be rebuilt."""
        ...
