"""Saved models whose files are damaged, one way each."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from ralmspec_plugins.testing.models import tiny_llama, tiny_tokenizer


def saved(folder: Path, tokenizer: Any = None) -> Path:
    """Save a tiny model with its tokenizer."""
    tiny_llama().save_pretrained(folder)
    (tokenizer or tiny_tokenizer()).save_pretrained(folder)
    return folder


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-40])


def _nested(file: Path) -> None:
    file.write_text("[" * 200_000)


def _null(file: Path) -> None:
    file.write_text("null")


DAMAGES: Final[tuple[tuple[str, Callable[[Path], None]], ...]] = (
    ("config.json", _nested),
    ("config.json", _null),
    ("config.json", _cut),
    ("tokenizer.json", _nested),
    ("tokenizer.json", _null),
    ("tokenizer_config.json", _nested),
    ("tokenizer_config.json", _null),
    ("generation_config.json", _nested),
    ("generation_config.json", _null),
    ("model.safetensors", _cut),
    ("model.safetensors", _null),
)


def damaged(whole: Path, folder: Path, file: str, damage: Callable[[Path], None]) -> Path:
    """Copy a saved model, with one file damaged."""
    shutil.copytree(whole, folder)
    damage(folder / file)
    return folder
