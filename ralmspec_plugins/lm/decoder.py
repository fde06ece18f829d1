"""Decoders, which run a segment's passes and return the logits of each token."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ralmspec_plugins.lm.kv_cache import ModelRunner, Run
from ralmspec_plugins.lm.sampling import Greedy, Sampling
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.types import Passage


@dataclass(frozen=True, slots=True)
class SegmentText:
    """The context of a segment besides its text: the same for all its tokens."""

    request: int  # the same for all segments of a request
    seed: int
    passages: tuple[tuple[int, ...], ...]  # the tokens of each passage
    front: tuple[int, ...]  # all tokens before the text


@dataclass(frozen=True, slots=True)
class HostedModel:
    """The properties of a model that a decoder needs."""

    runner: ModelRunner
    sampling: Greedy | Sampling
    vocabulary: int
    context: int | None  # the model's maximum number of tokens, if there is a limit
    encode: Callable[[Passage], tuple[int, ...]]  # tokenises a passage
    tokenizer: PreTrainedTokenizerBase


class SegmentDecoder(Protocol):
    """Runs the passes of one segment. Between calls its run may be kept or dropped."""

    @property
    def drafts_accepted(self) -> int:
        """The number of accepted drafts."""
        ...

    @property
    def decisions_retaken(self) -> int:
        """The number of choices repeated by the compute schedule."""
        ...

    def logits(self, tokens: Sequence[int], goal: int, progress: Progress) -> Tensor:
        """Return the logits after these tokens, [1, vocabulary], in float32.

        Args:
            tokens: the text; at each call one token longer.
            goal: the maximum number of its tokens at the end of the segment.
            progress: is checked between passes.

        Raises:
            Cancelled: `progress` was cancelled.
        """
        ...

    def is_certain(self, tokens: Sequence[int], logits: Tensor, wider: float = 1.0) -> bool:
        """Return whether the compute schedule's logits certainly lead to the same choice.

        Args:
            tokens: the text.
            logits: after it.
            wider: how much wider than known the bounds on the logits' errors are.
        """
        ...

    def logprob_error(self) -> float:
        """Return the most by which a log-probability may differ from the schedule's here."""
        ...

    def retake(self, tokens: Sequence[int], progress: Progress) -> Tensor:
        """Return the logits after these tokens by the compute schedule."""
        ...

    def close(self) -> None:
        """Remove all tokens from the cache that are not part of the text."""
        ...


class Decoder(Protocol):
    """Runs the passes of a model's segments, for all its requests."""

    @property
    def runner(self) -> ModelRunner:
        """What runs the passes, and keeps the caches."""
        ...

    def segment(self, run: Run, text: SegmentText) -> SegmentDecoder:
        """Begin a segment on a run."""
        ...

    def release(self, request: int) -> None:
        """Free the memory of a request."""
        ...

    def for_sampling(self, sampling: Greedy | Sampling) -> "Decoder":
        """Return the decoder of texts whose tokens are chosen in another way."""
        ...


class DecodingSettings(Protocol):
    """The settings for `HuggingFaceLM(decoding=...)`, which create a model's decoder."""

    def decoder(self, model: HostedModel) -> Decoder:
        """Return the decoder of a model, after measuring the model."""
        ...


class PlainDecoder:
    """One token per pass: the compute schedule itself."""

    def __init__(self, runner: ModelRunner) -> None:
        """Create a decoder of this runner."""
        self.runner = runner

    def segment(self, run: Run, text: SegmentText) -> SegmentDecoder:
        """Begin a segment on a run."""
        return PlainSegment(self.runner, run)

    def release(self, request: int) -> None:
        """Do nothing: no memory is used."""

    def for_sampling(self, sampling: Greedy | Sampling) -> Decoder:
        """Return itself: the schedule does not depend on it."""
        return self


class PlainSegment:
    """Feeds token by token."""

    drafts_accepted = 0
    decisions_retaken = 0

    def __init__(self, runner: ModelRunner, run: Run) -> None:
        """Continue a run."""
        self._runner = runner
        self._run = run

    def logits(self, tokens: Sequence[int], goal: int, progress: Progress) -> Tensor:
        """Read the tokens that were not read yet, each in a separate pass."""
        for token in tokens[len(self._run.tokens) :]:
            progress.check()
            self._runner.feed(self._run, token)
        return self._run.logits

    def is_certain(self, tokens: Sequence[int], logits: Tensor, wider: float = 1.0) -> bool:
        """Return true: these are the schedule's logits."""
        return True

    def logprob_error(self) -> float:
        """Return 0: there is no difference."""
        return 0.0

    def retake(self, tokens: Sequence[int], progress: Progress) -> Tensor:
        """Return the same logits again."""
        return self._run.logits

    def close(self) -> None:
        """Do nothing: all tokens in the cache are text."""
