"""What a model's own settings say: which tokens there are and end a text, how long one may be."""

from typing import Any

from transformers import PreTrainedModel


def eos_tokens(model: PreTrainedModel) -> frozenset[int]:
    """Give the tokens that end a text.

    As in `generate`, the tokenizer has no say: what ends a text is the model's setting.
    """
    eos: Any = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if eos is None:
        return frozenset()
    return frozenset(eos if isinstance(eos, list | tuple) else [eos])


def context_length(model: PreTrainedModel) -> int | None:
    """Give the most tokens that the model can look at, if it has such a limit."""
    config = model.config.get_text_config(decoder=True)
    length: int | None = getattr(config, "max_position_embeddings", None)
    return length


def vocabulary_size(model: PreTrainedModel) -> int:
    """Give the number of tokens that the model gives a probability to."""
    return int(model.config.get_text_config(decoder=True).vocab_size)
