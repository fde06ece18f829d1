"""Local language models, with tokens and key-value cache.

Torch is imported on the first use of `HuggingFaceLM`.
"""

from typing import TYPE_CHECKING, Any

from ralmspec_plugins.lm.prompts import PassageTemplate
from ralmspec_plugins.lm.sampling import Greedy, Sampling
from ralmspec_plugins.lm.state import Draft

if TYPE_CHECKING:
    from ralmspec_plugins.lm.huggingface import HuggingFaceLM

__all__ = ["Draft", "Greedy", "HuggingFaceLM", "PassageTemplate", "Sampling"]


def __getattr__(name: str) -> Any:
    """Import the Hugging Face backend on first use."""
    if name == "HuggingFaceLM":
        from ralmspec_plugins.lm.huggingface import HuggingFaceLM

        return HuggingFaceLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
