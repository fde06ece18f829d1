"""The state of a language model that is driven by tokens."""

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from ralmspec_plugins.lm.transcript import Transcript
from ralmspec_plugins.records import Passage

Ending: TypeAlias = Literal["eos", "stop", "length"]


@dataclass(frozen=True, slots=True)
class Origin:
    """What a request fixed: the tokens around the passages, and how to end and to draw.

    `owner` tells the caches of two requests apart. It is no part of the value:
    the same request, begun twice, gives equal drafts.
    """

    owner: int = field(compare=False, repr=False)
    head_tokens: tuple[int, ...]  # in front of the passages
    prompt_tokens: tuple[int, ...]  # behind them
    max_tokens: int
    seed: int
    stop: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Draft:
    """Everything written so far, and what the compute schedule needs to go on.

    The key-value cache of a draft is a function of `passages`, `prefilled_at`
    and `tokens`: the passages by themselves in one pass, the prompt with the
    first `prefilled_at` tokens in another, then one pass for each token but the
    last, whose pass belongs to the next segment (DESIGN 6).
    """

    origin: Origin
    transcript: Transcript = field(repr=False)
    tokens: tuple[int, ...] = ()
    passages: tuple[Passage, ...] | None = None  # without metadata; None before the first segment
    prefilled_at: int = 0
    ending: Ending | None = None

    @property
    def prompt_tokens(self) -> tuple[int, ...]:
        """The tokens behind the passages and in front of the text."""
        return self.origin.prompt_tokens

    @property
    def finished(self) -> bool:
        """Whether nothing can be written any more."""
        return self.ending is not None
