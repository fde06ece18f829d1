"""Token sampling with the logits processors of transformers."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import LongTensor, Tensor
from transformers.generation.logits_process import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ralmspec_plugins.lm.sampling import Greedy, Sampling, draw


class TokenSampler:
    """Chooses a token from a model's logits, as `generate` does.

    `needs_history` is whether earlier tokens are relevant (for a repetition
    penalty, which, as in `generate`, includes prompt and passages).
    """

    def __init__(self, settings: Greedy | Sampling) -> None:
        """Create the processors in the order in which `generate` applies them."""
        self.settings = settings
        self._sampled = isinstance(settings, Sampling)
        self._processors: Any = _processors(settings)  # its call has too narrow types
        self.needs_history = settings.repetition_penalty != 1.0

    def choose(self, logits: Tensor, history: Sequence[int], seed: int, position: int) -> int:
        """Choose the token at a position of the text, from logits [1, vocabulary] in float32."""
        with torch.inference_mode():
            if len(self._processors):
                ids = torch.tensor([list(history)], dtype=torch.long, device=logits.device)
                logits = self._processors(ids, logits)
            if not self._sampled:
                return int(logits.argmax(dim=-1).item())
            scores = logits[0].cpu().double().numpy()
        return draw(scores, seed, position)


def logprob_of(logits: Tensor, token: int) -> float:
    """Return the log-probability of a token, from logits [1, vocabulary], in float64.

    >>> round(logprob_of(torch.tensor([[0.0, 0.0]]), 1), 4)
    -0.6931
    """
    with torch.inference_mode():
        return float(logits[0].double().log_softmax(dim=-1)[token].item())


def _processors(settings: Greedy | Sampling) -> LogitsProcessorList:
    processors = LogitsProcessorList()
    if settings.repetition_penalty != 1.0:
        processors.append(RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
    if isinstance(settings, Greedy):
        return processors
    if settings.temperature != 1.0:
        processors.append(TemperatureLogitsWarper(float(settings.temperature)))
    if settings.top_k:
        processors.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1.0:
        processors.append(_TopP(settings.top_p))
    return processors


class _TopP(TopPLogitsWarper):
    """The one of transformers, except that the CPU sums the probabilities.

    A CUDA device sums a single long row in an order that is not fixed, so that the set of tokens
    could differ between two runs. On the CPU the scores are the same to the bit.
    """

    def __call__(self, input_ids: LongTensor, scores: Any) -> Any:
        """Return scores [1, vocabulary], minus infinity outside of the smallest set of tokens."""
        ascending, tokens = scores.sort(dim=-1)
        shares = ascending.softmax(dim=-1).cpu().cumsum(dim=-1)
        outside = int((shares[0, :-1] <= 1 - self.top_p).sum())  # the likeliest always stays
        return scores.scatter(1, tokens[:, :outside], self.filter_value)
