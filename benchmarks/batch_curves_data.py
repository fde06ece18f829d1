"""Vectors and texts to measure on: made up, but spread as real ones are."""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np


def unit_vectors(count: int, dimension: int, seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Draw vectors of length 1."""
    vectors = np.random.default_rng(seed).standard_normal((count, dimension), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def clustered_vectors(
    count: int, dimension: int, seed: int
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Draw vectors of length 1 around centres of unequal weight, themselves around few others."""
    dice = np.random.default_rng(seed)
    world = np.random.default_rng(0)  # the same centres for passages and queries
    topics = unit_vectors(20, dimension, 1)[world.integers(0, 20, 400)]
    centres = topics + 0.8 * unit_vectors(400, dimension, 2)
    weights = 1 / np.arange(1, 401) ** 0.7
    vectors = centres[dice.choice(400, count, p=weights / weights.sum())].astype(np.float32)
    for start in range(0, count, 1 << 16):
        part = vectors[start : start + (1 << 16)]
        part += 0.7 * dice.standard_normal(part.shape, dtype=np.float32) / np.sqrt(dimension)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return vectors


def zipf_texts(count: int, words: int, seed: int) -> Iterator[str]:
    """Draw texts of made-up words, each as frequent as its rank says."""
    vocabulary = [f"w{number:x}" for number in range(30_000)]
    weights = np.cumsum(1 / np.arange(1, 30_001)).tolist()
    dice = random.Random(seed)
    for _ in range(count):
        yield " ".join(dice.choices(vocabulary, cum_weights=weights, k=words))
