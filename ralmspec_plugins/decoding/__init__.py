"""Token-level speculation: several tokens a pass, and the text of one token a pass.

    lm = HuggingFaceLM.from_pretrained(path, decoding=Decoding(drafter=SuffixDrafter()))

Nothing here imports torch until `Decoding` or `ModelDrafter` is asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

from ralmspec_plugins.decoding.budget import CostCurve
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

__all__ = [
    "Accepted",
    "CorpusDrafter",
    "CostCurve",
    "Decoding",
    "DraftContext",
    "DraftTarget",
    "Drafter",
    "FusedDrafter",
    "ModelDrafter",
    "PassageDrafter",
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
    "ModelDrafter": "drafters.model",
    "TokenCorpus": "corpus",
    "build_corpus": "corpus",
}


def __getattr__(name: str) -> Any:
    """Import what needs torch or reads files on first use."""
    if name in _LATER:
        return getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
