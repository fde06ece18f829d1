"""Names of tokenizers and models by their content, to refuse data that was made by others."""

import hashlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_SAMPLE = 1024  # numbers of each weight


def tokenizer_fingerprint(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return a fingerprint of all that determines a tokenizer's output.

    That is vocabulary, merges, normalisation, added tokens, and the tokens that begin
    and end a text. Settings that calls may change are excluded (padding, truncation), and the
    padding token, which is often customised.
    """
    fast: Any = getattr(tokenizer, "backend_tokenizer", None)
    content: dict[str, Any]
    if fast is not None:
        content = json.loads(fast.to_str())
        content.pop("padding", None)
        content.pop("truncation", None)
    else:  # in Python: only its vocabulary is available
        content = {"kind": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    ends = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    text = json.dumps([content, ends], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def model_fingerprint(model: "PreTrainedModel") -> str:
    """Return a fingerprint of a model's type and weights.

    It covers the shape and up to 1,024 evenly spaced numbers of each weight: training
    changes nearly all of them, and a large model takes only a second. They are
    rounded to bfloat16, so that a model has one fingerprint in float32 and in bfloat16, and
    another one in float16. The rest of the configuration is excluded, since
    releases of transformers write it differently for the same model.
    """
    digest = hashlib.sha256(str(model.config.model_type).encode())
    for part in _samples(model):
        digest.update(part)
    return digest.hexdigest()


def _samples(model: Any) -> Iterator[bytes]:
    """Return each weight's shape, and some of its numbers as bytes."""
    for weight in model.parameters():  # shared weights occur once
        yield repr(tuple(weight.shape)).encode()
        if weight.is_meta:  # its numbers are not in memory
            continue
        numbers = weight.detach().flatten()
        step = max(1, len(numbers) // _SAMPLE)
        yield numbers[::step][:_SAMPLE].bfloat16().float().cpu().numpy().tobytes()
