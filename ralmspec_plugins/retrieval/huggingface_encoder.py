"""Encode with a Hugging Face model and one of the usual poolings."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from ralmspec_plugins.errors import ConfigError, ModelError
from ralmspec_plugins.quiet import no_progress_bar
from ralmspec_plugins.retrieval.encoders import weights_digest
from ralmspec_plugins.retrieval.optional import optional
from ralmspec_plugins.retrieval.ranking import Vectors

Pooling = Literal["mean", "cls", "last"]


class HuggingFaceEncoder:
    """A model's last hidden states, pooled over the text; named by its weights.

    Pooling is "mean" over the text's tokens, "cls" (the first token: DPR, BGE)
    or "last" (decoder models).
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        pooling: Pooling = "mean",
        max_tokens: int = 512,
        device: str = "cpu",
        query_prefix: str = "",
        passage_prefix: str = "",
        batch_size: int = 32,
    ) -> None:
        """Load a model and its tokenizer.

        Args:
            path: a folder, or a name on the hub.
            pooling: how token vectors become one.
            max_tokens: longer texts are cut.
            device: where it runs.
            query_prefix: put in front of queries.
            passage_prefix: put in front of passages.
            batch_size: how many passages are encoded at once.

        Raises:
            ConfigError: an unknown pooling.
            MissingExtraError: torch or transformers is not installed.
            ModelError: the model cannot be loaded.
        """
        if pooling not in get_args(Pooling):
            known = ", ".join(get_args(Pooling))
            raise ConfigError(f"unknown pooling {pooling!r}; known are {known}")
        self._torch = optional("torch", "hf", "torch")
        transformers = optional("transformers", "hf", "transformers")
        try:
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(os.fspath(path))
            with no_progress_bar():
                model = transformers.AutoModel.from_pretrained(os.fspath(path))
        except (OSError, ValueError) as error:
            raise ModelError(f"no usable Hugging Face model at {path}: {error}") from error
        self._model: Any = model.eval().to(device)
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._tokenizer.padding_side = "right"
        self._pooling, self._device = pooling, device
        self._max_tokens, self._batch_size = max_tokens, batch_size
        self._prefixes = (query_prefix, passage_prefix)
        digest = weights_digest(self._model.state_dict())
        options = f"{max_tokens}-{query_prefix!r}-{passage_prefix!r}"
        self.name = f"huggingface-{digest}-{pooling}-{options}"
        self.settings = {
            "kind": "huggingface",
            "path": str(Path(path).absolute()) if Path(path).exists() else os.fspath(path),
            "pooling": pooling,
            "max_tokens": max_tokens,
            "query_prefix": query_prefix,
            "passage_prefix": passage_prefix,
        }

    def __call__(self, text: str) -> Vectors:
        """Encode one query alone."""
        vector: Vectors = self._encode([self._prefixes[0] + text])[0]
        return vector

    def many(self, texts: Sequence[str]) -> Vectors:
        """Encode passages in batches.  # [texts, dim]."""
        marked = [self._prefixes[1] + text for text in texts]
        size = self._batch_size
        batches = [self._encode(marked[at : at + size]) for at in range(0, len(marked), size)]
        return np.concatenate(batches)

    def _encode(self, texts: list[str]) -> Vectors:
        tokens = self._tokenizer(
            texts,
            padding=len(texts) > 1,
            truncation=True,
            max_length=self._max_tokens,
            return_tensors="pt",
        ).to(self._device)
        with self._torch.inference_mode():
            hidden = self._model(**tokens).last_hidden_state  # [texts, tokens, dim]
        mask = tokens["attention_mask"]
        if self._pooling == "cls":
            pooled = hidden[:, 0]
        elif self._pooling == "last":
            rows = self._torch.arange(len(texts), device=self._device)
            pooled = hidden[rows, mask.sum(dim=1) - 1]
        else:
            weights = mask.unsqueeze(-1).to(hidden.dtype)
            pooled = (hidden * weights).sum(dim=1) / weights.sum(dim=1)
        return np.asarray(pooled.float().cpu().numpy(), dtype=np.float32)
