"""Token-level speculative decoding: several tokens per pass, with unchanged text.

    lm = HuggingFaceLM.from_pretrained(path, decoding=Decoding(drafter=SuffixDrafter()))

Nothing here imports torch before `Decoding` or `ModelDrafter` is accessed.
"""

import importlib
from typing import TYPE_CHECKING, Any

from ralmspec_plugins.decoding.budget import CostCurve, Effort
from ralmspec_plugins.decoding.drafters import (
    Accepted,
    DraftContext,
    Drafter,
    DraftTarget,
    FusedDrafter,
    PassageDrafter,
    RecyclingDrafter,
    SuffixDrafter,
)
from ralmspec_plugins.decoding.simulated import SimulatedDecoder
from ralmspec_plugins.decoding.token_tree import TokenTree

if TYPE_CHECKING:
    from ralmspec_plugins.decoding.corpus import TokenCorpus, build_corpus
    from ralmspec_plugins.decoding.decoder import Decoding
    from ralmspec_plugins.decoding.drafters.corpus import CorpusDrafter
    from ralmspec_plugins.decoding.drafters.model import ModelDrafter
    from ralmspec_plugins.decoding.rapid import RagDrafter
    from ralmspec_plugins.decoding.transfer import KnowledgeTransfer

__all__ = [
    "Accepted",
    "CorpusDrafter",
    "CostCurve",
    "Decoding",
    "DraftContext",
    "DraftTarget",
    "Drafter",
    "Effort",
    "FusedDrafter",
    "KnowledgeTransfer",
    "ModelDrafter",
    "PassageDrafter",
    "RagDrafter",
    "RecyclingDrafter",
    "SimulatedDecoder",
    "SuffixDrafter",
    "TokenCorpus",
    "TokenTree",
    "build_corpus",
]

_LATER = {
    "CorpusDrafter": "drafters.corpus",
    "Decoding": "decoder",
    "KnowledgeTransfer": "transfer",
    "ModelDrafter": "drafters.model",
    "RagDrafter": "rapid",
    "TokenCorpus": "corpus",
    "build_corpus": "corpus",
}


def __getattr__(name: str) -> Any:
    """Import the classes that need torch or read files on first access."""
    if name in _LATER:
        return getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
