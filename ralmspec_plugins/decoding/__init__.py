"""Token-level speculation: several tokens a pass, and the text of one token a pass.

    lm = HuggingFaceLM.from_pretrained(path, decoding=Decoding(drafter=SuffixDrafter()))

Nothing here imports torch until `Decoding` is asked for.
"""

from typing import TYPE_CHECKING, Any

from ralmspec_plugins.decoding.budget import CostCurve
from ralmspec_plugins.decoding.drafters import (
    Accepted,
    DraftContext,
    Drafter,
    PassageDrafter,
    SuffixDrafter,
)
from ralmspec_plugins.decoding.token_tree import TokenTree

if TYPE_CHECKING:
    from ralmspec_plugins.decoding.decoder import Decoding

__all__ = [
    "Accepted",
    "CostCurve",
    "Decoding",
    "DraftContext",
    "Drafter",
    "PassageDrafter",
    "SuffixDrafter",
    "TokenTree",
]


def __getattr__(name: str) -> Any:
    """Import what needs torch on first use."""
    if name == "Decoding":
        from ralmspec_plugins.decoding.decoder import Decoding

        return Decoding
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
