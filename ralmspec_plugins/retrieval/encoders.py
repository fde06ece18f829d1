"""Encoders of text to vectors.

An encoder is any callable from a text to a vector. Five attributes are used
if they exist: `name` (for signatures and saved knowledge bases),
`settings` (to create it again when a knowledge base is loaded), `inline`
(it takes microseconds), `lanes` (how many calls may run at a time: more than
one for a hosted encoder) and `many(texts)` (encodes all passages; queries are
always encoded in a batch of one).
"""

import hashlib
import os
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import ArrayLike

from ralmspec_plugins.errors import ConfigError, InputError
from ralmspec_plugins.retrieval.device_memory import within_memory
from ralmspec_plugins.retrieval.devices import usable_device
from ralmspec_plugins.retrieval.optional import loading, local_files_only, optional
from ralmspec_plugins.retrieval.own_pass import own_pass
from ralmspec_plugins.retrieval.ranking import Vectors
from ralmspec_plugins.retrieval.storage.corpus import batched
from ralmspec_plugins.types import Passage

Encoder: TypeAlias = Callable[[str], ArrayLike]

_WORD = re.compile(r"\w+")
_KNOWN = {
    "hashing": ("ralmspec_plugins.retrieval.encoders", "HashingEncoder"),
    "sentence-transformers": (
        "ralmspec_plugins.retrieval.encoders",
        "SentenceTransformerEncoder",
    ),
    "huggingface": ("ralmspec_plugins.retrieval.encoders", "HuggingFaceEncoder"),
}


class HashingEncoder:
    """Signed feature hashing of words: no model, no state, the same vector everywhere.

    Each word, lower-cased, adds +1 or -1 to one of `dimension` places, both
    chosen by its CRC-32; the sum is scaled to length 1. It matches shared words,
    not shared meaning: use it for experiments, not in place of a trained model.

    >>> HashingEncoder(8)("to be or not to be").tolist() == HashingEncoder(8)(
    ...     "To be, or not to be!").tolist()
    True
    """

    inline = True

    def __init__(self, dimension: int = 512) -> None:
        """Create an encoder of this dimension."""
        if isinstance(dimension, bool) or not isinstance(dimension, int) or dimension < 1:
            raise ConfigError(f"dimension must be a whole number of at least 1, got {dimension!r}")
        self.dimension = dimension
        self.name = f"hashing-{dimension}"
        self.settings: dict[str, Any] = {"kind": "hashing", "dimension": dimension}

    def __call__(self, text: str) -> Vectors:
        """Return the vector of a text; the zero vector for one without words."""
        counts = np.zeros(self.dimension, dtype=np.float64)
        for word in _WORD.findall(text.lower()):
            code = zlib.crc32(word.encode())
            counts[(code >> 1) % self.dimension] += 1 if code & 1 else -1
        length = np.sqrt((counts * counts).sum())
        return (counts / length if length else counts).astype(np.float32)


def encoder_name(encoder: Encoder | None) -> str:
    """Return an encoder's name for signatures; a nameless one is identified by its id."""
    if encoder is None:
        return "none"
    name = getattr(encoder, "name", None)
    if isinstance(name, str) and name:
        return name
    kind = getattr(encoder, "__qualname__", type(encoder).__qualname__)
    return f"{kind}@{id(encoder):x}"


def weights_digest(weights: Mapping[str, Any]) -> str:
    """Return a digest of a model's tensors, which does not depend on its path."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(weights[name].detach().cpu().float().numpy()).data)
    return digest.hexdigest()[:16]


def encoder_from(settings: Mapping[str, Any], device: str | None = None) -> Encoder:
    """Return an encoder from the settings saved with a knowledge base.

    A file never causes a download: a model is only loaded from a local folder.

    Args:
        settings: the saved ones.
        device: the device of its model, if it has one; the CPU by default.

    Raises:
        ConfigError: there is no such device.
        InputError: the kind of encoder is unknown, or its model is not a local folder.
    """
    options = dict(settings) if isinstance(settings, Mapping) else {"kind": settings}
    kind = options.pop("kind", None)
    if not isinstance(kind, str) or kind not in _KNOWN:
        raise InputError(
            f"unknown encoder kind {kind!r}; known are {', '.join(sorted(_KNOWN))}. Give the "
            "encoder: load(path, encoder=...)"
        )
    if kind != "hashing" and not Path(str(options.get("path"))).is_dir():
        raise InputError(
            f"the knowledge base names the {kind} encoder {options.get('path')!r}, which is not a "
            "folder here; a file's model is never downloaded. Load it yourself and give it: "
            "load(path, encoder=...)"
        )
    if kind != "hashing" and device is not None:
        usable_device(optional("torch", "hf", "torch"), device)
        options["device"] = device
    module, name = _KNOWN[kind]
    try:
        encoder: Encoder = getattr(import_module(module), name)(**options)
    except (ConfigError, TypeError) as error:
        raise InputError(
            f"the {kind} encoder of the knowledge base cannot be made ({error}); give it: "
            "load(path, encoder=...)"
        ) from error
    return encoder


def encode_passages(encoder: Encoder, texts: Sequence[str]) -> Vectors:
    """Return the vectors of all passages, encoded together if the encoder supports it."""
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


# Encodes many passages in batches, always the same ones.


BATCH = 256  # passages encoded together, from a multiple of it on, for reproducible bits


def encode_batch(encoder: Encoder, passages: Sequence[Passage]) -> Vectors:
    """Return the vectors of some passages, title before text.  # [passages, dim]."""
    texts = [f"{p.title}\n{p.text}" if p.title else p.text for p in passages]
    return encode_passages(encoder, texts)


def encode_all(encoder: Encoder, passages: Sequence[Passage], batch_size: int = BATCH) -> Vectors:
    """Return the vectors of all passages, encoded in batches.  # [passages, dim].

    Raises:
        InputError: the encoder returned invalid vectors, or another dimension in a later batch.
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
    assert vectors is not None, "an empty knowledge base was not detected"
    return vectors


def check_batch(encoder: Encoder, rows: Vectors, shape: tuple[int, int]) -> None:
    """Check the shape of a batch.

    Raises:
        InputError: the encoder returned another shape than before.
    """
    if rows.shape != shape:
        raise InputError(
            f"the encoder {encoder_name(encoder)} gave an array of shape {rows.shape} for "
            f"{shape[0]} texts, and vectors of {shape[1]} dimensions before"
        )


# Encoders by a model: queries one at a time, passages in batches, each with its prefix.


class ModelEncoder:
    """Base class of encoders by a model."""

    def __init__(self, query_prefix: str, passage_prefix: str) -> None:
        """Create an encoder with these prefixes of queries and passages."""
        self._prefixes = (query_prefix, passage_prefix)

    def __call__(self, text: str) -> Vectors:
        """Encode one query, in a batch of one."""
        vector: Vectors = self._encoded([self._prefixes[0] + text])[0]
        return vector

    def many(self, texts: Sequence[str]) -> Vectors:
        """Encode passages in batches.  # [texts, dim].

        Raises:
            DeviceMemoryError: the model's device has too little memory for a batch.
        """
        return self._encoded([self._prefixes[1] + text for text in texts])

    def _encoded(self, texts: list[str]) -> Vectors:
        return within_memory(
            lambda: self._encode(texts),
            f"the encoder's device has no memory left for a batch of {len(texts)} texts; give a "
            "smaller batch_size, or shorter texts",
        )

    def _encode(self, texts: list[str]) -> Vectors:
        raise NotImplementedError

    def _kept(self, kind: str, path: str | os.PathLike[str], **settings: Any) -> dict[str, Any]:
        """Return the settings of this encoder for `encoder_from`."""
        query, passage = self._prefixes
        return {
            "kind": kind,
            "path": str(Path(path).absolute()) if Path(path).exists() else os.fspath(path),
            **settings,
            "query_prefix": query,
            "passage_prefix": passage,
        }


Pooling = Literal["mean", "cls", "last"]


class HuggingFaceEncoder(ModelEncoder):
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
            pooling: the pooling of token vectors.
            max_tokens: the maximum number of tokens; longer texts are cut.
            device: the device of the model.
            query_prefix: the prefix of queries.
            passage_prefix: the prefix of passages.
            batch_size: the number of passages in a batch.

        Raises:
            ConfigError: the pooling is unknown, or there is no such device.
            MissingExtraError: torch or transformers is not installed.
            ModelError: the model cannot be loaded.
        """
        super().__init__(query_prefix, passage_prefix)
        if pooling not in get_args(Pooling):
            known = ", ".join(get_args(Pooling))
            raise ConfigError(f"unknown pooling {pooling!r}; known are {known}")
        self._torch = optional("torch", "hf", "torch")
        usable_device(self._torch, device)
        transformers = optional("transformers", "hf", "transformers")
        name = os.fspath(path)
        safe = {"trust_remote_code": False, "local_files_only": local_files_only(name)}
        with loading(f"no usable Hugging Face model at {path}"):
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(name, **safe)
            model = transformers.AutoModel.from_pretrained(name, **safe)
        self._model: Any = model.eval().to(device)
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._tokenizer.padding_side = "right"
        self._pooling, self._device = pooling, device
        self._max_tokens, self._batch_size = max_tokens, batch_size
        digest = weights_digest(self._model.state_dict())
        options = f"{max_tokens}-{query_prefix!r}-{passage_prefix!r}"
        self.name = f"huggingface-{digest}-{pooling}-{options}"
        self.settings = self._kept("huggingface", path, pooling=pooling, max_tokens=max_tokens)

    def _encode(self, texts: list[str]) -> Vectors:
        size = self._batch_size
        batches = [self._pass(texts[at : at + size]) for at in range(0, len(texts), size)]
        return np.concatenate(batches)

    def _pass(self, texts: list[str]) -> Vectors:
        tokens = self._tokenizer(
            texts,
            padding=len(texts) > 1,
            truncation=True,
            max_length=self._max_tokens,
            return_tensors="pt",
        ).to(self._device)
        with own_pass(self._torch, self._model.device):
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


class SentenceTransformerEncoder(ModelEncoder):
    """A sentence-transformers model, named by its weights."""

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
            device: the device of the model.
            query_prefix: the prefix of queries, required by E5 and BGE models.
            passage_prefix: the prefix of passages.
            batch_size: the number of passages in a batch.

        Raises:
            ConfigError: there is no such device.
            MissingExtraError: sentence-transformers is not installed.
            ModelError: the model cannot be loaded.
        """
        super().__init__(query_prefix, passage_prefix)
        package = optional("sentence_transformers", "embeddings", "sentence-transformers")
        self._torch = optional("torch", "embeddings", "torch")
        usable_device(self._torch, device)
        name = os.fspath(path)
        safe = {"trust_remote_code": False, "local_files_only": local_files_only(name)}
        with loading(f"no sentence-transformers model at {path}"):
            self._model: Any = package.SentenceTransformer(name, device=device, **safe)
        self._batch_size = batch_size
        digest = weights_digest(self._model.state_dict())
        self.name = f"sentence-transformers-{digest}-{query_prefix!r}-{passage_prefix!r}"
        self.settings = self._kept("sentence-transformers", path)

    def _encode(self, texts: list[str]) -> Vectors:
        with own_pass(self._torch, self._model.device):
            encoded = self._model.encode(
                texts, batch_size=self._batch_size, convert_to_numpy=True, show_progress_bar=False
            )
        return np.asarray(encoded, dtype=np.float32)
