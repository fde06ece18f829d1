"""Names of tokenizers and models by their content, to refuse data that was made by others."""

import hashlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_SAMPLE = 1024  # numbers of each weight


def tokenizer_fingerprint(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Name a tokenizer by all that decides which tokens a text becomes.

    That is vocabulary, merges, normalisation, added tokens, and which tokens begin
    and end a text. What a call may change is left out (padding, truncation), and the
    padding token, which many set as they like.
    """
    fast: Any = getattr(tokenizer, "backend_tokenizer", None)
    content: dict[str, Any]
    if fast is not None:
        content = json.loads(fast.to_str())
        content.pop("padding", None)
        content.pop("truncation", None)
    else:  # in Python: its vocabulary must do for its rules
        content = {"kind": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    ends = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    text = json.dumps([content, ends], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def model_fingerprint(model: "PreTrainedModel") -> str:
    """Name a model by its type and its weights.

    Of each weight its shape and up to 1,024 numbers, spread over all of it: training
    moves nearly all of them, and so a large model is named in a second. They are
    rounded to bfloat16, so that a model has one name in float32 and in bfloat16; in
    float16 it has another. The rest of the configuration is left out, since each
    release of transformers writes another one of the same model.
    """
    digest = hashlib.sha256(str(model.config.model_type).encode())
    for part in _samples(model):
        digest.update(part)
    return digest.hexdigest()


def _samples(model: Any) -> Iterator[bytes]:
    """Return each weight's shape, and some of its numbers as bytes."""
    for weight in model.parameters():  # a shared one comes once
        yield repr(tuple(weight.shape)).encode()
        if weight.is_meta:  # its numbers are on a disk
            continue
        numbers = weight.detach().flatten()
        step = max(1, len(numbers) // _SAMPLE)
        yield numbers[::step][:_SAMPLE].bfloat16().float().cpu().numpy().tobytes()
