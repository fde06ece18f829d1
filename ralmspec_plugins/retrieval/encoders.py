"""What turns a text into a vector, with no dependency but numpy.

An encoder is any callable from a text to a vector. Four attributes are used
where they exist: `name` (what signatures and saved knowledge bases call it),
`settings` (enough to make it again when a knowledge base is loaded), `inline`
(it costs microseconds) and `many(texts)` (all passages at once; queries are
always encoded alone, DESIGN 6).
"""

import hashlib
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from ralmspec_plugins.errors import ConfigError, InputError
from ralmspec_plugins.retrieval.ranking import Vectors

Encoder: TypeAlias = Callable[[str], ArrayLike]

_WORD = re.compile(r"\w+")
_KNOWN = {
    "hashing": ("ralmspec_plugins.retrieval.encoders", "HashingEncoder"),
    "sentence-transformers": (
        "ralmspec_plugins.retrieval.sentence_transformer_encoder",
        "SentenceTransformerEncoder",
    ),
    "huggingface": ("ralmspec_plugins.retrieval.huggingface_encoder", "HuggingFaceEncoder"),
}


class HashingEncoder:
    """Signed feature hashing of words: no model, no state, the same vector everywhere.

    Each word, lower-cased, adds +1 or -1 to one of `dimension` places, both
    chosen by its CRC-32; the sum is scaled to length 1. It finds shared words,
    not shared meaning: good for trying things out, no rival to a trained model.

    >>> HashingEncoder(8)("to be or not to be").tolist() == HashingEncoder(8)(
    ...     "To be, or not to be!").tolist()
    True
    """

    inline = True

    def __init__(self, dimension: int = 512) -> None:
        """Encode into this many dimensions."""
        if dimension < 1:
            raise ConfigError(f"dimension must be at least 1, got {dimension}")
        self.dimension = dimension
        self.name = f"hashing-{dimension}"
        self.settings: dict[str, Any] = {"kind": "hashing", "dimension": dimension}

    def __call__(self, text: str) -> Vectors:
        """Encode one text; one without any word gives the zero vector."""
        counts = np.zeros(self.dimension, dtype=np.float64)
        for word in _WORD.findall(text.lower()):
            code = zlib.crc32(word.encode())
            counts[(code >> 1) % self.dimension] += 1 if code & 1 else -1
        length = np.sqrt((counts * counts).sum())
        return (counts / length if length else counts).astype(np.float32)


def encoder_name(encoder: Encoder | None) -> str:
    """Name an encoder for signatures; one without a name is told apart by its identity."""
    if encoder is None:
        return "none"
    name = getattr(encoder, "name", None)
    if isinstance(name, str) and name:
        return name
    kind = getattr(encoder, "__qualname__", type(encoder).__qualname__)
    return f"{kind}@{id(encoder):x}"


def weights_digest(weights: Mapping[str, Any]) -> str:
    """Digest a model's tensors, so that a moved model is recognised and a changed one is not."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(weights[name].detach().cpu().float().numpy()).data)
    return digest.hexdigest()[:16]


def encoder_from(settings: Mapping[str, Any]) -> Encoder:
    """Make an encoder again from the settings saved with a knowledge base.

    Raises:
        InputError: the kind of encoder is not one of those known here.
    """
    options = dict(settings)
    kind = options.pop("kind", None)
    if kind not in _KNOWN:
        raise InputError(f"unknown encoder kind {kind!r}; known are {', '.join(sorted(_KNOWN))}")
    module, name = _KNOWN[kind]
    encoder: Encoder = getattr(import_module(module), name)(**options)
    return encoder


def encode_passages(encoder: Encoder, texts: Sequence[str]) -> Vectors:
    """Encode all passages, together where the encoder can do that."""
    many = getattr(encoder, "many", None)
    encoded = many(texts) if many is not None else [encoder(text) for text in texts]
    try:
        vectors = np.ascontiguousarray(encoded, dtype=np.float32)
    except ValueError as error:
        raise InputError(
            f"the encoder {encoder_name(encoder)} gave vectors of unequal length: {error}"
        ) from error
    if vectors.ndim != 2:
        raise InputError(
            f"the encoder {encoder_name(encoder)} must give one vector per text, got an array of "
            f"shape {vectors.shape}"
        )
    return vectors
