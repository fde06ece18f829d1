"""The tokens that a draft model would follow a path with, drawn with the target's numbers."""

from collections.abc import Sequence

from torch import Tensor

from ralmspec_plugins.decoding.drafters.protocol import DraftContext
from ralmspec_plugins.lm.sampling import Sampling
from ralmspec_plugins.lm.token_sampler import TokenSampler


class Followers:
    """Returns at most `breadth` followers of a token, with estimated probabilities.

    If the target samples, the random number of a token depends on seed and position alone. The
    same number is drawn with here, so two models that agree draw the same token; it comes first.
    """

    def __init__(self, breadth: int) -> None:
        """Create the followers of tokens by any model."""
        self.breadth = breadth
        self._samplers: dict[Sampling, TokenSampler] = {}

    def of(
        self, context: DraftContext, path: Sequence[int], logits: Tensor
    ) -> list[tuple[int, float]]:
        """Return the likeliest tokens after a path of drafts, by the logits after it."""
        settings = context.sampling
        if not isinstance(settings, Sampling):
            return _likeliest(logits, self.breadth)
        sampler = self._samplers.setdefault(settings, TokenSampler(settings))
        likely = _likeliest(logits / settings.temperature, self.breadth)
        text = (*context.text, *path)
        history = (*context.front, *text) if sampler.needs_history else ()
        drawn = sampler.choose(logits[None], history, context.seed, len(text))
        chance = dict(likely).get(drawn, 0.0)
        rest = [(token, one / 2.0) for token, one in likely if token != drawn]
        return [(drawn, (1.0 + chance) / 2.0), *rest][: self.breadth]


def _likeliest(logits: Tensor, count: int) -> list[tuple[int, float]]:
    """Return the most probable tokens, with their probabilities."""
    best = logits.softmax(dim=-1).topk(min(count, logits.shape[-1]))
    return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
