"""A processor that other runs use by turns."""

import random

from ralmspec_plugins.scheduling.processor import ProcessorLoad


class Crowded(ProcessorLoad):
    """Is not spare at a share of the moments at which it is asked; a seed decides which."""

    def __init__(self, seed: int, share: float) -> None:
        super().__init__()
        self._draw = random.Random(f"crowded {seed}")
        self._share = share

    def is_spare(self, own: int = 0) -> bool:
        return self._draw.random() >= self._share
