"""Who drafts the tokens that may follow a text: one file each, behind one seam."""

from ralmspec_plugins.decoding.drafters.passages import PassageDrafter
from ralmspec_plugins.decoding.drafters.protocol import Accepted, DraftContext, Drafter
from ralmspec_plugins.decoding.drafters.suffix import SuffixDrafter

__all__ = ["Accepted", "DraftContext", "Drafter", "PassageDrafter", "SuffixDrafter"]
