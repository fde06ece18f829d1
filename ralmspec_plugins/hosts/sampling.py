"""How a Hugging Face model that is driven directly chooses tokens: by its wrapper's settings."""

from collections.abc import Mapping, Sequence
from typing import Any

from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.lm.sampling import Greedy, Sampling

# What `generate` takes for a setting that nobody has set.
_DEFAULTS: Mapping[str, Any] = {
    "do_sample": False,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
}
# Settings with which one text is written as without them.
_NEUTRAL: Mapping[str, Any] = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "encoder_repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "diversity_penalty": 0.0,
    "min_length": 0,
    "guidance_scale": 1.0,
}
# Settings that say how far to write, which is the workload's affair, or how to compute and report.
_NOT_OURS = frozenset(
    {
        *("max_length", "max_new_tokens", "prefix_length", "pad_token_id", "bos_token_id"),
        *("use_cache", "cache_implementation", "cache_config", "max_cache_len"),
        *("compile_config", "disable_compile", "return_dict_in_generate", "assistant_model"),
        *("output_attentions", "output_hidden_states", "output_scores", "output_logits"),
        *("return_full_text", "return_text", "clean_up_tokenization_spaces", "tokenizer"),
        *("skip_special_tokens", "transformers_version", "_from_model_config", "batch_size"),
        *("assistant_tokenizer", "num_assistant_tokens", "num_assistant_tokens_schedule"),
        *("assistant_confidence_threshold", "assistant_lookbehind", "target_lookbehind"),
        *("eos_token_id", "is_assistant", "max_matching_ngram_size", *_DEFAULTS),
    }
)


def sampling(
    settings: Mapping[str, Any], eos: Any, whose: str, *, unfit: Sequence[str] = ()
) -> Greedy | Sampling:
    """Turn the settings of `generate` into the way in which tokens are chosen.

    Args:
        settings: all of them: the model's own, under those of its wrapper and of the call.
        eos: the token, or the tokens, that end the model's texts.
        whose: whose settings they are, for the message.
        unfit: what else cannot be kept to.

    Raises:
        ConfigError: there are settings that cannot be kept to; the message names them.
    """
    named = sorted(
        name
        for name, value in settings.items()
        if name not in _NOT_OURS and value not in (None, False, _NEUTRAL.get(name))
    )
    named += unfit
    if settings.get("eos_token_id", eos) != eos:
        named.append("eos_token_id (set it on the model's generation_config)")
    if named:
        raise ConfigError(
            f"direct=True cannot keep to these settings of {whose}: {', '.join(named)}. "
            "Leave them out, or leave out direct=True"
        )
    values = {
        name: value if settings.get(name) is None else settings[name]
        for name, value in _DEFAULTS.items()
    }
    penalty = float(values["repetition_penalty"])
    if not values["do_sample"]:
        return Greedy(repetition_penalty=penalty)
    return Sampling(
        repetition_penalty=penalty,
        temperature=float(values["temperature"]),
        top_k=int(values["top_k"]),
        top_p=float(values["top_p"]),
    )
