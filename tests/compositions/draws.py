"""What drawing compositions of both hosts shares: dice with a seed, and what a failure says."""

import random
from collections.abc import Callable, Sequence
from typing import Any


class Draws:
    """Throws dice: the same seed gives the same sequence of choices."""

    def __init__(self, seed: int) -> None:
        self._dice = random.Random(seed)
        self.about: list[str] = []

    def any(self, *choices: Any) -> Any:
        """Draw one of some values."""
        return self._dice.choice(choices)

    def some(self, *choices: Any) -> list[Any]:
        """Draw up to two of some values, in an order."""
        return self._dice.sample(choices, self.any(0, 0, 1, 1, 2))

    def maybe(self, share: float) -> bool:
        """Say yes in a share of all cases."""
        return self._dice.random() < share

    def named(self, choices: dict[str, Callable[[], Any]]) -> Any:
        """Draw what to make by its name, which is noted, and make it."""
        name = self.any(*choices)
        self.about.append(name)
        return choices[name]()


def difference(
    seed: int, about: Sequence[str], what: str, host: Sequence[Any], ours: Sequence[Any]
) -> str:
    """Say what differs in a composition, and how to run it again."""
    pairs = zip(host, ours, strict=False)
    first = next((pair for pair in pairs if pair[0] != pair[1]), (host, ours))
    return (
        f"seed {seed}: other {what} (RALMSPEC_COMPOSITION={seed} begins there)\n"
        f"{', '.join(about)}\nhost: {first[0]!r}\nours: {first[1]!r}"
    )
