"""Simulate what replacing a guess by the text with a better one by the encoding brings.

Virtual time: segments of 25 ms, a store 50 ms away, an encoder of 20 or of 150 ms, 5 ms until a
segment has stopped; the mean of some seeds of 120 steps (docs/decisions/0015).

    python -m benchmarks.simulate_replaced_guesses
"""

import random
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from benchmarks.simulated.numbering import Guesser, Numbering, NumberStore
from ralmspec_plugins import Continuous, Latencies, Settings, Simulation
from ralmspec_plugins.scheduling.continuous import ContinuousPolicy
from ralmspec_plugins.scheduling.cost_model import Costs

STEPS, WRITE_S, SEARCH_S, STOP_S = 120, 0.025, 0.05, 0.005
SEEDS = 5
RIGHT = ((0.3, 0.9), (0.5, 0.9), (0.7, 0.9), (0.9, 0.97))  # by the text, by the encoding


class Keeping(Continuous):
    """The default schedule, but that a guess stays until it is verified."""

    def begin(self, costs: Costs) -> ContinuousPolicy:
        """Return its policy."""
        policy = super().begin(costs)
        policy.replacement = None
        return policy


def speedups(seed: int, encode_s: float, by_text: float, by_encoding: float) -> list[float]:
    """Return the speedups: text alone, encoding alone, both kept, both with replacing."""

    def agreed(step: int, share: float, kind: str) -> bool:
        return random.Random(f"{seed} {kind} {step}").random() < share

    def text(step: int) -> bool:
        return agreed(step, by_text, "text")

    kept = (1 + by_encoding) / 2  # right by the text, and so by the encoding
    found = (by_encoding - by_text * kept) / (1 - by_text)

    def encoding(step: int) -> bool:
        return agreed(step, kept, "kept") if text(step) else agreed(step, found, "found")

    first, second = Guesser(True, text), Guesser(False, encoding)
    plain_s = STEPS * (WRITE_S + encode_s + SEARCH_S)
    ways: list[tuple[Callable[..., Any], list[Guesser]]] = [
        (Continuous, [first]),
        (Continuous, [second]),
        (Keeping, [first, second]),
        (Continuous, [first, second]),
    ]
    return [plain_s / _wall_s(make(lanes=8), encode_s, chosen) for make, chosen in ways]


def _wall_s(schedule: Continuous, encode_s: float, speculators: Sequence[Guesser]) -> float:
    latencies = Latencies(
        extend_s=WRITE_S, search_s=lambda _: SEARCH_S, encode_s=encode_s, stop_s=STOP_S
    )
    settings = Settings(schedule=schedule, speculators=speculators)
    return Simulation(Numbering(STEPS), NumberStore(), latencies, settings).run("").stats.wall_s


def main() -> None:
    """Print the table."""
    print("| encoder | right by text, by encoding | text | encoding | both, kept | replaced |")
    print("|---|---|---|---|---|---|")
    for encode_s in (0.02, 0.15):
        for by_text, by_encoding in RIGHT:
            rows = [speedups(seed, encode_s, by_text, by_encoding) for seed in range(SEEDS)]
            means = " | ".join(f"{fmean(column):.2f}" for column in zip(*rows, strict=True))
            right = f"{by_text:.0%}, {by_encoding:.0%}"
            print(f"| {1000 * encode_s:.0f} ms | {right} | {means} |")


if __name__ == "__main__":
    main()
