"""Who drafts the tokens that may follow a text: one file each, behind one seam.

`CorpusDrafter` and `ModelDrafter` stand in their own modules: they need files or torch.
"""

from ralmspec_plugins.decoding.drafters.fused import FusedDrafter
from ralmspec_plugins.decoding.drafters.passages import PassageDrafter
from ralmspec_plugins.decoding.drafters.protocol import Accepted, DraftContext, Drafter, DraftTarget
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
