"""How a segment's passes are run: what gives the logits that each next token is chosen from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ralmspec_plugins.lm.kv_cache import ModelRunner, Run
from ralmspec_plugins.lm.sampling import Greedy, Sampling
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.types import Passage


@dataclass(frozen=True, slots=True)
class SegmentText:
    """What a segment is a continuation of, beside the text: the same for all its tokens."""

    request: int  # the same for all segments of a request
    seed: int
    passages: tuple[tuple[int, ...], ...]  # the tokens of each passage in front
    front: tuple[int, ...]  # all tokens in front of the text


@dataclass(frozen=True, slots=True)
class HostedModel:
    """What a decoder needs to know of the model that it is to run."""

    runner: ModelRunner
    sampling: Greedy | Sampling
    vocabulary: int
    context: int | None  # the most tokens that the model can look at, if there is a limit
    encode: Callable[[Passage], tuple[int, ...]]  # how its passages become tokens


class SegmentDecoder(Protocol):
    """Runs the passes of one segment. Between two calls its run may be kept, or dropped."""

    drafts_accepted: int  # drafts that became text
    decisions_retaken: int  # choices taken again by the schedule

    def logits(self, tokens: Sequence[int], goal: int, progress: Progress) -> Tensor:
        """Give the logits behind these tokens, [1, vocabulary], in float32.

        Args:
            tokens: the text so far; each time as before, with one token more.
            goal: how many tokens it may have at the end of the segment.
            progress: is checked between passes.

        Raises:
            Cancelled: `progress` was cancelled.
        """
        ...

    def is_certain(self, tokens: Sequence[int], logits: Tensor) -> bool:
        """Say whether the schedule's logits would have led to the same choice as these."""
        ...

    def logprob_error(self) -> float:
        """Give the most by which a log-probability may differ from the schedule's here."""
        ...

    def retake(self, tokens: Sequence[int], progress: Progress) -> Tensor:
        """Give the logits behind these tokens by the compute schedule."""
        ...

    def close(self) -> None:
        """Leave nothing in the cache but tokens of the text."""
        ...


class Decoder(Protocol):
    """Decides how the passes of a model's segments are run, for all its requests."""

    def segment(self, run: Run, text: SegmentText) -> SegmentDecoder:
        """Begin a segment on a run."""
        ...

    def release(self, request: int) -> None:
        """Forget what is kept for a request."""
        ...


class DecodingSettings(Protocol):
    """What `HuggingFaceLM(decoding=...)` takes: settings that make a decoder for a model."""

    def decoder(self, model: HostedModel) -> Decoder:
        """Make the decoder of a model; measures what it has to know of it."""
        ...


class PlainDecoder:
    """One token a pass: the compute schedule itself."""

    def __init__(self, runner: ModelRunner) -> None:
        """Run the passes of this runner."""
        self._runner = runner

    def segment(self, run: Run, text: SegmentText) -> SegmentDecoder:
        """Begin a segment on a run."""
        return PlainSegment(self._runner, run)

    def release(self, request: int) -> None:
        """Do nothing: nothing is kept."""


class PlainSegment:
    """Feeds token by token."""

    drafts_accepted = 0
    decisions_retaken = 0

    def __init__(self, runner: ModelRunner, run: Run) -> None:
        """Go on with a run."""
        self._runner = runner
        self._run = run

    def logits(self, tokens: Sequence[int], goal: int, progress: Progress) -> Tensor:
        """Read the tokens that were not read yet, each in a pass of its own."""
        for token in tokens[len(self._run.tokens) :]:
            progress.check()
            self._runner.feed(self._run, token)
        return self._run.logits

    def is_certain(self, tokens: Sequence[int], logits: Tensor) -> bool:
        """Say yes: these are the schedule's logits."""
        return True

    def logprob_error(self) -> float:
        """Give 0: there is no difference."""
        return 0.0

    def retake(self, tokens: Sequence[int], progress: Progress) -> Tensor:
        """Give the same logits again."""
        return self._run.logits

    def close(self) -> None:
        """Do nothing: all that was read is text."""
