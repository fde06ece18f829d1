"""A target whose distribution is enriched by a drafter's, as RAPID (2502.20330) defines it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor

from ralmspec_plugins.decoding.calibration import Calibration, differences
from ralmspec_plugins.decoding.drafters.protocol import DraftContext, DraftTarget
from ralmspec_plugins.decoding.rapid import RagDrafter
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.lm.decoder import Decoder, HostedModel, SegmentDecoder, SegmentText
from ralmspec_plugins.lm.kv_cache import ModelRunner, Run
from ralmspec_plugins.lm.sampling import Greedy, Sampling
from ralmspec_plugins.protocols import Progress

Guard = Literal["teacher", "target"]
_ROUNDING: Final = 1e-6  # of a probability in float32


@dataclass(frozen=True, slots=True, kw_only=True)
class KnowledgeTransfer:
    """Defines p^ = softmax(z / T + eta (q - p)), from which the text is chosen.

    z are the model's logits, p = softmax(z / T), and q is the teacher's distribution at the same
    position, behind its own prompt. T is the temperature, 1 for greedy choices. Unlikely tokens
    are left as they are: the logit of a token is z where the `guard` says so. Repetition
    penalties, top-k and top-p are applied to p^ as to p.

    p^ is a target of its own: for eta above 0 the text is not the model's. It is defined by
    choosing token by token, each at a position with its own random number,
    `Decoding(drafter=(), transfer=...)`; whatever is drafted, the text is the same. The teacher
    reads its prompt in one pass, and each token of the text in another.

    Args:
        teacher: gives q. It may be the drafter, too, and mostly is.
        eta: how far p moves towards q; RAPID has 5 to 20 for a teacher with the target's
            weights, 40 and 50 for a larger one. 0 leaves p.
        guard: which tokens are moved. "teacher": those with q of at least `share` times the
            largest q, as in RAPID's code. "target": those with p^ of at least `share` times the
            largest p^, as in its paper.
        share: the smallest part of the most probable token's probability.
    """

    teacher: RagDrafter
    eta: float
    guard: Guard = "teacher"
    share: float = 0.1  # RAPID's

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ConfigError: a number is out of range, the guard is unknown, or the teacher is no
                `RagDrafter`.
        """
        if not isinstance(self.teacher, RagDrafter):
            raise ConfigError(f"teacher must be a RagDrafter, got {type(self.teacher).__name__}")
        if not 0 <= self.eta < float("inf"):
            raise ConfigError(f"eta must be at least 0 and finite, got {self.eta}")
        if self.guard not in get_args(Guard):
            raise ConfigError(f"guard must be one of {get_args(Guard)}, got {self.guard!r}")
        if not 0 <= self.share <= 1:
            raise ConfigError(f"share must be from 0 to 1, got {self.share}")

    def bind(self, target: DraftTarget) -> None:
        """Bind the teacher, whose distributions are then a function of prompt and text.

        Raises:
            ConfigError: it has another vocabulary or tokenizer.
        """
        self.teacher.bind(target)
        if self.eta:
            self.teacher.hold_steady()

    def shift(self, sampling: Greedy | Sampling) -> Callable[[Tensor, Tensor], Tensor] | None:
        """Return the function of the model's and the teacher's logits that gives p^'s logits.

        Both and the result are [1, vocabulary], float32; the softmax of the result divided by
        the temperature is p^. `None` for eta 0.
        """
        if not self.eta:
            return None
        temperature = temperature_of(sampling)

        def shifted(logits: Tensor, teachers: Tensor) -> Tensor:
            with torch.inference_mode():
                moved, ratios = self.moved(logits, teachers, temperature)
                return torch.where(ratios >= self.share, moved, logits)

        return shifted

    def smooth_shift(self, sampling: Greedy | Sampling) -> "SmoothShift | None":
        """Return `shift` for measuring how errors of logits grow in it; `None` for eta 0."""
        return SmoothShift(self, temperature_of(sampling)) if self.eta else None

    def is_clear(
        self, logits: Tensor, teachers: Tensor, sampling: Greedy | Sampling, bound: float
    ) -> bool:
        """Return whether logits within a bound of these would move the same tokens.

        The teacher's are exact. So the guard "teacher" is always clear.
        """
        if not self.eta or self.guard == "teacher":
            return True
        temperature = temperature_of(sampling)
        with torch.inference_mode():
            moved, ratios = self.moved(logits, teachers, temperature)
            slack = torch.tensor(2.0 * bound / temperature + _ROUNDING).exp()
            near = (ratios * slack >= self.share) & (ratios <= self.share * slack)
            return not bool((near & ((moved - logits).abs() > bound)).any())

    def moved(self, logits: Tensor, teachers: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Return the moved logits, and what the guard compares with `share`."""
        p = (logits / temperature).softmax(dim=-1)
        q = (teachers / temperature).softmax(dim=-1)
        moved = logits + self.eta * temperature * (q - p)
        guard = q if self.guard == "teacher" else (moved / temperature).softmax(dim=-1)
        return moved, guard / guard.max(dim=-1, keepdim=True).values

    def known_by(self) -> dict[str, Any]:
        """Return all that p^ depends on besides the model, for caches of hosts."""
        if not self.eta:
            return {}
        return {
            "eta": self.eta,
            "guard": self.guard,
            "share": self.share,
            "teacher": self.teacher.known_by(),
        }


class SmoothShift:
    """Moves logits, and keeps the largest factor by which that enlarges errors of them.

    The guard "target" is left out: whether it moves the same tokens is a decision of its own. An
    error of a logit becomes one of eta T (q - p), too: of at most 2 eta p (1 - p) times its size.
    """

    def __init__(self, transfer: KnowledgeTransfer, temperature: float) -> None:
        """Create the shift of a transfer at a temperature."""
        self._transfer = transfer
        self._temperature = temperature
        self.largest = 1.0  # of the factors

    def __call__(self, logits: Tensor, teachers: Tensor) -> Tensor:
        """Return the moved logits."""
        self.largest = max(self.largest, self.factor(logits))
        with torch.inference_mode():
            moved, ratios = self._transfer.moved(logits, teachers, self._temperature)
            if self._transfer.guard == "target":
                return moved
            return torch.where(ratios >= self._transfer.share, moved, logits)

    def factor(self, logits: Tensor) -> float:
        """Return the factor by which errors of these logits may grow."""
        with torch.inference_mode():
            p = (logits / self._temperature).softmax(dim=-1)
            return 1.0 + 2.0 * self._transfer.eta * float((p * (1.0 - p)).max())


def temperature_of(sampling: Greedy | Sampling) -> float:
    """Return the temperature of p^: 1 for greedy choices."""
    return float(sampling.temperature) if isinstance(sampling, Sampling) else 1.0


class TransferDecoder:
    """Runs another decoder's passes, and returns the logits of p^."""

    def __init__(self, inner: Decoder, transfer: KnowledgeTransfer, model: HostedModel) -> None:
        """Create a decoder around another one, which was measured with the same transfer."""
        self.inner = inner
        self.transfer = transfer
        self.model = model

    @property
    def runner(self) -> ModelRunner:
        """The runner of the passes."""
        return self.inner.runner

    def segment(self, run: Run, text: SegmentText) -> SegmentDecoder:
        """Return the decoder of a segment on a run."""
        inner = self.inner.segment(run, text)
        return TransferSegment(self, inner, text) if self.transfer.eta else inner

    def release(self, request: int) -> None:
        """Release what drafters and teacher hold for a request."""
        self.inner.release(request)
        self.transfer.teacher.release(request)

    def for_sampling(self, sampling: Greedy | Sampling) -> Decoder:
        """Return the decoder of p^ with another sampling."""
        model = replace(self.model, sampling=sampling)
        return TransferDecoder(self.inner.for_sampling(sampling), self.transfer, model)


class TransferSegment:
    """The passes of one segment, whose logits are moved towards the teacher's."""

    def __init__(self, decoder: TransferDecoder, inner: SegmentDecoder, text: SegmentText) -> None:
        """Create a segment around another decoder's."""
        shift = decoder.transfer.shift(decoder.model.sampling)
        smooth = decoder.transfer.smooth_shift(decoder.model.sampling)
        assert shift is not None
        assert smooth is not None
        self._shift, self._smooth = shift, smooth
        self._decoder = decoder
        self._inner = inner
        self._text = text
        self._logits: Tensor | None = None  # the model's own, of the last call
        self._teachers: Tensor | None = None

    @property
    def drafts_accepted(self) -> int:
        """The number of accepted drafts."""
        return self._inner.drafts_accepted

    @property
    def decisions_retaken(self) -> int:
        """The number of choices repeated by the compute schedule."""
        return self._inner.decisions_retaken

    def logits(self, tokens: Sequence[int], goal: int, progress: Progress) -> Tensor:
        """Return p^'s logits after the text.

        Raises:
            InputError: nothing is retrieved for the teacher.
            ContextOverflowError: the teacher has too few positions.
            ModelError: its encoder raised.
        """
        self._logits = self._inner.logits(tokens, goal, progress)
        self._teachers = self._decoder.transfer.teacher.logits(self._context(tokens))
        return self._shift(self._logits, self._teachers)

    def is_certain(self, tokens: Sequence[int], logits: Tensor, wider: float = 1.0) -> bool:
        """Return whether the schedule's logits would have led to the same choice as these."""
        wider *= self._growth()
        if not self._inner.is_certain(tokens, logits, wider):
            return False
        bound = self._inner.logprob_error() * wider / 2.0
        if not bound:
            return True
        assert self._logits is not None
        assert self._teachers is not None
        sampling = self._decoder.model.sampling
        return self._decoder.transfer.is_clear(self._logits, self._teachers, sampling, bound)

    def logprob_error(self) -> float:
        """Return the bound on the error of a log-probability of p^."""
        return self._inner.logprob_error() * self._growth()

    def retake(self, tokens: Sequence[int], progress: Progress) -> Tensor:
        """Return p^'s logits after these tokens by the compute schedule."""
        assert self._logits is not None
        assert self._teachers is not None
        before, growth, model = self._logits, self._growth(), self._decoder.model
        self._logits = self._inner.retake(tokens, progress)
        known = self._known
        if known is not None:
            now, before = (self._smooth(one, self._teachers) for one in (self._logits, before))
            found = differences(model, now, before, self._text.front, tokens)
            known.error.observe(*(one / growth for one in found))
        return self._shift(self._logits, self._teachers)

    @property
    def _known(self) -> Calibration | None:
        known: Calibration | None = getattr(self._decoder.inner, "known", None)
        return known

    def _growth(self) -> float:
        """Return how much wider than measured the bounds are here.

        They were measured with shifted logits; where p is more peaked, errors grow more.
        """
        known = self._known
        if known is None or known.exact or self._logits is None:
            return 1.0
        return max(1.0, self._smooth.factor(self._logits) / known.growth)

    def close(self) -> None:
        """Keep only tokens of the text in the cache."""
        self._inner.close()

    def _context(self, tokens: Sequence[int]) -> DraftContext:
        text = self._text
        return DraftContext(text.request, text.passages, text.front, tuple(tokens), text.seed)
