"""A model of integers: its logits are a hash of exactly what each row may see, and where.

A wrong mask, position, row or crop gives other logits, and so another text. Passes over
several rows whose logits are all wanted, and what is read behind them, have logits that
differ by up to `noise`: as real kernels', but far more, so that many choices are open.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig

VOCABULARY = 384  # the tiny tokenizer's
_PRIME = 2**31 - 1
_POWERS = np.array([pow(48271, at, _PRIME) for at in range(4096)], dtype=np.int64)


class IntegerModel(nn.Module):
    """Looks like a causal model of transformers to a `ModelRunner`."""

    def __init__(self, likely: list[int], noise: float, *, context: int = 512) -> None:
        super().__init__()
        self.config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=4,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
            max_position_embeddings=context,
        )
        self.config._attn_implementation = "sdpa"
        self.generation_config = SimpleNamespace(eos_token_id=None)
        self.dtype = torch.float32
        self.noise = noise
        self._embedding = nn.Embedding(VOCABULARY, 4)
        self._likely = np.array(likely)
        rng = np.random.default_rng(5)
        self._factors = rng.integers(1, _PRIME, len(likely))
        self._terms = rng.integers(1, _PRIME, len(likely))

    def get_input_embeddings(self) -> nn.Embedding:
        return self._embedding

    def forward(
        self,
        input_ids: Tensor,
        past_key_values: DynamicCache,
        use_cache: bool,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        logits_to_keep: int = 0,
    ) -> Any:
        rows, past = input_ids.shape[1], past_key_values.get_seq_length()
        noisy = logits_to_keep > 1
        positions = torch.arange(past, past + rows)[None] if position_ids is None else position_ids
        states = torch.zeros(1, 1, rows, 4)
        states[0, 0, :, 0], states[0, 0, :, 1] = input_ids[0].float(), positions[0].float()
        states[0, 0, :, 2] = float(noisy)
        keys, values = past_key_values.update(states, states.clone(), 0)
        assert torch.equal(keys, values)
        seen = _seen(attention_mask, rows, past)
        columns = keys[0, 0].numpy().astype(np.int64)
        parts = (columns[:, 0] + 1) * _POWERS[columns[:, 1]] % _PRIME
        hashes = (seen * parts).sum(axis=1) % _PRIME
        disturbed = (seen * columns[:, 2]).sum(axis=1) > 0
        wanted = hashes[-logits_to_keep:], disturbed[-logits_to_keep:]
        return SimpleNamespace(logits=self._logits(*wanted, rows))

    def _logits(self, hashes: np.ndarray, disturbed: np.ndarray, rows: int) -> Tensor:
        logits = np.full((1, len(hashes), VOCABULARY), -30.0, dtype=np.float32)
        for at, one in enumerate(hashes):
            mixed = (int(one) * self._factors + self._terms) % _PRIME
            scores = np.round(mixed / _PRIME * 40.0) / 5.0  # many rows have two best tokens
            if disturbed[at]:
                jitter = (mixed * 31 + 17 * rows) % 2001 / 1000.0 - 1.0
                scores = scores + self.noise * jitter
            logits[0, at, self._likely] = scores
        return torch.from_numpy(logits)


def _seen(mask: Tensor | None, rows: int, past: int) -> np.ndarray:
    if mask is None:
        return np.tril(np.ones((rows, past + rows), dtype=np.int64), past)
    assert mask.is_floating_point()
    assert mask.shape == (1, 1, rows, past + rows)
    return (mask[0, 0] > -1.0).numpy().astype(np.int64)
