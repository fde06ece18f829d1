"""Encode with a sentence-transformers model."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ralmspec_plugins.errors import ModelError
from ralmspec_plugins.quiet import no_progress_bar
from ralmspec_plugins.retrieval.encoders import weights_digest
from ralmspec_plugins.retrieval.optional import optional
from ralmspec_plugins.retrieval.ranking import Vectors


class SentenceTransformerEncoder:
    """Queries one at a time, passages in batches; named by its weights, wherever they lie."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        device: str = "cpu",
        query_prefix: str = "",
        passage_prefix: str = "",
        batch_size: int = 32,
    ) -> None:
        """Load a model.

        Args:
            path: a folder, or a name on the hub.
            device: where it runs.
            query_prefix: put in front of queries, as E5 and BGE models want.
            passage_prefix: put in front of passages.
            batch_size: how many passages are encoded at once.

        Raises:
            MissingExtraError: sentence-transformers is not installed.
            ModelError: the model cannot be loaded.
        """
        package = optional("sentence_transformers", "embeddings", "sentence-transformers")
        try:
            with no_progress_bar():
                self._model: Any = package.SentenceTransformer(os.fspath(path), device=device)
        except (OSError, ValueError) as error:
            raise ModelError(f"no sentence-transformers model at {path}: {error}") from error
        self._prefixes = (query_prefix, passage_prefix)
        self._batch_size = batch_size
        digest = weights_digest(self._model.state_dict())
        self.name = f"sentence-transformers-{digest}-{query_prefix!r}-{passage_prefix!r}"
        self.settings = {
            "kind": "sentence-transformers",
            "path": _absolute(path),
            "query_prefix": query_prefix,
            "passage_prefix": passage_prefix,
        }

    def __call__(self, text: str) -> Vectors:
        """Encode one query alone."""
        vector: Vectors = self._encode([self._prefixes[0] + text])[0]
        return vector

    def many(self, texts: Sequence[str]) -> Vectors:
        """Encode passages in batches.  # [texts, dim]."""
        return self._encode([self._prefixes[1] + text for text in texts])

    def _encode(self, texts: list[str]) -> Vectors:
        encoded = self._model.encode(
            texts, batch_size=self._batch_size, convert_to_numpy=True, show_progress_bar=False
        )
        return np.asarray(encoded, dtype=np.float32)


def _absolute(path: str | os.PathLike[str]) -> str:
    return str(Path(path).absolute()) if Path(path).exists() else os.fspath(path)
