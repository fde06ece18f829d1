"""The state of KNN-LM: a draft, and the model's output after its last token."""

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
    """Caches the tokens chosen after one state, by the identity of their hits.

    `extend` and `agree` need the same choice two or three times per step, and
    it costs more than all other work outside the model. Hits are compared by
    identity: comparing a thousand neighbours would cost as much as choosing.
    """

    __slots__ = ("_chosen",)

    def __init__(self) -> None:
        """Create an empty cache."""
        self._chosen: dict[
            int, tuple[Hits, int]
        ] = {}  # keeps the hits alive, so that their id is not reused

    def of(self, hits: Hits, choose: Callable[[], int]) -> int:
        """Return the token for these hits, choosing it on first use (in threads perhaps twice)."""
        known = self._chosen.get(id(hits))
        if known is None:
            known = self._chosen[id(hits)] = (hits, choose())
        return known[1]


@dataclass(frozen=True, slots=True)
class KNNDraft:
    """A prompt and the tokens after it, with the last position's hidden state.

    `hidden` and `log_probs` are a function of the tokens: the prompt is read in one
    pass and each token in a separate one, whatever was generated and dropped before. So
    drafts with equal tokens are equal to the bit, and a rollback
    needs no pass: the earlier draft still has them. A text that has ended
    has neither.
    """

    draft: Draft
    hidden: Hidden | None = field(default=None, compare=False, repr=False)
    log_probs: LogProbs | None = field(default=None, compare=False, repr=False)
    choices: Choices = field(default_factory=Choices, compare=False, repr=False)

    @property
    def finished(self) -> bool:
        """Whether the text has ended."""
        return self.draft.finished

    @property
    def tokens(self) -> tuple[int, ...]:
        """The generated tokens."""
        return self.draft.tokens

    @property
    def text(self) -> str:
        """The generated text, without the prompt, cut before a stop string."""
        return self.draft.text

    @property
    def settled(self) -> str:
        """The part of `text` that no later token can change."""
        return self.draft.settled


@dataclass(frozen=True, slots=True)
class Reading:
    """A model's output at some positions of an existing text."""

    hidden: NDArray[np.float32]  # [positions, dimension]
    log_probs: Floats  # of the actual next tokens  # [positions]


class TokenModel(Protocol):
    """A model that processes one token at a time, and returns its hidden state."""

    def begin(self, request: Request) -> KNNDraft:
        """Read the prompt.

        Raises:
            InputError: the prompt is empty.
            ContextOverflowError: prompt and text together would exceed the context.
        """
        ...

    def feed(self, state: KNNDraft, token: int, progress: Progress) -> KNNDraft:
        """Append a token, and run its pass unless it ends the text.

        Raises:
            Cancelled: `progress` was cancelled.
        """
        ...

    def release(self, state: KNNDraft) -> None:
        """Free the caches kept for this state's request; all can be rebuilt."""
        ...
