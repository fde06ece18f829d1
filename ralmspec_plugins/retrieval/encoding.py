"""Encode many passages a batch at a time, always in the same batches."""

from collections.abc import Sequence

import numpy as np

from ralmspec_plugins.errors import InputError
from ralmspec_plugins.retrieval.corpus import batched
from ralmspec_plugins.retrieval.encoders import Encoder, encode_passages, encoder_name
from ralmspec_plugins.retrieval.ranking import Vectors
from ralmspec_plugins.types import Passage

BATCH = 256  # passages encoded together, always from a multiple of it: the same bits each time


def encode_batch(encoder: Encoder, passages: Sequence[Passage]) -> Vectors:
    """Encode some passages together, title before text.  # [passages, dim]."""
    texts = [f"{p.title}\n{p.text}" if p.title else p.text for p in passages]
    return encode_passages(encoder, texts)


def encode_all(encoder: Encoder, passages: Sequence[Passage], batch_size: int = BATCH) -> Vectors:
    """Encode all passages, a batch at a time into one array.  # [passages, dim].

    Raises:
        InputError: the encoder gave unusable vectors, or of another length in a later batch.
    """
    vectors: Vectors | None = None
    start = 0
    for some in batched(passages, batch_size):
        rows = encode_batch(encoder, some)
        if vectors is None:
            vectors = np.empty((len(passages), rows.shape[1]), dtype=np.float32)
        check_batch(encoder, rows, (len(some), vectors.shape[1]))
        vectors[start : start + len(some)] = rows
        start += len(some)
    assert vectors is not None, "an empty knowledge base was not refused"
    return vectors


def check_batch(encoder: Encoder, rows: Vectors, shape: tuple[int, int]) -> None:
    """Refuse a batch of another shape.

    Raises:
        InputError: the encoder changes its mind.
    """
    if rows.shape != shape:
        raise InputError(
            f"the encoder {encoder_name(encoder)} gave an array of shape {rows.shape} for "
            f"{shape[0]} texts, and vectors of {shape[1]} dimensions before"
        )
