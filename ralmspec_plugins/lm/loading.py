"""Loads a local or hub model, and says clearly what is wrong if it is none."""

import os
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ralmspec_plugins.errors import ModelError
from ralmspec_plugins.quiet import no_progress_bar


def load(
    path: str | os.PathLike[str], dtype: str | torch.dtype, device: str | torch.device | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal model and its tokenizer from a directory or the hub; no remote code is run.

    Raises:
        ModelError: there is no such directory, it holds no model, or not a causal one.
    """
    name = os.fspath(path)
    _check_directory(name)
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        with no_progress_bar():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                name,
                config=config,
                dtype=dtype,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError) as problem:
        raise ModelError(f"{name!r} cannot be loaded as a causal model: {problem}") from problem
    model, report = loaded
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ModelError(
            f"{name!r} has no weights for {len(missing)} parts of a causal model "
            f"({missing[0]}, ...): it was saved from another kind of model. "
            "Give a causal language model."
        )
    if config.is_encoder_decoder:
        raise ModelError(f"{name!r} is an encoder-decoder model; a causal one is needed.")
    if device is not None:
        model = model.to(device)
    return model, tokenizer


def _check_directory(name: str) -> None:
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(
                f"{name!r} holds no model: there is no config.json in it. "
                "Give the directory that save_pretrained() wrote."
            )
    elif path.exists():
        raise ModelError(f"{name!r} is a file; give the directory of a saved model.")
    elif path.is_absolute() or name.startswith(("~", ".")) or name.count("/") > 1:
        raise ModelError(f"There is no directory {name!r}.")
