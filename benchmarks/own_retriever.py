"""Measure what a retriever of one's own gains behind a slow connection, with nothing declared.

It has three methods (`search`, `encode`, `k`) or one; its passages repeat. Requests run plainly
and speculatively in turn, with equal answers.

    python -m benchmarks.own_retriever benchmarks/results/own_retriever.json
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness.results import surroundings
from ralmspec_plugins import Engine, Hit, Hits, Passage, Query, Settings, plain
from ralmspec_plugins.workloads import TextState, TextWorkload

TOPICS = ("red fox", "blue whale", "green frog", "grey owl")
PROMPT = " ".join(TOPICS[n % 4].split()[n % 2] for n in range(32))
STORE_S, STEP_S = 0.05, 0.005  # labelled: waits, not work


class Lines(TextWorkload[TextState]):
    """Looks up each word of the prompt."""

    def query(self, state: TextState) -> str | None:
        words, lines = state.request.prompt.split(), state.text.count("\n")
        return f"{words[lines]} {lines}" if lines < len(words) else None

    def extend(self, state: TextState, hits: Hits) -> TextState:
        time.sleep(STEP_S)
        return state.append(f"{hits[0].passage.text}\n")


class OneMethod:
    """Finds the passage that shares a word with the query, 50 ms away."""

    def search(self, queries: Sequence[Query]) -> list[list[Hit]]:
        time.sleep(STORE_S)
        return [self._found(query) for query in queries]

    def _found(self, query: Query) -> list[Hit]:
        words = set(query.text.split())
        return [Hit(Passage(f"p{n}", t)) for n, t in enumerate(TOPICS) if words & set(t.split())]


class ThreeMethods(OneMethod):
    """Its queries are vectors."""

    k = 1

    def encode(self, text: str) -> Query:
        words = set(text.split())
        return Query(text, [float(len(words & set(topic.split()))) for topic in TOPICS])


def main() -> int:
    """Print and write the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("result", type=Path)
    parser.add_argument("--repetitions", type=int, default=7)
    options = parser.parse_args()
    rows = [measure(make, options.repetitions) for make in (OneMethod, ThreeMethods)]
    result = {
        "what": "seconds a request over a retriever of one's own",
        "store_s": STORE_S,
        "step_s": STEP_S,
        **surroundings(),
        "rows": rows,
    }
    options.result.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def measure(make: Callable[[], Any], repetitions: int) -> dict[str, Any]:
    """Time both, each request from an empty cache."""
    seconds: dict[bool, list[float]] = {False: [], True: []}
    expected = plain(Lines(), make(), PROMPT)
    for _ in range(repetitions):
        for speculate, taken in seconds.items():
            with Engine(Lines(), make(), Settings(speculate=speculate)) as engine:
                answer = engine.run(PROMPT)
            assert answer == expected
            taken.append(answer.stats.wall_s)
    base, ours = (statistics.median(seconds[key]) for key in (False, True))
    name = make.__name__
    print(f"{name:14} plain {base:.3f} s, speculative {ours:.3f} s: {base / ours:.1f} times")
    return {"retriever": name, "plain_s": seconds[False], "speculative_s": seconds[True]}


if __name__ == "__main__":
    sys.exit(main())
