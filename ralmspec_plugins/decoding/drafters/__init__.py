"""Drafters of the tokens that may follow a text, one module each, with one protocol.

`CorpusDrafter` and `ModelDrafter` are not imported here: they need files or torch.
"""

from ralmspec_plugins.decoding.drafters.fused import FusedDrafter
from ralmspec_plugins.decoding.drafters.passages import PassageDrafter
from ralmspec_plugins.decoding.drafters.protocol import (
    Accepted,
    DraftContext,
    Drafter,
    DraftTarget,
)
from ralmspec_plugins.decoding.drafters.recycling import RecyclingDrafter
from ralmspec_plugins.decoding.drafters.suffix import SuffixDrafter

__all__ = [
    "Accepted",
    "DraftContext",
    "DraftTarget",
    "Drafter",
    "FusedDrafter",
    "PassageDrafter",
    "RecyclingDrafter",
    "SuffixDrafter",
]
