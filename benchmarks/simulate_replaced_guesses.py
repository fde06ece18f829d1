"""Simulate what replacing a guess by the text with a better one by the encoding would bring.

Virtual time: segments of 25 ms, a store 50 ms away, an encoder of 20 ms, 5 ms until a segment has
stopped. The last column writes on the guess by the text, and begins again with the other one, 25 ms
later, where they differ (docs/decisions/0015).

    python -m benchmarks.simulate_replaced_guesses
"""

import random
from collections.abc import Callable, Sequence
from statistics import fmean

from benchmarks.simulated.numbering import Guesser, Numbering, NumberStore
from ralmspec_plugins import Continuous, Latencies, Settings, Simulation
from ralmspec_plugins.effects import Extend

STEPS, WRITE_S, ENCODE_S, SEARCH_S, STOP_S = 120, 0.025, 0.02, 0.05, 0.005
SEEDS = 5
RIGHT = ((0.3, 0.9), (0.5, 0.9), (0.7, 0.9), (0.9, 0.97))  # by the text, by the encoding


def speedups(seed: int, by_text: float, by_encoding: float) -> list[float]:
    """Return the speedups: text alone, encoding alone, both in turn, one replaced by the other."""

    def agreed(step: int, share: float, kind: str) -> bool:
        return random.Random(f"{seed} {kind} {step}").random() < share

    def text(step: int) -> bool:
        return agreed(step, by_text, "text")

    kept = (1 + by_encoding) / 2  # right by the text, and so by the encoding
    found = (by_encoding - by_text * kept) / (1 - by_text)

    def encoding(step: int) -> bool:
        return agreed(step, kept, "kept") if text(step) else agreed(step, found, "found")

    def written_s(need: Extend) -> float:
        step = len(need.state)
        begun_again = STOP_S + ENCODE_S if text(step) != encoding(step) else 0.0
        return WRITE_S + begun_again

    first, second = Guesser(True, text), Guesser(False, encoding)
    plain_s = STEPS * (WRITE_S + ENCODE_S + SEARCH_S)
    return [
        plain_s / _wall_s([first], lambda _: WRITE_S),
        plain_s / _wall_s([second], lambda _: WRITE_S),
        plain_s / _wall_s([first, second], lambda _: WRITE_S),
        plain_s / _wall_s([Guesser(True, encoding)], written_s),
    ]


def _wall_s(speculators: Sequence[Guesser], extend_s: Callable[[Extend], float]) -> float:
    latencies = Latencies(
        extend_s=extend_s, search_s=lambda _: SEARCH_S, encode_s=ENCODE_S, stop_s=STOP_S
    )
    settings = Settings(schedule=Continuous(lanes=8), speculators=speculators)
    return Simulation(Numbering(STEPS), NumberStore(), latencies, settings).run("").stats.wall_s


def main() -> None:
    """Print the table."""
    print("| right by text, by encoding | text alone | encoding alone | both | replaced |")
    print("|---|---|---|---|---|")
    for by_text, by_encoding in RIGHT:
        rows = [speedups(seed, by_text, by_encoding) for seed in range(SEEDS)]
        means = " | ".join(f"{fmean(column):.2f}" for column in zip(*rows, strict=True))
        print(f"| {by_text:.0%}, {by_encoding:.0%} | {means} |")


if __name__ == "__main__":
    main()
